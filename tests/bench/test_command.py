"""`python -m guardrail.bench` in this process: what it prints and writes, and what it refuses."""

from __future__ import annotations

import importlib
import json

import pytest
import torch
from toys import REPOSITORY

from guardrail import command
from guardrail.bench import __main__ as bench
from guardrail.core.errors import UserError


def arguments(**flags: object) -> list[str]:
    return [part for name, value in flags.items() for part in (f"--{name}", str(value))]


def test_the_table_has_every_way_to_train(capsys):
    result = bench.main(arguments(shape="llama2-7b", stage="sft", n_gpus=4, gpu_gib=80, run="never"))
    rows = {(r["zero_stage"], r["gradient_checkpointing"], r["use_lora"]): r for r in result["grid"]}
    assert len(rows) == 16
    assert rows[3, True, False]["peak_bytes"] == result["estimate"]["peak_bytes"]
    assert rows[3, True, False]["weights_bytes"] * 4 == rows[0, True, False]["weights_bytes"]
    assert result["fit"]["fits"] and "6,738,415,616 parameters" in capsys.readouterr().err


def test_what_does_not_fit_comes_with_what_would(capsys):
    flags = arguments(shape="llama2-13b", stage="sft", zero_stage=2, gpu_gib=40, run="never")
    result = bench.main(flags)
    assert not result["fit"]["fits"] and result["fit"]["suggestions"]
    assert "what would fit" in capsys.readouterr().err


def test_without_a_gpu_a_large_shape_is_built_on_the_meta_device(monkeypatch):
    monkeypatch.setattr("guardrail.models.loading.pick_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(bench, "free_bytes", lambda: 8 * 2**30)
    result = bench.main(arguments(shape="llama2-7b", stage="moderate"))
    assert result["n_parameters_built"] == result["estimate"]["n_parameters"] == 6_607_400_960  # 14 labels, no head
    assert "no GPU here" in result["not_run"]
    with pytest.raises(UserError, match="--run always, but it needs"):
        bench.main(arguments(shape="llama2-7b", stage="extract", run="always"))


def test_a_folder_s_shape_runs_here(tiny_model, tmp_path):
    file = tmp_path / "out.json"
    flags = {"shape": tiny_model, "stage": "extract", "dtype": "float32", "batch_size": 2, "row_tokens": 16, "steps": 1}
    result = bench.main(arguments(**flags, output=file))
    assert result["measured"]["tokens_per_sec"] > 0
    assert json.loads(file.read_text())["measured"] == result["measured"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"shape": "llama2-7", "stage": "sft"}, "did you mean 'llama2-7b'"),
        ({"shape": "llama2-7b", "stage": "train"}, "unknown value for --stage"),
        ({"shape": "llama2-7b", "stage": "sft", "zero_stage": 4}, "unknown ZeRO stage"),
        ({"shape": "sandbox", "stage": "sft", "n_gpus": 2, "run": "always"}, "deepspeed --num_gpus 2"),
    ],
)
def test_a_wrong_command_line_is_refused(flags, words):
    with pytest.raises(UserError, match=words):
        bench.main(arguments(**flags))


def test_the_guardrail_command_has_it(monkeypatch, capsys):
    flags = ["--shape", "sandbox", "--stage", "extract", "--run", "never"]
    monkeypatch.setattr("sys.argv", ["guardrail", "bench", *flags])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["estimate"]["n_parameters"] == 1_053_824


@pytest.fixture
def gpu_goals(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return importlib.import_module("gpu_goals")


@pytest.mark.slow
def test_the_goals_of_a_gpu_run_on_a_cpu_too(gpu_goals):
    """The same code with a CPU's sizes, one stage of it; tests/bench/test_gpu.py starts a training the same way."""
    result = gpu_goals.main(["--small", "True", "--only", "moderate"])
    assert result["goals"]["moderate_times_one_row_at_a_time"]["value"] > 0
    assert 0 < result["measured"]["moderate"]["share_of_matrix_product_rate_fraction"] < 1


def test_a_goal_is_reached_or_not(gpu_goals):
    found = {"extract": {"times_one_row_at_a_time": 11.0, "share_of_matrix_product_rate_fraction": 0.64}}
    verdicts = {name: goal["reached"] for name, goal in gpu_goals.verdicts(found).items()}
    assert verdicts == {
        "extract_share_of_matrix_product_rate_fraction": False,
        "extract_times_one_row_at_a_time": True,
    }
    with pytest.raises(UserError, match="leave it out of --only"):
        gpu_goals.main(["--small", "True", "--only", "generate"])
    with pytest.raises(UserError, match="did you mean 'sft'"):
        gpu_goals.main(["--only", "stf"])
