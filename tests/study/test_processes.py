"""Which jobs share a process: few starts, nothing lost, none blocked by another's failure."""

from __future__ import annotations

from collections import Counter

import pytest
from toys import REPOSITORY

from guardrail.core.files import read_json
from guardrail.study import run_job as running
from guardrail.study.config import load_study
from guardrail.study.dag import make_jobs
from guardrail.study.grid import Grid
from guardrail.study.leases import CPU_MACHINE, Machine
from guardrail.study.processes import CHECKPOINTS_PER_START, make_processes, split
from guardrail.study.records import FAILED, FOLDER, record_file
from guardrail.study.results import collect
from guardrail.study.schedule import OUR_TRAINER, dry_run, to_run

from .toy_jobs import Stopped, ToyStudy

FOUR = Machine(tuple("0123"), 1)
PAIRS = Machine(tuple("0123"), 2)
MOST_STARTS_OF_THE_QUICKSTART = 25
ONE = Machine(("0",), 1)


@pytest.fixture
def toy(tmp_path, monkeypatch) -> ToyStudy:
    return ToyStudy(tmp_path, monkeypatch)


def shipped(name: str, tmp_path) -> Grid:
    return Grid(load_study(REPOSITORY / "configs" / "studies" / f"{name}.yaml"), tmp_path)


def test_the_quickstart_starts_at_most_25_processes(tmp_path):
    grid = shipped("quickstart", tmp_path)
    jobs = make_jobs(grid, OUR_TRAINER, missing_ok=True)
    starts = Counter(process.stage for process in make_processes(jobs, list(jobs)).values())
    assert starts == {"subsets": 1, "align": 5, "fine_tune": 6, "evaluate": 5, "harmfulness": 1}
    assert sum(starts.values()) <= MOST_STARTS_OF_THE_QUICKSTART
    assert len(jobs) == 71, "as many results with a key each as before"
    on_a_gpu = Counter(process.stage for process in make_processes(jobs, list(jobs), ONE).values())
    assert on_a_gpu == {"subsets": 1, "mix": 1, "align": 5, "fine_tune": 6, "evaluate": 12, "harmfulness": 1}


def test_a_checkpoint_is_evaluated_by_one_process(tmp_path):
    jobs = make_jobs(shipped("sandbox_full", tmp_path), OUR_TRAINER, missing_ok=True)
    for machine in (CPU_MACHINE, FOUR):
        processes = [one for one in make_processes(jobs, list(jobs), machine).values() if one.stage == "evaluate"]
        homes: dict[str, set[str]] = {}
        for process in processes:
            for name in process.jobs:
                homes.setdefault(jobs[name].process, set()).add(process.name)
        assert all(len(home) == 1 for home in homes.values())
        most = max(len({jobs[name].process for name in one.jobs}) for one in processes)
        assert most == (1 if machine.gpus else CHECKPOINTS_PER_START)


def test_a_dry_run_counts_processes(toy):
    said = dry_run(toy.grid, 1)
    assert said["n_run"] == len(said["run"]) < said["n_jobs_to_run"] == said["n_jobs"] == len(toy.jobs())
    toy.run()
    assert toy.started == said["run"], "what was said is what was started"
    assert dry_run(toy.grid, 1)["n_run"] == 0


@pytest.mark.parametrize("machine", [CPU_MACHINE, FOUR, PAIRS], ids=["cpu", "four GPUs", "four GPUs in pairs"])
@pytest.mark.parametrize("name", ["quickstart", "sandbox_full", "paper_llama2_7b", "paper_gemma2"])
def test_every_job_is_in_one_process_after_what_it_needs(name, machine, tmp_path):
    jobs = make_jobs(shipped(name, tmp_path), OUR_TRAINER, missing_ok=True)
    processes = make_processes(jobs, list(jobs), machine)
    assert sorted(name for one in processes.values() for name in one.jobs) == sorted(jobs)
    done: set[str] = set()
    for process in processes.values():
        for job in process.jobs:
            assert set(jobs[job].needs) <= done, (process.name, job)
            done.add(job)
        inside = {jobs[job].gpus for job in process.jobs}
        if machine.gpus:
            assert len(inside) == 1 and process.gpus in inside, "nothing holds a GPU that it does not need"


def test_judges_are_loaded_once_per_gpu(toy):
    for machine, n in ((CPU_MACHINE, 1), (FOUR, 4), (PAIRS, 2)):
        jobs = toy.jobs()
        stages = Counter(process.stage for process in make_processes(jobs, list(jobs), machine).values())
        assert stages["harmfulness"] == stages["judge_guard"] == n
        assert stages["judge_openai"] == 1, "a server judges; no GPU here would make it faster"
        few = [name for name in jobs if jobs[name].stage == "harmfulness"][:3]
        assert len(make_processes(jobs, few, machine)) == min(3, n)


def test_shares_are_whole_and_equal():
    for n_names in range(1, 12):
        names = list(map(str, range(n_names)))
        for n in range(1, 6):
            shares = split(names, n)
            assert [name for share in shares for name in share] == names
            assert len(shares) == min(n, n_names) and max(map(len, shares)) - min(map(len, shares)) <= 1


def test_only_what_has_to_run_is_in_a_process(toy):
    toy.run()
    toy.settings["tasks"]["list"]["utility"]["max_new_tokens"] = 12
    jobs = toy.jobs()
    todo = to_run(jobs, toy.states())
    assert {jobs[name].stage for name in todo} == {"utility"}
    on_gpus = make_processes(jobs, todo, FOUR).values()
    assert all(process.stage == "evaluate" and len(process.jobs) == 1 for process in on_gpus)
    here = make_processes(jobs, todo).values()
    assert sorted(name for process in here for name in process.jobs) == sorted(todo)
    assert max(len(process.jobs) for process in here) == CHECKPOINTS_PER_START


@pytest.mark.parametrize("fate", ["fails", "crashes"])
def test_one_part_that_fails_leaves_the_others_of_its_process_alone(toy, fate):
    """Over-refusal comes between the safety answers and the utility tasks, in the same process."""
    broken = "over_refusal.base"
    setattr(toy, "fail_at" if fate == "fails" else "crash_at", broken)
    toy.run()
    jobs, states = toy.jobs(), toy.states()
    not_done = {name for name in jobs if not all(state.done for state in states[name].values())}
    assert not_done == {broken}
    state = states[broken]["answers"]
    assert state.status == "failed" and state.reason == {"fails": "the stage is broken", "crashes": "Killed"}[fate]
    assert collect(toy.results())["base"]["status"] == "failed"
    assert toy.executed.count("utility.base.list") == 1, "what had ended is not repeated"
    toy.fail_at = toy.crash_at = None
    assert toy.run() == [broken]


@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_killed_in_the_middle_what_had_ended_stays(toy, when):
    toy.stop_at = ("utility.base.list", when)
    with pytest.raises(Stopped):
        toy.run()
    toy.stop_at = None
    recorded = record_file(toy.grid.folder, "safety_answers.base", "answers")
    assert recorded.is_file(), "recorded while the process was still at the next part"
    before = recorded.stat().st_mtime_ns
    again = toy.run()
    assert not {"safety_answers.base", "over_refusal.base"} & set(again)
    assert ("utility.base.list" in again) == (when == "before"), "a result that carries its key is taken over"
    assert recorded.stat().st_mtime_ns == before and toy.todo() == []
    toy.shown_numbers_are_of_this_study()


@pytest.mark.parametrize("stage", ["fine_tune", "safety_answers", "mix", "select"])
def test_one_failed_cell_blocks_the_judgements_of_no_other(toy, stage):
    toy.fail_at = next(name for name in toy.jobs() if name.startswith(f"{stage}.") and "base" not in name)
    toy.run()
    jobs, states = toy.jobs(), toy.states()
    done = {name for name in jobs if all(state.done for state in states[name].values())}
    for name in jobs:
        if set(jobs[name].needs) <= done and name != toy.fail_at:
            assert name in done, f"{name} was held up"
    assert any(name.startswith("harmfulness.cells.") for name in done)
    assert collect(toy.results())["n_failed"] >= 1


def test_a_failure_is_visible_at_once(toy, monkeypatch):
    """Not when its process has ended: `failed.json` is there while the next part runs."""
    toy.fail_at = "safety_answers.base"
    seen = {}
    stage = toy.stage

    def look(root, job):
        seen[job.name] = (root / FOLDER / "safety_answers.base" / FAILED).is_file()
        return stage(root, job)

    monkeypatch.setattr(toy, "stage", look)
    toy.run()
    assert seen["utility.base.list"] is True


def test_a_process_that_never_begins_fails_all_its_jobs_with_its_reason(toy, monkeypatch):
    def execute(root, process, jobs, variables, shell, ended):
        log = running.process_log(root, process)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("error: the library is not installed\n")
        return 2

    monkeypatch.setattr(running, "execute", execute)
    toy.run([name for name in toy.jobs() if name.endswith("base")])
    states = toy.states()
    assert states["safety_answers.base"]["answers"].reason == "the library is not installed"
    assert states["over_refusal.base"]["answers"].status == "failed"


def test_a_job_can_be_run_alone(toy):
    toy.run()
    name = "over_refusal.base"
    (toy.grid.folder / toy.jobs()[name].products[0].files[0]).unlink()
    running.run_job(toy.grid.folder, toy.jobs(), name, {})
    assert toy.executed[-1] == name and toy.todo() == []


def test_the_time_of_each_part_is_its_own(toy):
    toy.run()
    for name in ("safety_answers.base", "over_refusal.base"):
        assert read_json(record_file(toy.grid.folder, name, "answers"))["wall_sec"] == 1.0
