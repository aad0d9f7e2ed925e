"""Rates of this machine: what `guardrail.study.planning.calibrate` measured, where it lies and when it counts.

A calibration lies in the user's cache (`~/.cache/guardrail/calibrations/`) under a hash of the machine, the models'
shapes and the settings of training and evaluation.
"""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from guardrail.core.errors import UserError
from guardrail.core.files import hash_json, read_json
from guardrail.study.config import Study, as_dict
from guardrail.study.planning.costs import Rate
from guardrail.study.planning.node import Node

BUSY = 1.6  # wall time over processor time of the processes above which other work was in the way
PARALLEL = 0.75  # wall time over processor time below which a kind of process keeps several cores busy
FORMAT = 2  # raise when what a calibration means changes


@dataclass(frozen=True)
class Span:
    """Seconds of wall clock and of processors."""

    wall_sec: float
    cpu_sec: float


@dataclass(frozen=True)
class Calibration:
    """Rates of every kind of process; what starting one takes, and the study around them; of which machine."""

    rates: Mapping[str, Rate]
    process: Span
    study: Span
    described: str


@dataclass(frozen=True)
class Sample:
    """One process that ran: its kind, counted seconds of work, measured seconds."""

    stage: str
    work: float
    wall_sec: float
    cpu_sec: float


def machine_facts(node: Node) -> dict[str, Any]:
    """What decides how fast this machine is, as far as it can be seen."""
    import importlib.metadata as metadata

    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    except OSError:
        pass
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "deepspeed")}
    return {"cpu": cpu, "jobs": node.jobs, "gpu": node.name if node.gpu else None, **versions}


def in_words(facts: Mapping[str, Any], stretch: float) -> str:
    """A machine, a date, and how much of it other work took: wall time over processor time of the whole run."""
    place = facts["gpu"] or f"{facts['cpu']}, {facts['jobs']} jobs side by side"
    text = f"{datetime.date.today().isoformat()} on {place}, torch {facts['torch']}"
    if facts["gpu"] is None:
        text += f"; wall time is {stretch:.1f} x processor time"
        text += " (a busy machine: expect less on an idle one)" if stretch > BUSY else ""
    return text


def key_of(study: Study, node: Node) -> str:
    """What a calibration depends on: the machine, the models' shapes, and how they are trained and evaluated."""
    blocks = as_dict(study)
    settings = {
        name: blocks[name]
        for name in ("alignment", "fine_tuning", "dtype", "prompt_style", "lora", "designs")
        if name in blocks
    }
    evaluation = {name: value for name, value in blocks["evaluation"].items() if name != "limit"}
    models = {}
    for role, name in blocks["models"].items():
        config = next(
            (f for f in (Path(name) / "config.json", Path(name) / "slice_end/config.json") if f.is_file()), None
        )
        models[role] = read_json(config) if config else name
    return hash_json([FORMAT, machine_facts(node), settings, evaluation, models])


def cache_file(study: Study, node: Node) -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return home / "guardrail" / "calibrations" / f"{key_of(study, node)}.json"


def find_calibration(study: Study, node: Node) -> Calibration | None:
    """What was measured on this machine for such a study; None where nothing was."""
    file = cache_file(study, node)
    if not file.is_file():
        return None
    try:
        content = read_json(file)
        rates = {stage: Rate(**rate) for stage, rate in content["rates"].items()}
        return Calibration(rates, Span(**content["process"]), Span(**content["study"]), content["described"])
    except (UserError, KeyError, TypeError):
        return None  # of an older form: measured again by the next --calibrate


def fit(samples: Iterable[Sample], by_processor: bool) -> dict[str, Rate]:
    """Start and rate of each kind of process: the line through its two sizes, neither below zero.

    Args:
        by_processor: of a CPU machine: wall time is processor time times the median ratio of the two over all kinds,
            which holds even if other work came and went meanwhile; a kind that keeps several cores busy has its own.
            On GPUs the wall times have a line of their own.

    A kind whose samples all have the same work has their median for a start.
    """
    by_stage: dict[str, list[Sample]] = {}
    for sample in samples:
        by_stage.setdefault(sample.stage, []).append(sample)
    ratios = {stage: [p.wall_sec / max(p.cpu_sec, 0.01) for p in points] for stage, points in by_stage.items()}
    parallel = {stage for stage, found in ratios.items() if median(found) < PARALLEL}
    single = [ratio for stage, found in ratios.items() if stage not in parallel for ratio in found]
    rates = {}
    for stage, points in by_stage.items():
        works = [point.work for point in points]
        cpu = line(works, [point.cpu_sec for point in points])
        if by_processor:
            stretch = median(ratios[stage] if stage in parallel else single)
            wall = cpu[0] * stretch, cpu[1] * stretch
        else:
            wall = line(works, [point.wall_sec for point in points])
        rates[stage] = Rate(*wall, *cpu)
    return rates


def line(works: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Intercept and slope, both at least zero, of the least-squares line through the medians of each size of work."""
    groups: dict[float, list[tuple[float, float]]] = {}
    for pair in zip(works, seconds, strict=True):
        groups.setdefault(float(f"{pair[0]:.3g}"), []).append(pair)
    points = [(median(work for work, _ in group), median(sec for _, sec in group)) for group in groups.values()]
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    square = sum((work - mean_x) ** 2 for work, _ in points)
    slope = sum((work - mean_x) * (sec - mean_y) for work, sec in points) / square if square else 0.0
    if slope <= 0:
        return mean_y, 0.0
    start = mean_y - slope * mean_x
    if start < 0:
        return 0.0, sum(work * sec for work, sec in points) / sum(work**2 for work, _ in points)
    return start, slope
