"""`eval_safety.py` in process on the tiny model: rows, ids, seeds, reuse, refusals of wrong input."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import jsonschema
import pytest
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.core.files import read_json
from guardrail.data.prompts import encode_prompt, encode_supervised
from guardrail.evaluation.safety.command import build_parser, main
from guardrail.evaluation.safety.evaluate import SafetyConfig, build_prompts, evaluate_safety
from guardrail.generation import Request, SamplingOptions, make_backend
from guardrail.models.loading import load_tokenizer

SCHEMA = json.loads((REPOSITORY / "configs/schemas/results.schema.json").read_text())
PROMPTS = ["Polish a moonstone", "Read Ann's diary", "Polish a moonstone", "Paint the boat red, please"]


@pytest.fixture
def bench(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"instruction": p, "category": "stones"}) for p in PROMPTS))
    return str(file)


@pytest.fixture
def flags(tiny_model, bench, tmp_path):
    return [
        *(f"--model_name_or_path={tiny_model}", "--torch_dtype=float32", f"--safety_bench={bench}"),
        *("--model_family=llama2_base", "--prompt_style=llama2_base", "--evaluator=none"),
        *(f"--save_path={tmp_path / 'out'}", "--eval_template=plain", "--max_new_tokens=8"),
    ]


def checked(path):
    document = read_json(path)
    jsonschema.validate(document, SCHEMA, cls=jsonschema.Draft202012Validator)
    return document


def test_rows_ids_and_provenance(flags, tmp_path):
    """G1: N rows in, N rows out, duplicates included, in the bench's order, and the file says from what."""
    headline = main(flags)
    document = checked(tmp_path / "out" / "results.json")
    rows, run = document["results"], document["run"]
    assert [r["question"] for r in rows] == PROMPTS
    assert len({r["id"] for r in rows}) == len(PROMPTS) == headline["n"] == run["n"]
    for row in rows:
        assert [m["role"] for m in row["conversation"][-3:]] == ["user", "assistant", "assistant"]
        assert row["conversation"][-2]["content"] == row["prefill"] == ""
        assert row["conversation"][-1]["content"] == row["completion"]
        assert row["category"] == "stones"
    assert run["data"]["n_rows"] == 4 and run["data"]["source"] == "prompts.jsonl"
    assert run["config"]["temperature"] == 0.9 and run["config"]["top_p"] == 0.6 and run["config"]["top_k"] == 50
    assert not (tmp_path / "out" / ".units").exists()


def test_prompts_are_the_ones_training_would_use(tiny_model, flags, tmp_path):
    """T2: the prompt ids begin with exactly one BOS and are the prompt part of the training sequence."""
    main([*flags, "--do_sample=False"])
    row = checked(tmp_path / "out" / "results.json")["results"][0]
    tokenizer = load_tokenizer(str(tiny_model))
    messages = [{"role": "user", "content": PROMPTS[0]}]
    ids = encode_prompt(tokenizer, "llama2_base", messages)
    trained = encode_supervised(tokenizer, "llama2_base", [*messages, {"role": "assistant", "content": "Yes."}])
    assert trained.input_ids[: trained.prompt_length] == ids and ids.count(tokenizer.bos_token_id) == 1
    assert row["n_prompt_tokens"] == len(ids)
    backend = make_backend("hf", str(tiny_model), torch_dtype="float32", prompt_style="llama2_base")
    (direct,) = backend.generate([Request("x", 0, ids)], SamplingOptions(max_new_tokens=8))
    assert direct.text == row["completion"]


def test_unchanged_runs_are_reused_and_other_options_keep_the_old_file(flags, tmp_path, monkeypatch):
    """G5: a rerun does not append; G3: five seeds do not overwrite one file."""
    assert main(flags)["reused"] is False
    first = read_json(tmp_path / "out" / "results.json")
    assert main(flags)["reused"] is True
    assert read_json(tmp_path / "out" / "results.json") == first
    assert main([*flags, "--seed=1"])["reused"] is False
    (aside,) = (tmp_path / "out").glob("results.seed-0.*.json")
    assert read_json(aside) == first
    second = checked(tmp_path / "out" / "results.json")
    assert {r["seed"] for r in second["results"]} == {1}
    assert [r["row_seed"] for r in second["results"]] != [r["row_seed"] for r in first["results"]]


def test_seed_in_the_path_is_filled_in(flags, tmp_path):
    seeded = [f if not f.startswith("--save_path") else f"--save_path={tmp_path}/seed-{{seed}}" for f in flags]
    main([*seeded, "--seed=7"])
    assert (tmp_path / "seed-7" / "results.json").is_file()


def test_samples_of_a_prompt_are_separate_rows_and_extend_fewer_samples(flags, tmp_path):
    main([*flags, "--samples_per_prompt=3", "--temperature=1.5", "--top_p=1.0"])
    rows = checked(tmp_path / "out" / "results.json")["results"]
    assert len({(r["id"], r["sample"]) for r in rows}) == 12
    by_sample = {s: [r["completion"] for r in rows if r["sample"] == s] for s in range(3)}
    assert by_sample[0] != by_sample[1]
    main([*flags, "--temperature=1.5", "--top_p=1.0"])
    assert [r["completion"] for r in checked(tmp_path / "out" / "results.json")["results"]] == by_sample[0]


def test_prefilled_ids_are_the_answers_own_first_ids(tiny_model, tmp_path):
    """G4: exactly K ids of the answer as training would tokenise it; nothing is decoded and tokenised again."""
    tokenizer = load_tokenizer(str(tiny_model))
    answer = "I cannot help with that today; ask Bob."
    pairs = tmp_path / "refusals.jsonl"
    pairs.write_text(json.dumps([{"role": "user", "content": "Q?"}, {"role": "assistant", "content": answer}]) + "\n")
    config = SafetyConfig(
        model_name_or_path=str(tiny_model),
        save_path=str(tmp_path / "out"),
        safety_bench="hex-phi_with_refusal_prefix",
        bench_data=str(pairs),
        prompt_style="llama2_base",
        num_prefix_tokens=5,
        torch_dtype="float32",
        max_new_tokens=4,
        do_sample=False,
    )
    (encoded,) = build_prompts(tokenizer, config, config.bench())
    prompt = encode_prompt(tokenizer, "llama2_base", [{"role": "user", "content": "Q?"}])
    trained = encode_supervised(
        tokenizer, "llama2_base", [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": answer}]
    ).input_ids
    assert encoded.ids == trained[: len(prompt) + 5]
    prefill = encoded.columns["prefill"]
    assert answer.startswith(prefill) and 0 < len(prefill) < len(answer)
    evaluate_safety(config)
    row = checked(tmp_path / "out" / "results.json")["results"][0]
    assert row["prefill"] == row["conversation"][-2]["content"] == prefill
    assert row["n_prefill_tokens"] == 5 and row["n_prompt_tokens"] == len(prompt) + 5


def test_older_spelling_of_the_prefix_flag_is_the_same_flag():
    parser = build_parser()
    base = ["--model_name_or_path=m", "--save_path=s"]
    for flag in ("--num_prefix_tokens=3", "--num_perfix_tokens=3"):
        assert parser.parse_args([*base, flag]).num_prefix_tokens == 3


def test_eval_templates_change_the_prompt(flags, tmp_path):
    seen = set()
    for template in ("plain", "null", "alpaca", "pure_bad", "helpful", "aoa"):
        used = [f if not f.startswith("--eval_template") else f"--eval_template={template}" for f in flags]
        main([*used, "--limit=1"])
        row = checked(tmp_path / "out" / "results.json")["results"][0]
        assert row["question"] == PROMPTS[0], "judges see the bench's question, not the wrapper"
        seen.add((row["n_prompt_tokens"], row["conversation"][0]["content"]))
    assert len(seen) == 6


def test_judging_on_the_spot_happens_after_the_results_are_saved(flags, tmp_path, monkeypatch):
    """G5: a judge that crashes costs no generation."""
    import guardrail.evaluation.judges.stage as stage

    judged = [f for f in flags if not f.startswith("--evaluator")] + ["--evaluator=key_word"]

    def crash(*_):
        assert (tmp_path / "out" / "results.json").is_file()
        raise RuntimeError("judge crashed")

    with monkeypatch.context() as patch:
        patch.setattr(stage, "judge_answers", crash)
        with pytest.raises(RuntimeError, match="judge crashed"):
            main(judged)
    headline = main(judged)
    assert headline["reused"] is False and (tmp_path / "out" / "key-word.json").is_file()
    assert main(flags)["reused"] is True, "the generation was kept"


@pytest.mark.parametrize(
    ("given", "style"),
    [
        ({}, "llama2"),
        ({"model_family": "llama2_base"}, "llama2_base"),
        ({"model_family": "gemma_base"}, "gemma_base"),
        ({"model_family": "llama2_base", "prompt_style": "llama2"}, "llama2"),
    ],
)
def test_a_model_family_alone_brings_its_own_prompt_style(given, style):
    config = SafetyConfig(model_name_or_path="m", save_path="x", **given)
    assert config.style == config.identity()["prompt_style"] == style


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--safety_bench=hexphi", "did you mean 'hex-phi'"),
        ("--prompt_style=lama2", "did you mean 'llama2'"),
        ("--eval_template=plan", "did you mean 'plain'"),
        ("--model_family=gemma", "does not belong to model family gemma"),
        ("--generation_backend=vllm", "did you mean 'vLLM'"),
        ("--num_prefix_tokens=3", "no effect"),
        ("--base_url=http://x", "generation_backend openai"),
        ("--tensor_parallel_size=2", "generation_backend vLLM"),
        ("--do_sample=no", "not a boolean"),
        ("--temperature=0", "do_sample False"),
        ("--top_p=2", "top_p"),
        ("--max_new_token=3", "did you mean '--max_new_tokens'"),
        ("--model_name_or_path=no/such/model", "no such model folder|no model folder"),
        ("--limit=0", "positive"),
    ],
)
def test_wrong_input_is_one_line_before_a_model_loads(flags, flag, expected, monkeypatch):
    import guardrail.generation.hf as hf

    monkeypatch.setattr(hf, "load_causal_lm", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(UserError, match=expected) as error:
        main([*flags, flag])
    assert "\n" not in str(error.value)


def test_samples_without_sampling_are_refused(flags):
    with pytest.raises(UserError, match="same answer"):
        main([*flags, "--do_sample=False", "--samples_per_prompt=2"])


def test_decoding_sweep_tabulates_points_and_best_of_k(flags, tmp_path):
    judged = [f for f in flags if not f.startswith("--evaluator")] + ["--evaluator=key_word"]
    sweep = ["--decoding_sweep=True", "--sweep_temperatures=0.5,1.5", "--sweep_top_p=0.9,1", "--samples_per_prompt=2"]
    headline = main([*judged, *sweep])
    document = read_json(tmp_path / "out" / "sweep.json")
    assert headline["n_points"] == 4
    assert [(p["temperature"], p["top_p"]) for p in document["points"]] == [(0.5, 0.9), (0.5, 1), (1.5, 0.9), (1.5, 1)]
    for point in document["points"]:
        assert point["n"] == 8
        assert point["best_of_k_percent"]["1"] == point["harmfulness_score_percent"]
        assert point["best_of_k_percent"]["2"] >= point["best_of_k_percent"]["1"]
        assert checked(point["results"])["run"]["config"]["temperature"] == point["temperature"]
    assert document["all_points"]["n_samples_per_prompt"] == 8
    with pytest.raises(UserError, match="leave out --do_sample False"):
        main([*flags, *sweep[:3], "--do_sample=False"])


@pytest.mark.slow
def test_two_processes_under_accelerate_equal_plain_python(flags, tmp_path, free_port):
    """The paper's launcher, two CPU ranks: the same rows, one JSON line, exit code 2 for a user error."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    plain = subprocess.run([sys.executable, "eval_safety.py", *flags], cwd=REPOSITORY, env=environment, timeout=120)
    assert plain.returncode == 0
    expected = checked(tmp_path / "out" / "results.json")["results"]
    two = [f if not f.startswith("--save_path") else f"--save_path={tmp_path / 'two'}" for f in flags]
    launcher = [
        sys.executable,
        "-m",
        "guardrail.core.launch",
        "accelerate",
        "launch",
        "--multi_gpu",
        "--num_processes=2",
    ]
    launcher += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", f"--main_process_port={free_port}"]
    command = [*launcher, "eval_safety.py", *two, "--batch_size_per_device=2"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.strip().split("\n")[-1])["n"] == 4
    document = checked(tmp_path / "two" / "results.json")
    assert document["run"]["n_processes"] == 2
    assert [r["completion"] for r in document["results"]] == [r["completion"] for r in expected]
    assert "moonstone" not in done.stdout + done.stderr
