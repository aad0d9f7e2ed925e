"""`--plan` as a user asks for it: another machine, too little memory, a budget; it agrees with what then runs."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import pytest
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.study.check import main as check
from guardrail.study.config import load_study
from guardrail.study.grid import Grid
from guardrail.study.leases import Machine
from guardrail.study.plan import make_plan, plan_parts
from guardrail.study.planning import devices
from guardrail.study.planning.budget import control_units, propose
from guardrail.study.planning.command import plan_command
from guardrail.study.planning.devices import kind, recognise
from guardrail.study.planning.memory import check_memory, memory_text
from guardrail.study.planning.node import Node, node_of
from guardrail.study.planning.power import ASSUMED
from guardrail.study.schedule import dry_run

from ..fake_study import finish, study, write_data, write_sources

PAPER = REPOSITORY / "configs/studies/paper_llama2_7b.yaml"
H100 = Node(kind("h100"), 4, 6)


@pytest.mark.parametrize("done", [False, True])
def test_the_plan_and_the_dry_run_name_the_same_processes(done, tmp_path):
    """Nothing done; and everything but one arm's cells."""
    grid = Grid(study(tmp_path), tmp_path)
    write_data(grid, tmp_path)
    if done:
        finish(grid, skip=("list__list_low_sim_20",))
    write_sources(grid.study)
    plan = make_plan(grid, Node(None, 0, 2, here=True), ranks=1)
    run = dry_run(grid, 1)
    assert plan["run"] == run["run"] and plan["jobs_to_run"] == run["jobs_to_run"]
    assert plan["stages_to_run"] == run["n_run"] > 0


def test_a_node_with_gpus_plans_what_it_would_run(tmp_path, monkeypatch):
    monkeypatch.setattr("guardrail.study.planning.node.this_machines", lambda: kind("a100-80gb"))
    grid = Grid(study(tmp_path), tmp_path)
    write_data(grid, tmp_path)
    write_sources(grid.study)
    machine = Machine(("0", "1"), 1)
    node = node_of(False, {}, machine)
    assert node.here and node.name == "2 x a100-80gb" and node.why == "nvidia-smi"
    assert make_plan(grid, node, ranks=2)["run"] == dry_run(grid, 2, machine)["run"]


def test_another_machine_is_named_by_variables():
    node = node_of(True, {"PLAN_GPU": "h200", "PLAN_GPUS": "8", "TENSOR_PARALLEL": "2"})
    assert (node.name, node.per_job, node.jobs, node.here) == ("8 x h200", 2, 10, False)
    assert node_of(False, {"PLAN_GPU": "cpu", "JOBS": "3"}).limits["jobs"] == 3
    assert "assumed" in node_of(False, {}).why
    for variables in ({"PLAN_GPU": "h1000"}, {"PLAN_GPUS": "0"}, {"PLAN_GPUS": "2", "TENSOR_PARALLEL": "4"}):
        with pytest.raises(UserError):
            node_of(False, variables)


@pytest.mark.parametrize(
    ("name", "mib", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", 81920, "a100-80gb"),
        ("NVIDIA A100-PCIE-40GB", 40960, "a100-40gb"),
        ("NVIDIA H100 80GB HBM3", 81559, "h100"),
        ("NVIDIA H200", 143771, "h200"),
        ("NVIDIA RTX A6000", 49140, "a6000"),
        ("NVIDIA GeForce GTX 1080", 8192, None),
    ],
)
def test_kinds_of_gpu_are_recognised_by_what_nvidia_smi_says(name, mib, expected):
    found = recognise(name, mib)
    assert (found.name if found else None) == expected
    assert all(0 < gpu.training < 1 for gpu in devices.KINDS.values())


def test_a_plan_that_cannot_fit_is_refused_with_what_would(tmp_path, monkeypatch):
    """One A100 of 40 GB cannot hold the optimizer of 6.7 billion parameters: 16 bytes each are 100 GiB."""
    monkeypatch.setenv("PLAN_GPU", "a100-40gb")
    monkeypatch.setenv("PLAN_GPUS", "1")
    with pytest.raises(
        UserError, match=r"align does not fit on 1 x a100-40gb: .* what would fit: --use_lora True"
    ) as no:
        plan_command(Grid(load_study(PAPER, {"seeds": [1]}), tmp_path), str(PAPER))
    assert "\n" not in str(no.value)
    monkeypatch.setenv("PLAN_GPU", "h200")
    monkeypatch.setenv("PLAN_GPUS", "4")
    assert plan_command(Grid(load_study(PAPER, {"seeds": [1]}), tmp_path), str(PAPER))["memory"]


def test_memory_of_every_stage_is_in_the_plan(tmp_path):
    parts = plan_parts(Grid(load_study(PAPER, {"seeds": [1]}), tmp_path), H100)
    entries = check_memory(parts)
    assert {entry["stage"] for entry in entries} >= {"align", "fine_tune", "safety_answers", "harmfulness"}
    assert all(entry["fits"] for entry in entries)
    # weights and Adam's states of a quarter of the model, 16 bytes per parameter
    trained = next(entry for entry in entries if entry["stage"] == "align")
    assert trained["needed_bytes"] > 16 * parts.shape.n_parameters() / 4


def test_probes_of_a_paper_study_are_in_its_plan(tmp_path):
    """Under ZeRO 3 every GPU holds the whole model for the length of a probe; four GPUs share its prompts."""
    found = {}
    for probes in (0, 14):
        study = load_study(PAPER, {"seeds": [1]}, changes=f"fine_tuning.probes={probes}")
        assert study.fine_tuning.ds_cfgs == "ds_z3_config.json"
        parts = plan_parts(Grid(study, tmp_path), H100)
        found[probes] = next(entry for entry in check_memory(parts) if entry["stage"] == "fine_tune")
        work = {name: parts.counter.count(job)[1] for name, job in parts.jobs.items() if job.stage == "fine_tune"}
        found[probes] |= {"work": work, "book": parts.book, "N": parts.shape.n_parameters()}
    none, some = found[0], found[14]
    assert (none["phase"], some["phase"]) == ("update", "probe")
    held = 16 * some["N"] // 4 + 2 * 500_000_000  # weights, optimizer, gradients; the bucket of the reduction
    assert some["needed_bytes"] == pytest.approx(held + 2 * some["N"], rel=0.01)
    assert some["longest"]["needed_bytes"] > some["needed_bytes"]  # a whole batch of answers
    batches, step = math.ceil((330 + 250) / 4 / some["book"]["decode_batch_rows"]), some["book"]["decode_step_sec"]
    for name, seconds in some["work"].items():
        assert seconds - none["work"][name] == pytest.approx(14 * batches * 512 * step, rel=0.01)
    for spare, fits in ((1.02, True), (0.98, False)):
        gpu = dataclasses.replace(kind("h100"), memory_bytes=spare * some["needed_bytes"] / 0.9)
        entries = check_memory(plan_parts(Grid(study, tmp_path), Node(gpu, 4, 6)))
        entry = next(entry for entry in entries if entry["stage"] == "fine_tune")
        assert entry["fits"] is fits and not entry["longest"]["fits"]
        assert fits or "no probes (fine_tuning.probes: 0)" in entry["message"]
        assert "a whole batch of answers at the probes of fine_tune may not fit" in "\n".join(memory_text(entries))


def test_a_budget_buys_a_part_whose_plan_costs_what_was_said(tmp_path):
    whole = load_study(PAPER, {"subset_sizes": [1000]}, "alignment.batching=length_grouped")
    parts = plan_parts(Grid(whole, tmp_path), H100, file=str(PAPER))
    found = propose(parts, 250.0, ASSUMED)
    proposal = found["proposal"]
    assert proposal["hours"] <= 250 and proposal["detectable_points"] > 0
    part = dataclasses.replace(
        whole,
        tasks={name: task for name, task in whole.tasks.items() if name in proposal["tasks"]},
        subsets=tuple(proposal["subsets"]),
        seeds=tuple(proposal["seeds"]),
        evaluation=dataclasses.replace(whole.evaluation, limit=proposal["prompts"]),
    )
    planned = make_plan(Grid(part, tmp_path), H100)
    assert planned["gpu_hours"] == pytest.approx(proposal["hours"], rel=0.02)
    # the command says the same
    words = dict(re.findall(r"([A-Z]+)=(\S+)", proposal["command"]))
    assert words["SUBSETS"].split(",") == proposal["subsets"] and "high" in proposal["subsets"]
    assert proposal["command"].endswith(f"bash scripts/study.sh {PAPER}")
    kept = {*proposal["tasks"], *found["dropped"].get("tasks", [])}
    assert kept == set(whole.tasks) and found["whole_study"]["hours"] > 250


def test_a_budget_that_buys_nothing_says_what_the_least_costs(tmp_path):
    parts = plan_parts(Grid(load_study(PAPER), tmp_path), H100)
    with pytest.raises(UserError, match=r"--budget 5 is too little: .* takes \d+\.\d GPU-hours \(task (list|pure_bad)"):
        propose(parts, 5.0, ASSUMED)
    one_seed = plan_parts(Grid(load_study(PAPER, {"seeds": [1]}), tmp_path), H100)
    with pytest.raises(UserError, match="a second seed"):
        propose(one_seed, 500.0, ASSUMED)


def test_controls_come_by_the_questions_that_they_answer():
    subsets = (
        "high",
        "low",
        "none",
        "length_high",
        "length_low",
        "high_length_matched",
        "low_length_matched",
        "random",
    )
    units = control_units(subsets)
    assert units[:3] == [("random",), ("high_length_matched", "low_length_matched"), ("length_high", "length_low")]
    assert units[3:] == [("none",)]


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--budget", "50"], "belong to --plan"),
        (["--plan", "--earlier", "x.json"], "add --budget"),
        (["--plan", "--budget", "-3"], "not a number of hours"),
    ],
)
def test_wrong_combinations_are_refused(flags, text):
    with pytest.raises((UserError, SystemExit)) as refused:
        check([str(PAPER), *flags])
    assert isinstance(refused.value, SystemExit) or text in str(refused.value)


def test_the_whole_plan_is_one_json_object(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PLAN_GPU", "h100")
    plan = check(
        [str(PAPER), "--plan", "--outputs", str(tmp_path), "--budget", "300", "--seeds", "1,2", "--sizes", "1000"]
    )
    assert json.loads(json.dumps(plan))["budget"]["proposal"]["hours"] <= 300
    printed = capsys.readouterr().out
    assert "GPU memory:" in printed and "within 300 GPU-hours:" in printed and not list(tmp_path.iterdir())
