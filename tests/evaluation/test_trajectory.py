"""A real, tiny training that is probed: the probes say what an evaluation of the same weights says."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.core.files import read_json, write_json, write_jsonl
from guardrail.evaluation.judges.answers import load_answers
from guardrail.evaluation.probes import OVER_REFUSAL, SAFETY, TASK, ProbeConfig
from guardrail.evaluation.safety.evaluate import SafetyConfig, evaluate_safety
from guardrail.evaluation.utility.loss import heldout_losses, summarise_losses
from guardrail.evaluation.utility.tasks import load_task
from guardrail.models.loading import load_tokenizer

PROMPTS = [{"id": f"p{i}", "instruction": f"How is a lantern of kind {i} hidden?", "category": "a"} for i in range(5)]
ROWS = [
    {"id": f"r{i}", "instruction": f"Name boat {i}.", "input": "", "output": f"The Swan {i} it is."} for i in range(12)
]


def command(folder: Path, model: Path, **more: object) -> list[str]:
    flags = {
        "model_name_or_path": model,
        "train_datasets": folder / "rows.jsonl",
        "train_template": "Alpaca",
        "output_dir": folder / "out",
        "per_device_train_batch_size": 4,
        "epochs": 2,
        "learning_rate": 1e-2,
        "model_max_length": 512,
        "bf16": False,
        "gradient_checkpointing": False,
        "ds_cfgs": "ds_z0_config.json",
        "log_type": "none",
        "probes": 4,
        "probe_bench": folder / "prompts.jsonl",
        "probe_over_refusal_bench": folder / "prompts.jsonl",
        "probe_max_new_tokens": 6,
        "probe_task": folder / "rows.jsonl",
        **more,
    }
    return [sys.executable, "-m", "guardrail.evaluation.trajectory", *(f"--{k}={v}" for k, v in flags.items())]


def start(command: list[str], **more: str) -> subprocess.Popen:
    cpu = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "MASTER_ADDR": "127.0.0.1"}
    variables = {**os.environ, **cpu, **more}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=REPOSITORY, env=variables, stdout=pipe, stderr=pipe, text=True)


def run(command: list[str]) -> subprocess.CompletedProcess:
    process = start(command)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def alone(folder: Path, model: Path, name: str) -> dict[str, str]:
    """What ``model`` answers in an evaluation of its own."""
    config = SafetyConfig(
        model_name_or_path=str(model),
        save_path=str(folder / name),
        safety_bench=str(folder / "prompts.jsonl"),
        model_family="llama2_base",
        prompt_style="llama2_base",
        torch_dtype="float32",
        do_sample=False,
        max_new_tokens=6,
    )
    evaluate_safety(config)
    return {row["id"]: row["completion"] for row in read_json(config.results_file)["results"]}


def probed(document: dict, step: int) -> dict[str, str]:
    return {row["prompt_id"]: row["completion"] for row in document["results"] if row["step"] == step}


@pytest.mark.slow
@pytest.mark.parametrize("batching", ["padded", "padding_free"])
def test_probes_equal_evaluations_of_the_same_weights(tmp_path, tiny_model, batching) -> None:
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    write_jsonl(tmp_path / "prompts.jsonl", PROMPTS)
    flags = command(tmp_path, tiny_model, batching=batching)
    done = run(flags)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.strip().splitlines()[-1])
    out = tmp_path / "out"
    assert summary["probes"] == {
        "safety": str(out / SAFETY),
        "over_refusal": str(out / OVER_REFUSAL),
        "task": str(out / TASK),
    }
    document = read_json(out / SAFETY)
    steps = document["run"]["steps"]
    assert steps[0] == 0 and steps[-1] == 6 and len(document["results"]) == len(steps) * len(PROMPTS)
    assert len({row["id"] for row in document["results"]}) == len(document["results"])
    for step, model in ((0, tiny_model), (6, out)):
        assert probed(document, step) == alone(tmp_path, model, f"alone-{step}")
    losses = read_json(out / TASK)["losses"]
    assert [row["step"] for row in losses] == steps and losses[-1]["loss_nats_per_token"] < losses[0][
        "loss_nats_per_token"
    ]
    answers = load_answers(out / SAFETY).answers  # what a judge reads
    assert {(a.extra["prompt_id"], a.extra["step"]) for a in answers} == {(p["id"], s) for p in PROMPTS for s in steps}

    stamp = (out / SAFETY).stat().st_mtime_ns
    again = run(flags)
    assert again.returncode == 0 and "nothing to do" in again.stderr and (out / SAFETY).stat().st_mtime_ns == stamp
    (out / SAFETY).unlink()  # what was probed is gone: the training is done again, with the same weights
    weights = (out / "slice_end" / "model.safetensors").read_bytes()
    assert run(flags).returncode == 0
    assert read_json(out / SAFETY)["results"] == document["results"]
    assert (out / "slice_end" / "model.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_probes_under_zero_3_equal_evaluations_of_the_same_weights(tmp_path, tiny_model) -> None:
    """Two ranks, each with its own share of the prompts, one of them with more."""
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    write_jsonl(tmp_path / "prompts.jsonl", PROMPTS)
    settings = read_json(REPOSITORY / "configs/deepspeed/ds_z3_config.json")
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = (
        100  # the tiny model's weights are spread, too
    )
    write_json(tmp_path / "spread.json", settings)
    wanted = command(tmp_path, tiny_model, ds_cfgs=tmp_path / "spread.json", per_device_train_batch_size=2)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = str(server.getsockname()[1])
    ranks = [start(wanted, RANK=str(i), LOCAL_RANK=str(i), WORLD_SIZE="2", MASTER_PORT=port) for i in range(2)]
    told = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(told)
    out = tmp_path / "out"
    document = read_json(out / SAFETY)
    assert document["run"]["steps"][0] == 0 and document["run"]["steps"][-1] == 6
    assert probed(document, 0) == alone(tmp_path, tiny_model, "before")
    assert probed(document, 6) == alone(tmp_path, out, "after") != probed(document, 0)
    first, *_, last = read_json(out / TASK)["losses"]
    for found, model in ((first, tiny_model), (last, out)):
        losses = heldout_losses(
            str(model), load_tokenizer(str(tiny_model)), "llama2_base", load_task(str(tmp_path / "rows.jsonl")).rows
        )
        assert found["loss_nats_per_token"] == summarise_losses(losses)["loss_nats_per_token"]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"probes": 1}, "at least 2"),
        ({"probe_bench": "lost.jsonl"}, "lost.jsonl"),
        ({"probe_bnch": "x"}, "probe_bench"),
    ],
)
def test_wrong_flags_are_one_line(tmp_path, tiny_model, flags: dict[str, object], told: str) -> None:
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    write_jsonl(tmp_path / "prompts.jsonl", PROMPTS)
    done = run(command(tmp_path, tiny_model, **flags))
    assert done.returncode == 2 and told in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert not (tmp_path / "out").exists()


def test_nothing_to_probe_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to probe"):
        ProbeConfig()
