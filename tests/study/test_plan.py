"""The plan of a study: what runs, what is reused, hours, disk, judge calls. Every shipped study can be planned."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.core.files import read_json
from guardrail.study.config import SUBSETS, Study, load_study
from guardrail.study.dag import make_jobs
from guardrail.study.grid import Grid
from guardrail.study.jobs import job_states
from guardrail.study.leases import Machine
from guardrail.study.plan import make_plan, parameters, plan_parts, plan_stages, plan_text
from guardrail.study.planning.devices import kind
from guardrail.study.planning.node import Node
from guardrail.study.planning.times import note_process
from guardrail.study.planning.volumes import padding
from guardrail.study.processes import make_processes, single
from guardrail.study.schedule import OUR_TRAINER, to_run, write_schedule

from .fake_study import FAKE_SECONDS, finish, study, write_data

CPU = Node(None, 0, 2, here=True)
STUDIES = sorted((REPOSITORY / "configs" / "studies").glob("*.yaml"))


PAPER = REPOSITORY / "configs/studies/paper_llama2_7b.yaml"
SURVIVAL = REPOSITORY / "configs/studies/sandbox_survival.yaml"
GEMMA = REPOSITORY / "configs/studies/paper_gemma2.yaml"
QUICKSTART = REPOSITORY / "configs/studies/quickstart.yaml"


def on(kind_of_gpu: str, n: int) -> Node:
    return Node(kind(kind_of_gpu), n, n + 2)


def test_a_new_study_reuses_nothing_and_counts_every_stage(tmp_path):
    write_data(Grid(study(tmp_path), tmp_path), tmp_path)
    grid = Grid(study(tmp_path, name="other"), tmp_path)
    plan = make_plan(grid, CPU)
    stages = {row["stage"]: row for row in plan["stages"]}
    # 2 tasks x 3 subsets x 3 seeds; random is shared between tasks: (2 x 2 + 1) x 3 alignments; +1 base model.
    assert (plan["cells"], plan["alignments"]) == (18, 15)
    assert stages["align"]["n_run"] == 15 and stages["fine_tune"]["n_run"] == 18
    assert sum(name.startswith("safety_answers.") for name in plan["jobs_to_run"]) == 15 + 18 + 1
    assert stages["evaluate"]["n_run"] < 15 + 18 + 1  # without GPUs checkpoints share processes
    # base: 2 tasks; high and low: their own task (12); random: both (3 x 2); cells: one each (18)
    assert sum(name.startswith("utility.") for name in plan["jobs_to_run"]) == 2 + 12 + 6 + 18
    assert plan["stages_to_reuse"] == 0
    assert plan["judge_calls"] == 34 * 300  # the bench is not there yet: as long as most


def test_finished_processes_are_reused_and_their_times_are_used(tmp_path):
    grid = Grid(study(tmp_path), tmp_path)
    write_data(grid, tmp_path)
    finish(grid, skip=("list__list_low_sim_20",))
    jobs = make_jobs(grid, OUR_TRAINER)
    for name in [name for name, job in jobs.items() if job.stage == "fine_tune"][:15]:
        note_process(grid.folder, single(jobs[name]), {"wall_sec": FAKE_SECONDS, "cpu_sec": 2 * FAKE_SECONDS})
    with open(grid.folder / "processes.jsonl", "a") as handle:
        handle.write('{"process": "fine_tune.half-wri')  # killed meanwhile
    stages = {stage.stage: stage for stage in plan_stages(grid, CPU)}
    tuning = stages["fine_tune"]
    assert (tuning.n_run, tuning.n_reuse) == (3, 15)
    assert tuning.source == "measured on 15" and tuning.seconds == pytest.approx(3 * FAKE_SECONDS)
    assert tuning.cpu_sec == pytest.approx(6 * FAKE_SECONDS)
    assert stages["align"].n_run == 0 and stages["evaluate"].source == "assumed"


@pytest.mark.parametrize(("batching", "pad"), [("padded", padding(8, 0.6)), ("padding_free", 1.0)])
def test_gpu_hours_follow_from_operations_by_hand(tmp_path, batching, pad):
    """Rows x tokens with pads x 8 N over what a GPU makes of its peak, for the alignments without safety rows;
    attention and the saved logits of short answers are some per cent."""
    parts = plan_parts(Grid(load_study(PAPER, changes=f"alignment.batching={batching}"), tmp_path), on("h100", 4))
    name = next(name for name in parts.costs if name.startswith("align.none.seed42"))
    cost = parts.costs[name]
    N = 6738415616
    assert parameters(parts.grid.study) == parts.shape.n_parameters() == N
    tokens = 1375 * pad
    by_hand = 207_865 * tokens * 8 * N / (4 * 989e12 * 0.37)
    assert cost.work_sec == pytest.approx(by_hand, rel=0.06)
    assert "8N" in cost.basis and f"{tokens:,.0f} tokens" in cost.basis
    assert parts.gpu_seconds(name) == 4 * cost.seconds


def test_more_gpus_are_faster_and_cost_about_the_same(tmp_path):
    grid = Grid(load_study(PAPER, {"seeds": [1], "subsets": ["high", "low"]}), tmp_path)
    two, eight = make_plan(grid, on("a100-80gb", 2)), make_plan(grid, on("a100-80gb", 8))
    assert two["wall_sec"] > 3.5 * eight["wall_sec"]
    assert two["gpu_hours"] == pytest.approx(eight["gpu_hours"], rel=0.05)
    assert eight["gpu_hours"] <= eight["gpu_hours_booked"] and eight["critical_path_sec"] < eight["wall_sec"]


def test_probes_cost_what_they_answer_and_their_judging(tmp_path):
    """Twice the probes, twice their answers; a rule that counts refusals costs nothing, and is no server."""
    stages = {}
    for n_probes in (0, 7, 14):
        study = load_study(SURVIVAL, {}, changes=f"fine_tuning.probes={n_probes},primary.outcome=change")
        plan = make_plan(Grid(study, tmp_path), CPU)
        stages[n_probes] = {stage["stage"]: stage["cpu_sec"] for stage in plan["stages"]}
    for stage in ("fine_tune", "harmfulness"):
        none, seven, fourteen = (stages[n][stage] for n in (0, 7, 14))
        assert fourteen - seven == pytest.approx(seven - none, rel=0.05) and seven > none, stage
    assert stages[14]["harmfulness"] < stages[14]["fine_tune"]


def test_designs_cost_what_they_train(tmp_path):
    """Replayed instructions instead of all of them; adapters need no gradients of the weights, and less disk."""
    small = {"seeds": [1], "subsets": ["high", "low"], "subset_sizes": [1000], "keep": "all"}
    plans = {
        design: make_plan(Grid(load_study(PAPER, {**small, "designs": [design]}), tmp_path), on("h100", 4))
        for design in ("mixed", "continued", "adapter+lora")
    }
    hours = {design: {row["stage"]: row["gpu_hours"] for row in plan["stages"]} for design, plan in plans.items()}
    assert hours["mixed"]["align"] > 20 * hours["continued"]["align"] > 20 * hours["adapter+lora"]["align"]
    assert hours["continued"]["fine_tune"] > 1.1 * hours["adapter+lora"]["fine_tune"]
    assert plans["adapter+lora"]["checkpoint_bytes"] < plans["continued"]["checkpoint_bytes"] / 100


def test_what_is_not_kept_is_not_on_disk_in_the_end(tmp_path):
    peaks = {}
    for keep in ("all", "aligned", "none"):
        plan = make_plan(Grid(load_study(PAPER, {"seeds": [1], "keep": keep}), tmp_path), on("h100", 4))
        peaks[keep] = (plan["peak_disk_bytes"], plan["checkpoint_bytes"])
    assert peaks["none"][1] == 0 < peaks["aligned"][1] < peaks["all"][1]
    assert peaks["none"][0] <= peaks["aligned"][0] <= peaks["all"][0]


def test_every_assumption_stands_beside_what_rests_on_it(tmp_path):
    plan = make_plan(Grid(load_study(PAPER), tmp_path), on("h100", 4))
    stages = {row["stage"] for row in plan["stages"]}
    text = plan_text(plan)
    for name, row in plan["assumptions"].items():
        assert row["used_for"] and row["source"] and f"  {name} " in text
    assert plan["assumptions"]["training_utilisation"]["used_for"] == ["align", "fine_tune"]
    assert "training_utilisation" in plan["assumptions"] and "evaluate" in stages
    cheaper = make_plan(Grid(load_study(PAPER), tmp_path), on("h100", 4), assume="training_utilisation=0.74")
    assert cheaper["gpu_hours"] < 0.6 * plan["gpu_hours"]
    with pytest.raises(UserError, match="did you mean 'training_utilisation'"):
        make_plan(Grid(load_study(PAPER), tmp_path), on("h100", 4), assume="training_utilization=0.5")


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_shipped_study_is_planned(file, tmp_path):
    plan = make_plan(Grid(load_study(file), tmp_path))
    assert plan["cells"] > 0 and plan["stages_to_run"] > plan["cells"]
    text = plan_text(plan)
    assert "assumptions, " in text and "judge:" in text


def test_shipped_full_study_has_all_controls_and_seeds():
    full = load_study(REPOSITORY / "configs/studies/sandbox_full.yaml")
    assert len(full.seeds) >= 5 and len(full.tasks) == 4
    left_out = set(SUBSETS) - set(full.subsets)
    assert left_out == {"longest", "shortest"}


@pytest.mark.parametrize("name", ["paper_llama2_7b", "paper_gemma2"])
def test_paper_studies_have_the_published_hyper_parameters(name):
    paper = load_study(REPOSITORY / f"configs/studies/{name}.yaml")
    assert set(paper.subset_sizes) == {1000, 5000} and {"high", "low", "random"} <= set(paper.subsets)
    alignment, tuning = paper.alignment, paper.fine_tuning
    assert (alignment.epochs, alignment.learning_rate, alignment.per_device_train_batch_size) == (1, 2e-5, 8)
    assert (tuning.epochs, tuning.learning_rate, tuning.per_device_train_batch_size) == (5, 2e-5, 5)
    assert tuning.gradient_accumulation_steps == 1 and tuning.bf16 and tuning.ds_cfgs == "ds_z3_config.json"


FOUR_GPUS = Machine(tuple("0123"))
JUDGES = {"guard": {"model": "org/guard"}, "openai": {"model": "rubric", "base_url": "http://127.0.0.1:9/v1"}}


def dry_run(resolved: Study, tmp_path: Path) -> tuple[Grid, dict[str, int]]:
    """A dry run of the real workflow for a machine of four GPUs: the grid, and the number of processes of each rule."""
    grid = Grid(resolved, tmp_path)
    jobs = make_jobs(grid, OUR_TRAINER, missing_ok=True)
    names = to_run(jobs, job_states(grid, jobs))
    schedule = write_schedule(grid, jobs, names, OUR_TRAINER, 4, FOUR_GPUS)
    command = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile", "--dry-run", "--nolock"]
    command += ["--cores", "1", "--config", f"jobs={schedule}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found, rule, asked = {}, "", {}
    for line in (done.stdout + done.stderr).splitlines():
        parts = line.split()
        if len(parts) == 2 and parts[1].isdigit() and not parts[0].endswith(":"):
            found[parts[0]] = int(parts[1])
        if parts[:1] == ["rule"]:
            rule = parts[1].rstrip(":")
        if parts[:1] == ["resources:"] and rule != "all":
            asked.setdefault(rule, set()).update(re.findall(r"\bgres=([^,\s]*)", line))
    processes = make_processes(jobs, names, FOUR_GPUS).values()
    assert found.pop("total") == len(processes) + 1
    # what a cluster is asked for: every stage's GPUs (scores by a model need one, scores by length or chance none)
    gres, expected = {"all": "gpu:4", "one": "gpu:1", "none": ""}, {}
    for process in processes:
        expected.setdefault(process.stage, set()).add(gres[process.gpus])
    assert asked == expected
    return grid, found


@pytest.mark.slow
@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_shipped_study_is_planned_by_snakemake(file, tmp_path):
    """Every rule finds its inputs, nothing runs."""
    grid, jobs = dry_run(load_study(file, {"seeds": [1], "sandbox": False}), tmp_path)
    assert jobs["align"] == len(grid.alignments) and jobs["fine_tune"] == len(grid.cells)


@pytest.mark.slow
def test_the_scheduler_wakes_when_a_process_has_ended_and_not_more_often(tmp_path):
    """With Snakemake's limit of starts per second it wakes the more often the more have ended."""
    grid = Grid(load_study(QUICKSTART, {"sandbox": False}), tmp_path)
    jobs = make_jobs(grid, OUR_TRAINER, missing_ok=True)
    schedule = write_schedule(grid, jobs, list(jobs), OUR_TRAINER, 1, Machine(()))
    n_processes = len(read_json(schedule)["processes"])
    quick = tmp_path / "bin" / "python"  # takes the place of every process
    quick.parent.mkdir()
    quick.write_text("#!/bin/sh\nsleep 0.4\n")
    quick.chmod(0o755)
    command = [sys.executable, "-m", "snakemake", "--snakefile", REPOSITORY / "workflow/Snakefile", "--cores", "2"]
    command += ["--resources", "gpus=0", "cpu_jobs=2", "--config", f"jobs={schedule}", "--nolock", "--verbose"]
    environment = {**os.environ, "PATH": f"{quick.parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    n_woken = len(re.findall("^Ready jobs", done.stdout + done.stderr, re.MULTILINE))
    assert n_processes >= 15 and n_processes / 2 <= n_woken <= n_processes + 2


@pytest.mark.slow
def test_further_judges_are_jobs_of_every_checkpoint(tmp_path):
    changes = {"seeds": [1], "sandbox": False, "evaluation": {"safety_bench": "sandbox", "judges": JUDGES}}
    grid, jobs = dry_run(load_study(GEMMA, changes), tmp_path)
    n_checkpoints = 1 + len(grid.alignments) + len(grid.cells)
    assert jobs["evaluate"] == n_checkpoints
    assert jobs["judge_guard"] == jobs["harmfulness"] == 4 and jobs["judge_openai"] == 1


def test_slurm_profile_names_rules_of_the_workflow(tmp_path):
    profile = yaml.safe_load((REPOSITORY / "workflow/profiles/slurm/config.yaml").read_text())
    changes = {"sandbox": False, "evaluation": {"safety_bench": "sandbox", "judges": JUDGES}}
    jobs = make_jobs(Grid(load_study(GEMMA, changes), tmp_path), OUR_TRAINER, missing_ok=True)
    processes = make_processes(jobs, list(jobs), Machine(tuple("0123"), 1)).values()
    with_gpus = {process.stage for process in processes if process.gpus != "none"}
    assert {"align", "fine_tune"} <= set(profile["set-resources"]) <= with_gpus
    # without accounting the plugin needs squeue, and no account; GPUs come from the workflow
    assert profile["slurm-status-command"] == "squeue"
    assert not {"slurm_account", "slurm_partition", "gres", "tasks"} & set(profile["default-resources"])
