"""The plan of a study: what runs, what is reused, hours, disk, judge calls. Every shipped study can be planned."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from toys import REPOSITORY

from guardrail.study.config import SUBSETS, Study, load_study
from guardrail.study.dag import make_jobs
from guardrail.study.grid import Grid
from guardrail.study.jobs import job_states
from guardrail.study.leases import Machine
from guardrail.study.plan import make_plan, parameters, plan_stages, plan_text
from guardrail.study.processes import make_processes
from guardrail.study.schedule import OUR_TRAINER, to_run, write_schedule

from .fake_study import FAKE_SECONDS, finish, study, write_data

STUDIES = sorted((REPOSITORY / "configs" / "studies").glob("*.yaml"))


def test_a_new_study_reuses_nothing_and_counts_every_stage(tmp_path):
    write_data(Grid(study(tmp_path), tmp_path), tmp_path)
    grid = Grid(study(tmp_path, name="other"), tmp_path)
    plan = make_plan(grid)
    stages = {row["stage"]: row for row in plan["stages"]}
    # 2 tasks x 3 subsets x 3 seeds; random is shared between tasks: (2 x 2 + 1) x 3 alignments; +1 base model.
    assert (plan["cells"], plan["alignments"]) == (18, 15)
    assert stages["align"]["n_run"] == 15 and stages["fine_tune"]["n_run"] == 18
    assert stages["harmfulness"]["n_run"] == 15 + 18 + 1
    # base: 2 tasks; high and low: their own task (12); random: both (3 x 2); cells: one each (18)
    assert stages["utility"]["n_total"] == 2 + 12 + 6 + 18
    assert plan["stages_to_reuse"] == 0
    assert plan["judge_calls"] == 34 * 330


def test_finished_stages_are_reused_and_their_times_are_used(tmp_path):
    grid = Grid(study(tmp_path), tmp_path)
    write_data(grid, tmp_path)
    finish(grid, skip=("list__list_low_sim_20",))
    stages = {stage.stage: stage for stage in plan_stages(grid)}
    tuning = stages["fine_tune"]
    assert (tuning.n_run, tuning.n_reuse) == (3, 15)
    assert tuning.source == "measured on 15" and tuning.seconds(4) == 3 * FAKE_SECONDS
    assert stages["align"].n_run == 0


def test_assumed_gpu_time_shrinks_with_gpus_and_gpu_hours_do_not(tmp_path):
    grid = Grid(load_study(REPOSITORY / "configs/studies/paper_llama2_7b.yaml"), tmp_path)
    one, four = make_plan(grid, 1), make_plan(grid, 4)
    assert one["gpu_hours"] == pytest.approx(four["gpu_hours"], rel=1e-3)
    assert one["wall_hours_one_job_at_a_time"] > 3 * four["wall_hours_one_job_at_a_time"]
    assert parameters(grid.study) == pytest.approx(6.7e9)


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_shipped_study_is_planned(file, tmp_path):
    plan = make_plan(Grid(load_study(file), tmp_path))
    assert plan["cells"] > 0 and plan["stages_to_run"] > plan["cells"]
    text = plan_text(plan, 4)
    assert "assumptions:" in text and "judge:" in text


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


JUDGES = {"guard": {"model": "org/guard"}, "openai": {"model": "rubric", "base_url": "http://127.0.0.1:9/v1"}}


def dry_run(resolved: Study, tmp_path: Path) -> tuple[Grid, dict[str, int]]:
    """A dry run of the real workflow: the grid, and the number of processes of each rule."""
    grid = Grid(resolved, tmp_path)
    jobs = make_jobs(grid, OUR_TRAINER, missing_ok=True)
    names = to_run(jobs, job_states(grid, jobs))
    schedule = write_schedule(grid, jobs, names, OUR_TRAINER, 1)
    command = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile", "--dry-run", "--quiet", "rules"]
    command += ["--nolock", "--cores", "1", "--config", f"jobs={schedule}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {}
    for line in (done.stdout + done.stderr).splitlines():
        parts = line.split()
        if len(parts) == 2 and parts[1].isdigit():
            found[parts[0]] = int(parts[1])
    assert found.pop("total") == len(make_processes(jobs, names)) + 1
    return grid, found


@pytest.mark.slow
@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_shipped_study_is_planned_by_snakemake(file, tmp_path):
    """Every rule finds its inputs, nothing runs."""
    grid, jobs = dry_run(load_study(file, {"seeds": [1], "sandbox": False}), tmp_path)
    assert jobs["align"] == len(grid.alignments) and jobs["fine_tune"] == len(grid.cells)


@pytest.mark.slow
def test_further_judges_are_jobs_of_every_checkpoint(tmp_path):
    changes = {"seeds": [1], "sandbox": False, "evaluation": {"safety_bench": "sandbox", "judges": JUDGES}}
    grid, jobs = dry_run(load_study(STUDIES[0], changes), tmp_path)
    n_checkpoints = 1 + len(grid.alignments) + len(grid.cells)
    assert jobs["evaluate"] == n_checkpoints
    assert jobs["judge_guard"] == jobs["judge_openai"] == jobs["harmfulness"] == 1


def test_slurm_profile_names_rules_of_the_workflow(tmp_path):
    profile = yaml.safe_load((REPOSITORY / "workflow/profiles/slurm/config.yaml").read_text())
    changes = {"sandbox": False, "evaluation": {"safety_bench": "sandbox", "judges": JUDGES}}
    jobs = make_jobs(Grid(load_study(STUDIES[0], changes), tmp_path), OUR_TRAINER, missing_ok=True)
    processes = make_processes(jobs, list(jobs), Machine(tuple("0123"), 1)).values()
    with_gpus = {process.stage for process in processes if process.gpus != "none"}
    assert set(profile["set-resources"]) == with_gpus
