"""A study's disk: how much a checkpoint takes, which jobs run before weights go, the peak, and room for the next job.

Unless everything is kept (`guardrail.study.keep`), a study runs in batches: as many alignments with their fine-tunings
as have room beside what is there (`checkpoints_at_once`), then everything that reads these weights; what is read goes,
and the next batch begins. Judges read answers, not weights, and come last. So the most that lies on the disk at any
time follows from the settings, and `--plan` says it (`peak`).

Before a training starts, its own weights and what trainings beside it have still to write must fit into what is free:
`room`. If not, it waits while another job of the study runs, whose end may free some; otherwise it stops and says the
numbers. Known limit: what other programs write meanwhile is not foreseen.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guardrail.core.cli import log
from guardrail.core.errors import UserError
from guardrail.core.hub import cached_commit, repository_cache
from guardrail.models.checkpoints import resolve_checkpoint
from guardrail.study.config import Study
from guardrail.study.designs import adapter_parameters, n_adapters
from guardrail.study.grid import Grid
from guardrail.study.jobs import Job
from guardrail.study.keep import is_kept, readers, trains
from guardrail.study.records import State
from guardrail.study.training_jobs import aligned_name, tuned_name

GIB = 2**30
SANDBOX_BYTES_PER_CHECKPOINT = 8 << 20
BYTES = {"float32": 4, "bfloat16": 2}
FOLDER = ".disk"
POLL_SEC = 2.0
States = dict[str, dict[str, State]]


def bytes_per_checkpoint(study: Study) -> int:
    """What one trained checkpoint takes on disk: what the base model takes; 0 for a hub's that is not here yet."""
    if study.sandbox:
        return SANDBOX_BYTES_PER_CHECKPOINT
    folder = Path(resolve_checkpoint(study.models.base))
    commit = None if folder.is_dir() else cached_commit("model", study.models.base)
    if commit is not None:
        folder = repository_cache("model", study.models.base) / "snapshots" / commit
    names = (*folder.glob("*.safetensors"), *folder.glob("*.bin")) if folder.is_dir() else ()
    return sum(file.stat().st_size for file in names)


def weight_bytes(grid: Grid, full_bytes: int) -> dict[str, int]:
    """Checkpoint job -> bytes of the weights that it stores; ``full_bytes`` is what a whole model takes."""
    study = grid.study
    adapter = adapter_parameters(study) * BYTES["bfloat16" if study.alignment.bf16 else "float32"]
    out = {aligned_name(a): adapter if a.design == "adapter" else full_bytes for a in grid.alignments}
    return out | {tuned_name(cell): n_adapters(cell.trained) * adapter or full_bytes for cell in grid.cells}


def space_to_start(grid: Grid, full_bytes: int) -> int:
    """Bytes that the checkpoints of a study still need, those that were never made: all that stay, and the most that
    are there at a time of those that go (`peak` knows better, but has to know what is done)."""
    study, sizes = grid.study, weight_bytes(grid, full_bytes)
    made = [(aligned_name(a), grid.aligned_folder(a), a.design == "adapter", True) for a in grid.alignments]
    made += [
        (tuned_name(c), grid.cell_folder(c), (c.design.alignment, c.trained.method) == ("adapter", "lora"), False)
        for c in grid.cells
    ]
    stays, goes = 0, []
    for name, folder, adapters_alone, aligned in made:
        if not (folder / "run.json").is_file():  # a stale one makes room first
            kept = {"all": True, "aligned": aligned, "adapters": adapters_alone, "none": False}[study.keep]
            stays += sizes[name] if kept else 0
            goes += [] if kept else [sizes[name]]
    return stays + sum(sorted(goes)[-study.checkpoints_at_once :])


def next_batch(study: Study, jobs: dict[str, Job], states: States, names: list[str]) -> list[str]:
    """Of the jobs to run, those that run now; all of them where all weights stay.

    Trainings are taken alignment by alignment while fewer than ``checkpoints_at_once`` checkpoints that are not kept
    have weights, those first whose alignment is there; then what they need, and everything that reads weights that are
    there by then. One is always taken.
    """
    transient = [name for name in names if trains(jobs[name]) and not is_kept(jobs, name, study.keep)]
    if study.keep == "all" or not transient:
        return names
    wanted = set(names)
    live = [
        name
        for name, job in jobs.items()
        if trains(job) and name not in wanted and not is_kept(jobs, name, study.keep) and _has_weights(states[name])
    ]
    room = max(study.checkpoints_at_once - len(live), 1)
    chosen: list[str] = []
    for name in _by_alignment(jobs, [name for name in names if trains(jobs[name])]):
        if name in transient:
            if room == 0:
                break
            room -= 1
        chosen.append(name)
    later = {name for name in wanted if trains(jobs[name])} - set(chosen)
    reading = {reader for found in readers(jobs).values() for reader in found}
    now = set(chosen)
    for name in names:  # upstream first
        job = jobs[name]
        if not trains(job) and name in reading and not later & set(job.needs):
            now.add(name)
        of_weights = trains(job) or any(trains(jobs[need]) for need in job.needs)
        if not of_weights and not _judges(job) and not _behind(jobs, name, chosen, wanted):
            now.add(name)
    for name in reversed(names):
        if name in now:
            now |= wanted.intersection(jobs[name].needs) - later
    return [name for name in names if name in now]


def _judges(job: Job) -> bool:
    """Does it judge answers? Judges are loaded once, at the end."""
    return job.stage == "harmfulness" or job.stage.startswith("judge_")


def _behind(jobs: dict[str, Job], name: str, chosen: list[str], wanted: set[str]) -> bool:
    """Is the job made for later trainings alone (their mixture)?"""
    made_for = {other for other in wanted if trains(jobs[other]) and name in jobs[other].needs}
    return bool(made_for) and not made_for.intersection(chosen)


def _has_weights(states: dict[str, State]) -> bool:
    return all(state.done and not state.absent for state in states.values())


def _by_alignment(jobs: dict[str, Job], names: list[str]) -> list[str]:
    """Every alignment, followed at once by its fine-tunings; first the fine-tunings of alignments that are there."""
    below = {name: next((need for need in jobs[name].needs if trains(jobs[need])), name) for name in names}
    groups: dict[str, list[str]] = {below[name]: [] for name in names if below[name] not in below}
    for name in names:
        groups.setdefault(below[name], []).append(name)
    return [name for members in groups.values() for name in members]


def batches(
    study: Study, jobs: dict[str, Job], states: States, names: list[str]
) -> Iterator[tuple[list[str], set[str]]]:
    """Every batch in which ``names`` run, with the checkpoint jobs whose weights are there meanwhile; at last an empty
    batch with those whose weights stay."""
    states = dict(states)
    there = {name for name, job in jobs.items() if trains(job) and _has_weights(states[name])}
    by_job, left = readers(jobs), list(names)
    while left:
        batch = next_batch(study, jobs, states, left)
        assert batch, "a batch is never empty"
        there |= {name for name in batch if trains(jobs[name])}
        yield batch, set(there)
        taken = set(batch)
        left = [name for name in left if name not in taken]
        for name in batch:
            states[name] = {product: State("done") for product in states[name]}
        left_set = set(left)
        for name in [name for name in there if not is_kept(jobs, name, study.keep)]:
            if not left_set.intersection(by_job[name]):  # what is to be made again is among those that are left
                there.discard(name)
                states[name] = {product: State("done", absent=True) for product in states[name]}
    yield [], there


def peak(study: Study, jobs: dict[str, Job], states: States, names: list[str], sizes: dict[str, int]) -> dict[str, Any]:
    """The most bytes that the weights of a study take at any time, if ``names`` are run batch by batch.

    ``sizes``: see `weight_bytes`. Returns ``peak_bytes``, ``end_bytes`` (what stays), ``kept_bytes`` of them by the
    setting ``keep``, ``n_batches`` and ``most_checkpoints``, transient ones at a time. Weights that other studies or
    the models themselves take are not in it.
    """
    most = sum(sizes[name] for name, job in jobs.items() if trains(job) and _has_weights(states[name]))
    most_checkpoints, n_batches = 0, 0
    there: set[str] = set()
    for batch, there in batches(study, jobs, states, names):
        if batch:
            n_batches += 1
            most = max(most, sum(sizes[name] for name in there))
            transient = [name for name in there if not is_kept(jobs, name, study.keep)]
            most_checkpoints = max(most_checkpoints, len(transient))
    return {
        "peak_bytes": most,
        "end_bytes": sum(sizes[name] for name in there),
        "kept_bytes": sum(sizes[name] for name in there if is_kept(jobs, name, study.keep)),
        "n_batches": n_batches,
        "most_checkpoints": most_checkpoints,
    }


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk that holds ``folder``, or will."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def written_bytes(folder: Path) -> int:
    """What a training has written already, half-written files included."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # renamed meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return total


@contextlib.contextmanager
def room(root: Path, job: str, needed: int, output: Path | None) -> Iterator[None]:
    """Hold ``needed`` bytes of the disk of ``root`` while the block runs; waits, or raises ``UserError``, without them.

    Every job of a study runs inside of it, those that store nothing with 0: as long as one of them runs, the others
    may hope for what it frees. ``output`` is the folder that the job fills. A process that was killed holds nothing.
    """
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{job}.json"
    descriptor = _held(file)
    mine = {"bytes": needed, "output": None if output is None else str(output)}
    try:
        told = False
        while not _enter(folder, file, descriptor, root, job, mine):
            if not told:
                log(f"{job} waits for disk space: {_numbers(root, folder, file, mine)}")
                told = True
            time.sleep(POLL_SEC)
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            file.unlink()
        os.close(descriptor)


def _held(file: Path) -> int:
    """``file`` open and locked; once more where somebody who took it for a dead job's removed it in between."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == file.stat().st_ino:
                return descriptor
        os.close(descriptor)


def _enter(folder: Path, file: Path, descriptor: int, root: Path, job: str, mine: dict[str, Any]) -> bool:
    """Is there room? Then it is taken. Raises ``UserError`` where nothing that runs could still make some."""
    gate = os.open(folder / "gate", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(gate, fcntl.LOCK_EX)
        others = _running(folder, file)
        pending = sum(map(_pending, others))
        fits = not mine["bytes"] or mine["bytes"] + pending <= free_bytes(root)
        if not fits and not others:
            raise UserError(
                f"{job} stops before the disk is full: {_numbers(root, folder, file, mine)}; free some, choose another "
                "OUTPUTS, or let weights go after use (keep in the study file, docs/designs.md), then start again"
            )
        if fits:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(mine).encode(), 0)
        return fits
    finally:
        os.close(gate)


def _running(folder: Path, mine: Path) -> list[dict[str, Any]]:
    """What the other jobs hold that run now; those that wait hold nothing yet."""
    found = []
    for file in folder.glob("*.json"):
        if file == mine:
            continue
        with contextlib.suppress(OSError, ValueError):  # ended meanwhile; waits, and has written nothing yet
            descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                found.append(json.loads(os.pread(descriptor, 1 << 16, 0)))
            else:  # nobody holds it: its process was killed
                file.unlink()
            finally:
                os.close(descriptor)
    return found


def _pending(other: dict[str, Any]) -> int:
    """Bytes that a running job has still to write."""
    written = written_bytes(Path(other["output"])) if other["output"] and other["bytes"] else 0
    return max(0, int(other["bytes"]) - written)


def _numbers(root: Path, folder: Path, file: Path, mine: dict[str, Any]) -> str:
    pending = sum(map(_pending, _running(folder, file)))
    beside = f" and {pending / GIB:.2f} GiB that jobs beside it have still to write" if pending else ""
    return f"{mine['bytes'] / GIB:.2f} GiB{beside} are needed, {free_bytes(root) / GIB:.2f} GiB are free in {root}"
