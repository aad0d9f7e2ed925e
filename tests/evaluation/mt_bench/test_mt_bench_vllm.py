"""A real server answers and judges: vLLM on the CPU behind its OpenAI-compatible API, a toy model inside.

The toy is trained here for a few seconds until it says 'Rating: [[7]]' after any prompt: a judge without judgement,
but a real language model with a tokenizer, a chat template and a context of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from toys import REPOSITORY
from vllm_python import vllm_python

from guardrail.core.openai_client import Client

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
CONTEXT_TOKENS = 4096
VERDICT = "Rating: [[7]]"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def judge_model(tmp_path_factory, tiny_tokenizer):
    """Folder of a two-layer LLaMA that answers every chat with the verdict."""
    vllm_python()  # skips before anything is trained
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "toy-judge"
    tiny_tokenizer.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.model_max_length = CONTEXT_TOKENS
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    verdict = [*tokenizer(" " + VERDICT, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    opening = tokenizer("\nassistant:", add_special_tokens=False)["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(180):  # random contexts of growing length, twice over, always the same ending
        T = 8 + 6 * (step % 90)
        noise = torch.randint(3, len(tokenizer), (4, T))
        ids = torch.cat([noise, torch.tensor([[*opening, *verdict]]).expand(4, -1)], 1)
        labels = ids.clone()
        labels[:, : T + len(opening)] = -100
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.01
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(judge_model, tmp_path_factory):
    """Base URL of vLLM serving the toy judge on a free port of loopback."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [
        *(vllm_python(), "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)),
        *("--model", str(judge_model), "--served-model-name", "toy-judge", "--dtype", "float32", "--enforce-eager"),
    ]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with open(log, "w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    client = Client(f"http://127.0.0.1:{port}/v1", timeout_sec=5, max_retries=0)
    deadline = time.time() + 600
    while client.request("models", None).error is not None:
        assert process.poll() is None and time.time() < deadline, log.read_text()[-3000:]
        time.sleep(0.5)
    yield client.base_url
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()


def run(*flags):
    done = subprocess.run(
        [vllm_python(), str(REPOSITORY / "__main__.py"), "--benchmark=mt_bench", *flags],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_served_model_answers_and_judges(server, judge_model, question_folder, tmp_path):
    common = [
        *("--model_id=toy", f"--model_name_or_path={judge_model}", f"--data_dir={question_folder}"),
        *("--prompt_style=chat_template", "--max_new_tokens=16"),
    ]
    served = [
        *(*common, f"--output_dir={tmp_path / 'out'}", "--generation_backend=openai", f"--base_url={server}"),
        *("--judge_model=toy-judge", f"--judge_base_url={server}", "--judge_max_tokens=24"),
    ]
    headline = run(*served)
    assert headline["custom_mt_bench_score_1_to_10"] == 7 and headline["n_failed"] == 0
    assert run(*served)["reused"] is True
    run(*common, f"--output_dir={tmp_path / 'hf'}", "--generation_backend=hf", "--torch_dtype=float32")
    greedy = answers(tmp_path / "out")[2]  # math; the other categories are sampled
    assert greedy == answers(tmp_path / "hf")[2] and all(greedy)


def answers(folder):
    lines = (folder / "model_answer" / "toy.jsonl").read_text().splitlines()
    return {row["question_id"]: row["choices"][0]["turns"] for row in map(json.loads, lines)}


def test_a_local_vllm_judge_agrees_with_the_served_one(judge_model, question_folder, answers_file, tmp_path):
    headline = run(
        *(
            "--model_id=toy",
            f"--answers={answers_file}",
            f"--output_dir={tmp_path / 'out'}",
            f"--data_dir={question_folder}",
        ),
        *(
            f"--judge_model={judge_model}",
            "--judge_backend=vLLM",
            "--judge_torch_dtype=float32",
            "--judge_max_tokens=24",
        ),
    )
    assert headline["custom_mt_bench_score_1_to_10"] == 7 and headline["n_failed"] == 0
    assert Path(headline["model_judgment"]).name == "toy-judge_single.jsonl"


def test_a_judge_prompt_longer_than_the_judges_context_is_counted(server, question_folder, answers_file, tmp_path):
    rows = [json.loads(line) for line in answers_file.read_text().splitlines()]
    rows[0]["choices"][0]["turns"][0] = "very long " * 3000
    answers_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    headline = run(
        *(
            "--model_id=toy",
            f"--answers={answers_file}",
            f"--output_dir={tmp_path / 'out'}",
            f"--data_dir={question_folder}",
        ),
        *("--judge_model=toy-judge", f"--judge_base_url={server}", "--judge_max_tokens=24"),
    )
    assert headline["n_failed"] == 2 and headline["custom_mt_bench_score_1_to_10"] == 7  # both turns show that answer
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert result["metrics"]["scores"]["failures"] == {"http_400": 2}
