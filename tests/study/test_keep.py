"""Weights stay as long as they are needed: nothing is made twice, everything can be made again, the peak is kept."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from guardrail.core.files import read_json, write_json
from guardrail.study import disk
from guardrail.study import run_job as running
from guardrail.study.disk import next_batch, peak, room
from guardrail.study.jobs import Job, job_states
from guardrail.study.keep import Weights, clear_training_state, is_kept, readers, remove_used, trains
from guardrail.study.processes import make_processes
from guardrail.study.records import product_state, record_file
from guardrail.study.results import collect
from guardrail.study.schedule import show, to_run

from .toy_jobs import Stopped, ToyStudy

WEIGHTS = "model.safetensors"
SIZE = 100


class KeepStudy(ToyStudy):
    """A toy study whose trainings leave weights, and whose evaluations read them; counts what lies on the disk."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
        super().__init__(folder, monkeypatch)
        self.settings |= {"seeds": [1], "subsets": ["random"], "keep": "none", "checkpoints_at_once": 2, **changes}
        self.settings["evaluation"].pop("judges")
        self.most_bytes = 0
        monkeypatch.setattr(running, "room", disk.room)

    def weights(self, name: str) -> Path:
        return self.grid.folder / self.jobs()[name].products[0].files[0] / WEIGHTS

    def present(self) -> set[str]:
        return {name for name, job in self.jobs().items() if trains(job) and self.weights(name).is_file()}

    def stage(self, root: Path, job: Job) -> int:
        for need in job.needs:
            if need in self.known and trains(self.known[need]):
                assert (root / self.known[need].products[0].files[0] / WEIGHTS).is_file(), f"{job.name} reads {need}"
        if trains(job):
            (root / job.products[0].files[2]).unlink(missing_ok=True)  # run.json, as the trainer does
            folder = root / job.products[0].files[0]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / WEIGHTS).write_bytes(job.products[0].key.value.ljust(SIZE).encode())
            (folder.parent / "checkpoint" / "global_step3").mkdir(parents=True, exist_ok=True)
            (folder.parent / "checkpoint" / "global_step3" / "optim_states.pt").write_bytes(b"0" * 1000)
        self.most_bytes = max(self.most_bytes, sum(f.stat().st_size for f in root.rglob(WEIGHTS)))
        return super().stage(root, job)

    def run(self, names=None, machine=None) -> list[str]:
        """As scripts/study.sh: batch after batch, until nothing is left or nothing changes."""
        self.executed.clear()
        self.started.clear()
        before = None
        while True:
            self.known = jobs = self.jobs()
            keep = self.grid.study.keep
            for job in filter(trains, jobs.values()):
                clear_training_state(self.grid.folder, job)
            remove_used(self.grid.folder, jobs, list(jobs), keep)
            states = job_states(self.grid, jobs)
            batch = next_batch(self.grid.study, jobs, states, to_run(jobs, states))
            if not batch or batch == before:
                return list(self.executed)
            before = batch
            for process in make_processes(jobs, batch).values():
                try:
                    running.run_process(self.grid.folder, jobs, process, {}, weights=Weights(keep))
                except running.UserError:
                    continue


@pytest.fixture
def toy(tmp_path, monkeypatch) -> KeepStudy:
    return KeepStudy(tmp_path, monkeypatch)


def stays(name: str, keep: str) -> bool:
    stage = name.split(".")[0]
    if keep == "adapters":
        return "adapter" in name and (stage == "align" or name.split(".")[1].endswith("_lora"))
    return {"all": True, "aligned": stage == "align", "none": False}[keep]


@pytest.mark.parametrize("keep", ["all", "aligned", "adapters", "none"])
def test_a_finished_study_keeps_what_it_says_and_does_nothing_again(tmp_path, monkeypatch, keep):
    toy = KeepStudy(
        tmp_path,
        monkeypatch,
        keep=keep,
        designs=["mixed", "adapter+lora", "mixed+lora"],
        equivalence={"harmfulness_points": 10, "utility_points": 3},
    )
    jobs = toy.jobs()
    sizes = {name: SIZE for name, job in jobs.items() if trains(job)}
    plan = peak(toy.grid.study, jobs, toy.states(), toy.todo(), sizes)
    executed = toy.run()
    assert len(executed) == len(set(executed)) == len(jobs), "every job once"
    assert toy.present() == {name for name in sizes if stays(name, keep)}
    assert toy.todo() == [] and toy.run() == []
    assert collect(toy.results())["n_failed"] == 0
    toy.shown_numbers_are_of_this_study()
    assert not list(toy.grid.folder.rglob("optim_states.pt")), "no optimizer state is left"
    assert toy.most_bytes <= plan["peak_bytes"], "the peak is kept"
    assert plan["end_bytes"] == SIZE * len(toy.present())
    if keep != "all":
        assert plan["most_checkpoints"] <= toy.grid.study.checkpoints_at_once
        assert plan["peak_bytes"] < SIZE * len(sizes)


@pytest.mark.parametrize("keep", ["aligned", "none"])
def test_a_changed_evaluation_makes_again_exactly_the_weights_that_it_needs(tmp_path, monkeypatch, keep):
    toy = KeepStudy(tmp_path, monkeypatch, keep=keep, subsets=["high", "random"])
    toy.run()
    before = {name: read_json(record_file(toy.grid.folder, name, "checkpoint")) for name in readers(toy.jobs())}
    toy.settings["tasks"]["list"]["utility"]["max_new_tokens"] = 12
    changed = {name for name in toy.jobs() if name.startswith("utility.") and name.endswith(".list")}
    needed = {need for name in changed for need in toy.jobs()[name].needs if not stays(need, keep)}
    below = {need for name in needed for need in toy.jobs()[name].needs if trains(toy.jobs()[need])}
    wanted = changed | needed | {name for name in below if not stays(name, keep)}
    assert needed and wanted - changed != set(before), "not everything"
    assert set(toy.todo()) == wanted
    executed = toy.run()
    assert set(executed) == wanted and len(executed) == len(wanted)
    assert toy.todo() == [] and toy.run() == []
    assert toy.present() == {name for name in before if stays(name, keep)}
    for name, record in before.items():
        again = read_json(record_file(toy.grid.folder, name, "checkpoint"))
        weights = [file for file in record["files"] if file.endswith(WEIGHTS)]
        assert [again["files"][file]["hash"] for file in weights] == [record["files"][file]["hash"] for file in weights]
    toy.shown_numbers_are_of_this_study()


@pytest.mark.parametrize("moment", ["before the record", "before the file", "after the file"])
def test_killed_while_weights_are_removed_nothing_is_lost_or_repeated(toy, monkeypatch, moment):
    from guardrail.study import records

    write, unlink, hits = records.write_json, Path.unlink, []

    def write_and_die(path, value, **more):
        if moment == "before the record" and "removed" in value and not hits:
            hits.append(path)
            raise Stopped
        return write(path, value, **more)

    def unlink_and_die(path, missing_ok=False):
        if moment != "before the record" and path.name == WEIGHTS and not hits:
            hits.append(path)
            if moment == "after the file":
                unlink(path, missing_ok=missing_ok)
            raise Stopped
        return unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(records, "write_json", write_and_die)
    monkeypatch.setattr(Path, "unlink", unlink_and_die)
    with pytest.raises(Stopped):
        toy.run()
    first = list(toy.executed)
    second = toy.run()
    assert hits and sorted(first + second) == sorted(toy.jobs()), "every job once"
    assert toy.present() == set() and toy.todo() == [] and collect(toy.results())["n_failed"] == 0


@pytest.mark.parametrize("where", ["before", "between", "after"])
@pytest.mark.parametrize("stage", ["align", "fine_tune", "utility"])
def test_a_killed_study_goes_on_and_ends_like_any_other(toy, stage, where):
    target = next(name for name in toy.jobs() if name.startswith(stage) and ".base" not in name)
    toy.stop_at = (target, where)
    with pytest.raises(Stopped):
        toy.run()
    first, toy.stop_at = list(toy.executed), None
    second = toy.run()
    assert set(first + second) == set(toy.jobs())
    assert set(first) & set(second) <= {target}
    assert toy.present() == set() and toy.todo() == [] and collect(toy.results())["n_failed"] == 0


def test_killed_while_weights_are_made_again_the_rest_stays_done(toy):
    toy.run()
    toy.settings["tasks"]["list"]["utility"]["max_new_tokens"] = 12
    target = next(name for name in toy.todo() if name.startswith("fine_tune"))
    toy.stop_at = (target, "between")
    with pytest.raises(Stopped):
        toy.run()
    toy.stop_at = None
    assert not [name for name in toy.todo() if "pure_bad__" in name], "nobody asked for these"
    toy.run()
    assert toy.todo() == [] and toy.present() == set() and collect(toy.results())["n_failed"] == 0


def test_what_somebody_else_put_there_stays(toy):
    name = next(name for name in toy.jobs() if name.startswith("fine_tune"))
    stage = toy.stage

    def leaves_more(root, job):
        code = stage(root, job)
        if job.name == f"utility.{'.'.join(Path(toy.jobs()[name].products[0].files[0]).parts[:3])}.list":
            folder = root / toy.jobs()[name].products[0].files[0]
            (folder / "mine.safetensors").write_bytes(b"mine")
            (folder / "notes.txt").write_text("mine")
        return code

    toy.stage = leaves_more
    toy.run()
    folder = toy.weights(name).parent
    assert (folder / "notes.txt").is_file() and (folder / "mine.safetensors").read_bytes() == b"mine"
    assert not (folder / WEIGHTS).exists() and toy.todo() == []


def test_weights_that_were_replaced_are_not_removed(toy):
    toy.settings["keep"] = "all"
    toy.run()
    name = next(name for name in toy.jobs() if name.startswith("fine_tune"))
    toy.weights(name).write_bytes(b"somebody else's")
    toy.settings["keep"] = "none"
    assert toy.todo() == [name], "it is not what was recorded"
    jobs = toy.jobs()
    remove_used(toy.grid.folder, jobs, list(jobs), "none")
    assert toy.weights(name).read_bytes() == b"somebody else's"


def test_keep_can_be_changed_afterwards_and_changes_no_key(toy):
    toy.settings["keep"] = "all"
    toy.run()
    shown = toy.results().key()
    toy.settings["keep"] = "none"
    assert toy.run() == [] and toy.present() == set()
    assert toy.results().key() == shown, "tables and report are up to date"
    toy.settings["keep"] = "all"
    assert toy.run() == []


def test_a_reader_that_failed_keeps_its_weights(toy):
    toy.fail_at = next(name for name in toy.jobs() if name.startswith("utility.cells"))
    toy.run()
    (kept,) = toy.present()
    assert kept in toy.known[toy.fail_at].needs
    toy.fail_at = None
    assert [name for name in toy.run() if trains(toy.known[name])] == [], "made once"
    assert toy.present() == set()


def test_jobs_of_later_batches_are_not_said_to_be_done(toy, capsys):
    jobs, states = toy.jobs(), toy.states()
    names = to_run(jobs, states)
    batch = next_batch(toy.grid.study, jobs, states, names)
    assert 0 < len(batch) < len(names) == len(jobs)
    show(jobs, states, batch, {}, None, len(names) - len(batch))
    assert f"0 of {len(jobs)} jobs are done, {len(batch)} to run in" in capsys.readouterr().err


def test_removed_weights_are_never_read(toy):
    toy.run()
    jobs = toy.jobs()
    name = next(name for name in jobs if name.startswith("utility.cells"))
    (toy.grid.folder / jobs[name].products[0].files[0]).unlink()
    with pytest.raises(running.UserError, match="were removed after use; start the study again"):
        running.run_job(toy.grid.folder, jobs, name, {})


def test_adapters_of_full_weights_go_with_them(tmp_path, monkeypatch):
    toy = KeepStudy(tmp_path, monkeypatch, designs=["mixed+lora"])
    jobs = toy.jobs()
    cell = next(name for name in jobs if name.startswith("fine_tune"))
    assert not is_kept(jobs, cell, "adapters")
    evaluation = next(job for job in jobs.values() if cell in job.needs)
    assert any(need.startswith("align.") for need in evaluation.needs), "both are read"


# --- room on the disk


def test_a_training_that_does_not_fit_stops_before_with_the_numbers(toy, monkeypatch):
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 3 << 30)
    jobs = toy.known = toy.jobs()
    for name in [*jobs["align.random_sim_2.seed1"].needs]:
        running.run_job(toy.grid.folder, jobs, name, {})
    weights = Weights("none", {"align.random_sim_2.seed1": 5 << 30})
    with pytest.raises(running.UserError, match=r"stops before the disk is full: 5\.00 GiB .*3\.00 GiB are free"):
        running.run_job(toy.grid.folder, jobs, "align.random_sim_2.seed1", {}, weights=weights)
    state = product_state(toy.grid.folder, "align.random_sim_2.seed1", jobs["align.random_sim_2.seed1"].products[0])
    assert state.status == "failed" and "5.00 GiB" in state.reason and "\n" not in state.reason
    assert "align.random_sim_2.seed1" not in toy.executed
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 6 << 30)
    running.run_job(toy.grid.folder, jobs, "align.random_sim_2.seed1", {}, weights=weights)


def test_it_waits_while_another_job_may_free_some(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "POLL_SEC", 0.01)
    free = [100]
    monkeypatch.setattr(disk, "free_bytes", lambda folder: free[0])
    order = []

    def waiter():
        with room(tmp_path, "second", 80, tmp_path / "out2"):
            order.append("second")

    with room(tmp_path, "first", 60, tmp_path / "out1"):
        thread = threading.Thread(target=waiter)
        thread.start()
        time.sleep(0.1)
        assert order == [], "60 are still to be written"
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]


def test_what_runs_side_by_side_counts_until_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 100)
    (tmp_path / "out1" / "slice_end").mkdir(parents=True)
    with room(tmp_path, "first", 60, tmp_path / "out1"):
        (tmp_path / "out1" / "slice_end" / "half").write_bytes(b"0" * 50)
        with room(tmp_path, "second", 90, tmp_path / "out2"):
            pass


def test_a_killed_job_holds_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 100)
    write_json(tmp_path / disk.FOLDER / "dead.json", {"bytes": 90, "output": None})
    with room(tmp_path, "next", 50, None):
        pass


def test_a_small_disk_is_never_filled(tmp_path):
    """A real one of 1 MiB, where this may be mounted."""
    small = tmp_path / "disk"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs here (uid {os.getuid()}): {mounted.stderr.decode()[:80]}")
    try:
        with room(small, "fits", 600 << 10, small / "out"):
            (small / "out").mkdir()
            (small / "out" / "weights").write_bytes(b"0" * (600 << 10))
        with (
            pytest.raises(running.UserError, match="stops before the disk is full"),
            room(small, "no", 600 << 10, None),
        ):
            raise AssertionError
        (small / "out" / "weights").unlink()
        with room(small, "fits again", 600 << 10, None):
            pass
    finally:
        subprocess.run(["umount", str(small)], check=True)
