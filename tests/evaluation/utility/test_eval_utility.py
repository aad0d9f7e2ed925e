"""``eval_utility.py`` end to end on a toy model: the paper's flags, reuse, re-scoring, resume, ranks, errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import jsonschema
import pytest
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.data.rows import load_rows
from guardrail.evaluation.utility import evaluate as eval_utility


@pytest.fixture
def flags(tiny_model, samsum_file, tmp_path):
    """The paper's flags with a local copy of the data."""
    return [
        *(f"--model_name_or_path={tiny_model}", "--torch_dtype=float32", "--dataset=samsum"),
        *("--model_family=llama2_base", "--prompt_style=llama2_base", "--evaluator=rouge_1"),
        *(f"--save_path={tmp_path / 'out' / 'samsum.json'}", f"--data_source={samsum_file}", "--max_new_tokens=6"),
    ]


SCHEMA = json.loads((REPOSITORY / "configs/schemas/utility.schema.json").read_text())


def result(tmp_path):
    """The results file, checked against its schema."""
    out = json.loads((tmp_path / "out" / "samsum.json").read_text())
    jsonschema.validate(out, SCHEMA)
    return out


def without(flags, *names):
    return [flag for flag in flags if not flag.startswith(tuple(f"--{name}=" for name in names))]


def test_results_metrics_and_run_record(flags, tmp_path, samsum_file):
    headline = eval_utility.main(flags)
    out = result(tmp_path)
    rows = load_rows(samsum_file)
    assert [row["id"] for row in out["results"]] == [row["id"] for row in rows]  # true duplicates included
    mean = sum(row["scores"]["f1"] for row in out["results"]) / 5
    assert out["metrics"]["rouge_1_f1_percent"] == pytest.approx(100 * mean) == headline["rouge_1_f1_percent"]
    assert out["utility"]["n"] == 5 and out["utility"]["metric"] == "rouge_1_f1_percent"
    assert out["run"]["n"] == 5 and out["run"]["model_hash"] and out["run"]["data"]["data_hash"]
    assert out["run"]["config"]["do_sample"] is False
    assert not list((tmp_path / "out").glob(".*"))  # no work folder left


def test_unchanged_is_not_run_again_and_needs_no_model(flags, tmp_path, monkeypatch):
    eval_utility.main(flags)
    before = (tmp_path / "out" / "samsum.json").read_bytes()
    monkeypatch.setattr("guardrail.evaluation.completions.backend_of", lambda *_: pytest.fail("built an engine"))
    assert eval_utility.main(flags)["reused"] is True
    assert (tmp_path / "out" / "samsum.json").read_bytes() == before


def test_another_evaluator_scores_the_same_completions(flags, tmp_path, monkeypatch):
    eval_utility.main(flags)
    first = result(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("guardrail.evaluation.utility.evaluate.generate_rows", lambda *a: pytest.fail("generated again"))
        eval_utility.main([*without(flags, "evaluator"), "--evaluator=exact_match"])
    second = result(tmp_path)
    assert [r["completion"] for r in first["results"]] == [r["completion"] for r in second["results"]]
    assert second["utility"]["metric"] == "exact_match_percent"
    assert "match" in second["results"][0]["scores"] and "rouge_1_f1_percent" not in second["metrics"]


def test_changed_options_are_run_again(flags, tmp_path):
    eval_utility.main(flags)
    assert eval_utility.main([*without(flags, "max_new_tokens"), "--max_new_tokens=3"])["reused"] is False
    assert max(row["n_completion_tokens"] for row in result(tmp_path)["results"]) <= 3


def test_greedy_runs_do_not_depend_on_the_seed_but_samples_do(flags, tmp_path):
    eval_utility.main(flags)
    assert eval_utility.main([*flags, "--seed=5"])["reused"] is True
    sampled = [*flags, "--do_sample=True", "--temperature=5", "--top_p=1", "--samples_per_prompt=2"]
    eval_utility.main(sampled)
    one = result(tmp_path)
    assert len(one["results"]) == 10 and {row["sample"] for row in one["results"]} == {0, 1}
    eval_utility.main([*sampled, "--seed=5"])
    assert [r["completion"] for r in one["results"]] != [r["completion"] for r in result(tmp_path)["results"]]


def test_the_template_asked_for_is_used_whatever_the_model_is_called(flags, tiny_model, tmp_path, tiny_tokenizer):
    from guardrail.data.prompts import encode_prompt

    misleading = tmp_path / "gemma-2-chat"
    misleading.symlink_to(tiny_model)
    flags = [*without(flags, "model_name_or_path"), f"--model_name_or_path={misleading}"]
    eval_utility.main(flags)
    row = result(tmp_path)["results"][0]
    assert row["n_prompt_tokens"] == len(encode_prompt(tiny_tokenizer, "llama2_base", row["messages"]))
    assert row["n_prompt_tokens"] != len(encode_prompt(tiny_tokenizer, "gemma", row["messages"]))


def test_loss_only_and_beside_generation(flags, tmp_path):
    headline = eval_utility.main([*without(flags, "evaluator"), "--evaluator=loss"])
    alone = result(tmp_path)
    assert "completion" not in alone["results"][0] and alone["utility"]["value"] is None
    assert headline["heldout_loss_nats_per_token"] == alone["metrics"]["heldout_loss"]["loss_nats_per_token"]
    eval_utility.main([*flags, "--heldout_loss=True"])
    both = result(tmp_path)
    assert both["utility"]["heldout_loss"]["loss_nats_per_token"] == pytest.approx(
        headline["heldout_loss_nats_per_token"], rel=1e-5
    )
    assert both["utility"]["value"] is not None and both["results"][0]["loss"]["n_tokens"] > 0


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--evaluator=rouge1"], "did you mean 'rouge_1'"),
        (["--dataset=samsun"], "did you mean 'samsum'"),
        (["--prompt_style=lama2_base"], "did you mean 'llama2_base'"),
        (["--prompt_style=gemma"], "does not belong to model family llama2_base"),
        (["--torch_dtype=float23"], "did you mean 'float32'"),
        (["--model_name_or_path=./absent"], "no such model folder"),
        (["--data_source=./absent.json"], "no such file or folder"),
        (["--save_path=out"], "ends with .json"),
        (["--samples_per_prompt=2"], "do_sample"),
        (["--heldout_loss=yes"], "not a boolean"),
        (["--base_url=http://127.0.0.1:1"], "openai"),
        (["--generation_backend=openai", "--heldout_loss=True"], "--evaluator loss"),
        (["--evalutor=rouge_1"], "did you mean '--evaluator'"),
    ],
)
def test_bad_input_is_refused_before_a_model_loads(flags, tmp_path, monkeypatch, extra, message):
    monkeypatch.setattr("guardrail.evaluation.completions.backend_of", lambda *_: pytest.fail("built an engine"))
    names = [flag.split("=")[0].lstrip("-") for flag in extra]
    with pytest.raises(UserError, match=message):
        eval_utility.main([*without(flags, *names), *extra])
    assert not (tmp_path / "out").exists()


def test_another_stages_file_is_not_overwritten(flags, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "samsum.json").write_text('{"run": {"stage": "eval_safety"}}')
    with pytest.raises(UserError, match="a result of eval_safety"):
        eval_utility.main(flags)


def run_script(flags, *launcher, **options):
    command = [*(launcher or [sys.executable]), str(REPOSITORY / "eval_utility.py"), *flags]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, **options)


def test_help_imports_nothing_heavy():
    code = (
        "import sys, runpy\nsys.argv = ['eval_utility.py', '--help']\n"
        "try:\n    runpy.run_path('eval_utility.py', run_name='__main__')\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'rouge_score'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_processes_give_the_rows_of_one(flags, tmp_path, free_port):
    one = run_script(flags)
    assert one.returncode == 0, one.stderr[-2000:]
    headline = json.loads(one.stdout.splitlines()[-1])
    alone = result(tmp_path)
    (tmp_path / "out" / "samsum.json").unlink()
    two = run_script(
        [*flags, "--heldout_loss=True"],
        *(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1"),
        *("--mixed_precision=no", "--dynamo_backend=no", f"--main_process_port={free_port}"),
    )
    assert two.returncode == 0, two.stderr[-2000:]
    assert json.loads(two.stdout.splitlines()[-1])["rouge_1_f1_percent"] == headline["rouge_1_f1_percent"]
    both = result(tmp_path)
    for row in both["results"]:
        row.pop("loss")
    assert both["results"] == alone["results"]


@pytest.mark.slow
def test_killed_and_started_again_equals_uninterrupted(flags, tmp_path, monkeypatch):
    flags = [*flags, "--batch_size_per_device=1"]
    eval_utility.main(flags)
    whole = result(tmp_path)
    (tmp_path / "out" / "samsum.json").unlink()
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING_SCRIPT, *flags],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    deadline = time.time() + 300
    while len(list((tmp_path / "out").rglob("unit-*.jsonl"))) < 2 and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "samsum.json").exists()
    done = len(list((tmp_path / "out").rglob("unit-*.jsonl")))
    assert done == 2
    eval_utility.main(flags)
    assert result(tmp_path)["results"] == whole["results"]


# two batches are done, the third never ends
HANGING_SCRIPT = """
import sys, time, runpy
from guardrail.generation import hf
quick, calls = hf.HFBackend._generate_batch, []
hf.HFBackend._generate_batch = lambda *a: (calls.append(1), len(calls) > 2 and time.sleep(600), quick(*a))[-1]
sys.argv = ['eval_utility.py', *sys.argv[1:]]
runpy.run_path('eval_utility.py', run_name='__main__')
"""
