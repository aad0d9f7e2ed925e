"""Bytes on disk while a study runs: weights from the end of their training until nothing needs them any more.

What stays after use is the study's `keep`. Representations stay. Logs, answers and judgements are small beside them and
are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from guardrail.study.jobs import Job
from guardrail.study.planning.costs import TRAINING_STAGES, Costs
from guardrail.study.planning.simulate import Schedule


@dataclass(frozen=True)
class Held:
    """One checkpoint: bytes, and from when until when (None: it stays) they are on disk, in seconds of the schedule."""

    size: float
    start: float
    end: float | None


def peak(held: Iterable[Held]) -> tuple[float, float]:
    """(largest sum at any time, sum at the end) of what is held. What ends at a time is gone before others begin."""
    events: list[tuple[float, int, float]] = []
    for one in held:
        events.append((one.start, 1, one.size))
        if one.end is not None:
            events.append((one.end, 0, -one.size))
    now = largest = 0.0
    for _, _, change in sorted(events):
        now += change
        largest = max(largest, now)
    return largest, now


def checkpoint_bytes(counter: Costs, job: Job, float32: bool) -> float:
    """Weights that a training job leaves: all of them, or adapters alone."""
    options = job.products[0].key.parts["options"]
    adapters = options.get("use_lora") and not options.get("save_full_model", True)
    shape = counter.shape
    n = shape.lora_parameters(options["r"], options["target_modules"]) if adapters else shape.n_parameters()
    return n * (4.0 if float32 else counter.book["bytes_per_parameter"])


def held_by(
    counter: Costs, schedule: Schedule, home: Mapping[str, str], waiting: Iterable[str], keep: str, float32: bool
) -> list[Held]:
    """Every checkpoint of the study under ``schedule``; ``home``: job -> process that runs it.

    A checkpoint that is there already counts from the start while somebody still needs it, or if it is kept.
    """
    jobs, runs = counter.jobs, set(waiting)
    readers: dict[str, list[str]] = {}
    for name, job in jobs.items():
        for need in job.needs:
            readers.setdefault(need, []).append(name)
    out = []
    for name, job in jobs.items():
        if job.stage not in TRAINING_STAGES:
            continue
        size = checkpoint_bytes(counter, job, float32)
        options = job.products[0].key.parts["options"]
        adapters = bool(options.get("use_lora")) and not options.get("save_full_model", True)
        stays = {
            "all": True,
            "aligned": job.stage == "align",
            "adapters": adapters,
            "none": False,
        }[keep]
        left = [schedule.ends[home[reader]] for reader in readers.get(name, ()) if reader in runs]
        if name in runs:
            start = schedule.ends[home[name]]
        elif stays or left:
            start = 0.0
        else:
            continue
        out.append(Held(size, start, None if stays else max(left, default=start)))
    return out
