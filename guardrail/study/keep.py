"""Weights stay as long as they are needed: what `keep` says, who reads a checkpoint, when its weights go.

The weights of a checkpoint go when every job that reads them is done; its key, its losses and the hash of every file
stay in the record (`guardrail.study.records.remove_weights`), so that it counts as done. A job that needs them later (a
changed evaluation, say) makes them again from the same key, and what they were made from, where that is gone as well.

| keep | aligned checkpoints | fine-tuned checkpoints |
|---|---|---|
| all | stay | stay |
| aligned | stay | go |
| adapters | adapters stay | adapters of an aligned adapter stay |
| none | go | go |

An adapter that was trained on an aligned model of full weights is of no use without them, and goes with them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from guardrail.core.files import clear_leftovers
from guardrail.study.jobs import Job
from guardrail.study.records import State, product_state, remove_weights

TRAINING = ("align", "fine_tune")
LOCK = ".weights.lock"
TRAINING_STATE = ("checkpoint", "global_step*", "latest", "zero_to_fp32.py")  # what trainers leave to resume from


def trains(job: Job) -> bool:
    """Does the job make a checkpoint?"""
    return job.stage in TRAINING


def stores_adapter(job: Job) -> bool:
    """Does it store adapters alone?"""
    options = job.products[0].key.parts["options"]
    return bool(options.get("use_lora")) and not options.get("save_full_model", True)


def is_kept(jobs: dict[str, Job], name: str, keep: str) -> bool:
    """Do the weights that the job ``name`` makes stay under this setting?"""
    job = jobs[name]
    if keep == "aligned":
        return job.stage == "align"
    below = [jobs[need] for need in job.needs if trains(jobs[need])]
    return keep == "all" or (keep == "adapters" and all(stores_adapter(one) for one in (job, *below)))


def readers(jobs: dict[str, Job]) -> dict[str, list[str]]:
    """Checkpoint job -> the jobs that read its weights."""
    found: dict[str, list[str]] = {name: [] for name, job in jobs.items() if trains(job)}
    for name, job in jobs.items():
        for need in job.needs:
            if need in found:
                found[need].append(name)
    return found


def needed_again(jobs: dict[str, Job], states: dict[str, dict[str, State]], names: list[str]) -> list[str]:
    """``names`` and the jobs whose removed weights they need, in the order of ``jobs``."""
    wanted, todo = set(names), list(names)
    while todo:
        for need in jobs[todo.pop()].needs:
            if need not in wanted and any(state.absent for state in states[need].values()):
                wanted.add(need)
                todo.append(need)
    return [name for name in jobs if name in wanted]


def used_up(jobs: dict[str, Job], root: Path, names: list[str], keep: str) -> list[str]:
    """Of the checkpoint jobs ``names`` those whose weights may go: done, not kept, and read by everything.

    A reader whose own weights were removed and are needed again has still to read.
    """
    by_job = readers(jobs)
    known: dict[str, State] = {}

    def state(name: str) -> State:
        if name not in known:
            found = [product_state(root, name, product) for product in jobs[name].products]
            known[name] = next((one for one in found if not one.done), found[0])
        return known[name]

    def has_read(name: str) -> bool:
        return state(name).done and (not state(name).absent or all(map(has_read, by_job[name])))

    candidates = [name for name in names if trains(jobs[name]) and not is_kept(jobs, name, keep)]
    return [name for name in candidates if state(name).done and all(map(has_read, by_job[name]))]


def remove_used(root: Path, jobs: dict[str, Job], names: list[str], keep: str) -> int:
    """Remove the weights of the checkpoint jobs ``names`` that nothing needs any more; the bytes that are free now.

    Safe beside other jobs of the study: a job that has still to read them is not done, and they stay.
    """
    if keep == "all":
        return 0
    freed = 0
    with _locked(root):
        for name in used_up(jobs, root, names, keep):
            freed += sum(remove_weights(root, name, product) for product in jobs[name].products)
    return freed


@dataclass(frozen=True)
class Weights:
    """What a running job has to know: the setting ``keep``, and the bytes that every checkpoint job will store."""

    keep: str = "all"
    bytes: dict[str, int] = field(default_factory=dict)


KEEP_ALL = Weights()


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One process at a time: two jobs that end together both find their checkpoint used up."""
    root.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def clear_training_state(root: Path, job: Job) -> None:
    """Remove what a trainer keeps to resume from (optimizer states, 12 bytes per parameter), and half-written files.

    Call it when the job does not run. Nothing else in its folder is touched.
    """
    for name in job.products[0].files:
        if not name.endswith("slice_end"):
            continue
        folder = root / Path(name).parent
        clear_leftovers(folder)
        for place in (folder, root / name):
            for pattern in TRAINING_STATE:
                for path in place.glob(pattern):
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path, ignore_errors=True)
                    else:
                        path.unlink(missing_ok=True)
