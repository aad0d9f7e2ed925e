"""vLLM for real, on a CPU: in process and as an OpenAI-compatible server on loopback, as generator and as judge.

The HF backend is the reference: same ids in, same greedy rows out. One engine start takes 20 to 40 s, so one process
does all in-process checks and one server all server checks.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

import pytest
from toys import REPOSITORY
from vllm_python import vllm_python

from guardrail.evaluation.judges import make_judge
from guardrail.evaluation.judges.stage import judge_file, load_judgements
from guardrail.generation import Request, SamplingOptions, make_backend

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

PROMPTS = ["Where does the river go?", "Name three gentle ways to paint a boat.", "Ann asks Bob for tea;", "Sea."]
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
START_LIMIT_SEC = 240
IN_PROCESS = """
import dataclasses, json, sys
from guardrail.generation import Request, SamplingOptions, make_backend
model, classifier, requests, output = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4]
backend = make_backend("vLLM", model, torch_dtype="float32", stops=tuple(json.loads(sys.argv[5])))
requests = [Request(*r) for r in requests]
rows = lambda options: [dataclasses.asdict(c) for c in backend.generate(requests, options)]
sampling = SamplingOptions(True, 1.0, 0.95, 50, 8, 3)
out = {
    "greedy": rows(SamplingOptions(max_new_tokens=12)),
    "sampled": rows(sampling),
    "sampled_again": rows(sampling),
    "top": backend.top_next_tokens([r.prompt_ids for r in requests], 5),
}
from guardrail.generation.vllm_engine import classify
out["probabilities"] = classify(classifier, [r.prompt_ids for r in requests], "float32", 14)
with open(output, "w") as handle:
    json.dump(out, handle)
print("the only line on stdout")
"""


def vllm_environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="module")
def requests(tiny_tokenizer):
    bos = tiny_tokenizer.bos_token_id
    return [Request(f"r{i}", 0, [bos, *tiny_tokenizer(text)["input_ids"]]) for i, text in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def reference(tiny_model, requests):
    backend = make_backend("hf", str(tiny_model), torch_dtype="float32")
    return backend, backend.generate(requests, SamplingOptions(max_new_tokens=12))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, tiny_tokenizer):
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    folder = tmp_path_factory.mktemp("vllm-classifier")
    torch.manual_seed(1)
    shape = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "max_position_embeddings": 512}
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer), num_labels=14, problem_type="multi_label_classification", **shape, **special
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory, tiny_tokenizer):
    """Width 128: vLLM's CPU attention has no kernel for a head of 8."""
    from toys import make_llama

    return make_llama(tmp_path_factory.mktemp("vllm-llama"), tiny_tokenizer, width=128)


def test_vllm_in_process_equals_the_hf_backend(tiny_model, classifier, requests, reference, tmp_path):
    from guardrail.evaluation.judges.moderation import classify_batch
    from guardrail.models.loading import load_classifier

    backend, expected = reference
    marker = next(c.text[6:9] for c in expected if len(c.text) > 9)
    command = [vllm_python(), "-c", IN_PROCESS, str(tiny_model), str(classifier)]
    command += [json.dumps([[r.id, r.sample, r.prompt_ids] for r in requests]), str(tmp_path / "out.json")]
    done = subprocess.run(
        [*command, json.dumps([marker])], env=vllm_environment(), capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "the only line on stdout\n"
    found = json.loads((tmp_path / "out.json").read_text())
    stopped = make_backend("hf", str(tiny_model), torch_dtype="float32", stops=(marker,))
    with_marker = stopped.generate(requests, SamplingOptions(max_new_tokens=12))
    by_id = {c.id: c for c in with_marker}
    assert any(c.cut_at_stop for c in with_marker), "the test needs a row that runs into the marker"
    for row in found["greedy"]:
        one = by_id[row["id"]]
        assert (row["text"], row["token_ids"]) == (one.text, one.token_ids)
        assert (row["finish_reason"], row["cut_at_stop"]) == (one.finish_reason, one.cut_at_stop)
    assert found["sampled"] == found["sampled_again"]
    assert [r["token_ids"] for r in found["sampled"]] != [r["token_ids"] for r in found["greedy"]]
    for ours, theirs in zip(backend.top_next_tokens([r.prompt_ids for r in requests], 5), found["top"], strict=True):
        assert dict(ours) == pytest.approx({int(t): p for t, p in theirs}, abs=1e-4)
    model = load_classifier(str(classifier), "float32")
    for ours, theirs in zip(
        classify_batch(model, [r.prompt_ids for r in requests]), found["probabilities"], strict=True
    ):
        assert theirs == pytest.approx(ours, abs=1e-4)


ADAPTER_IN_PROCESS = """
import dataclasses, json, sys
from guardrail.generation import Request, SamplingOptions, make_backend
requests = [Request(*r) for r in json.loads(sys.argv[2])]
backend = make_backend("vLLM", sys.argv[1], torch_dtype="float32")
out = {
    "greedy": [dataclasses.asdict(c) for c in backend.generate(requests, SamplingOptions(max_new_tokens=12))],
    "top": backend.top_next_tokens([r.prompt_ids for r in requests], 5),
}
with open(sys.argv[3], "w") as handle:
    json.dump(out, handle)
"""


@pytest.fixture(scope="module")
def tiny_adapter(tiny_model, tmp_path_factory):
    """A checkpoint as a training with adapters leaves it, of a rank that vLLM has not: it takes the next larger."""
    import torch
    from transformers import AutoConfig

    from guardrail.models.adapters import write_adapter
    from guardrail.models.checkpoints import hash_checkpoint
    from guardrail.models.loading import load_causal_lm, load_tokenizer

    folder = tmp_path_factory.mktemp("vllm-adapter") / "slice_end"
    torch.manual_seed(5)
    pairs = {
        name: (0.3 * torch.randn(12, module.in_features), 0.3 * torch.randn(module.out_features, 12))
        for name, module in load_causal_lm(str(tiny_model)).named_modules()
        if name.rsplit(".", 1)[-1] in ("q_proj", "v_proj", "down_proj")
    }
    assert pairs
    write_adapter(folder, pairs, str(tiny_model), hash_checkpoint(str(tiny_model)), torch.float32)
    AutoConfig.from_pretrained(tiny_model).save_pretrained(folder)
    load_tokenizer(str(tiny_model)).save_pretrained(folder)
    return folder


def test_vllm_on_an_adapter_equals_the_hf_backend(tiny_adapter, requests, reference, tmp_path):
    """vLLM applies the adapter per request; the HF backend adds it to the base in memory."""
    _, of_the_base = reference
    backend = make_backend("hf", str(tiny_adapter), torch_dtype="float32")
    expected = {c.id: (c.text, c.token_ids) for c in backend.generate(requests, SamplingOptions(max_new_tokens=12))}
    assert {c.id: (c.text, c.token_ids) for c in of_the_base} != expected, "the adapter changes answers"
    command = [vllm_python(), "-c", ADAPTER_IN_PROCESS, str(tiny_adapter)]
    command += [json.dumps([[r.id, r.sample, r.prompt_ids] for r in requests]), str(tmp_path / "out.json")]
    done = subprocess.run(command, env=vllm_environment(), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "out.json").read_text())
    assert {row["id"]: (row["text"], row["token_ids"]) for row in found["greedy"]} == expected
    for ours, theirs in zip(backend.top_next_tokens([r.prompt_ids for r in requests], 5), found["top"], strict=True):
        assert dict(ours) == pytest.approx({int(t): p for t, p in theirs}, abs=1e-4)


@pytest.fixture(scope="module")
def server(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    (folder / "chat.jinja").write_text(CHAT_TEMPLATE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [vllm_python(), "-m", "vllm.entrypoints.openai.api_server", "--model", str(tiny_model)]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--enforce-eager", "--chat-template", str(folder / "chat.jinja")]
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen(
            command, env=vllm_environment(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_LIMIT_SEC
        while True:
            assert process.poll() is None, (folder / "server.log").read_text()[-3000:]
            assert time.monotonic() < deadline, "the server did not start in time"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def test_server_as_generator_equals_the_hf_backend(server, tiny_model, requests, reference):
    _, expected = reference
    backend = make_backend("openai", str(tiny_model), base_url=server, served_model_name="tiny")
    found = {c.id: c for c in backend.generate(requests, SamplingOptions(max_new_tokens=12))}
    for one in expected:
        got = found[one.id]
        assert (got.text, got.token_ids, got.finish_reason) == (one.text, one.token_ids, one.finish_reason)
    assert backend.knows_token_ids and backend.context_tokens == 512
    marker = next(c.text[6:9] for c in expected if len(c.text) > 9)
    stopped = make_backend("openai", str(tiny_model), base_url=server, stops=(marker,))
    local = make_backend("hf", str(tiny_model), torch_dtype="float32", stops=(marker,))
    options = SamplingOptions(max_new_tokens=12)
    texts = {c.id: (c.text, c.cut_at_stop) for c in local.generate(requests, options)}
    assert {c.id: (c.text, c.cut_at_stop) for c in stopped.generate(requests, options)} == texts


def test_server_as_judge_is_asked_and_its_nonsense_counted(server, tmp_path):
    """A random model gives no verdict and no rating: both judges finish, with 100% judge errors and no rate."""
    rows = [{"id": f"a{i}", "prompt": p, "response": "To the sea."} for i, p in enumerate(PROMPTS)]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    for judge, extra in (
        ("openai", {"rubric_model": "tiny", "rubric_max_attempts": 2}),
        ("guard", {"guard_model": "tiny", "guard_backend": "openai"}),
    ):
        settings = make_judge(judge, {"judge_base_url": server, **extra})
        summary = load_judgements(judge_file(tmp_path / "pairs.json", settings)["judgements"])["summary"]
        assert summary["n"] == len(PROMPTS)
        assert summary["judge_error_percent"] == 100.0 and summary["harmfulness_score_percent"] is None
