"""What the processes of a study took: one line per process, added when it has ended well. Plans read them.

    outputs/<study>/processes.jsonl   {"process": ..., "stage": ..., "jobs": [...], "wall_sec": ..., "cpu_sec": ...}

Facts about the past: nothing decides by them whether a result is done. A half-written last line (a kill) is skipped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

FILE = "processes.jsonl"


class Process(Protocol):
    """A process of a study (`guardrail.study.processes`)."""

    @property
    def name(self) -> str: ...

    @property
    def stage(self) -> str: ...

    @property
    def jobs(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Time:
    """One process that ended well: ``wall_sec`` without waiting for a GPU, ``cpu_sec`` of all that it started."""

    name: str
    stage: str
    jobs: tuple[str, ...]
    wall_sec: float
    cpu_sec: float | None


def note_process(root: Path, process: Process, seconds: Mapping[str, float]) -> None:
    """Add a line, in one write: processes that end together do not mix."""
    line = {"process": process.name, "stage": process.stage, "jobs": list(process.jobs), **seconds}
    descriptor = os.open(root / FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, (json.dumps(line) + "\n").encode())
    finally:
        os.close(descriptor)


def read_times(root: Path) -> list[Time]:
    """Every process that has ended well, oldest first."""
    try:
        lines = (root / FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    out = []
    for line in lines:
        try:
            row = json.loads(line)
            wall, cpu = float(row["wall_sec"]), row.get("cpu_sec")
            out.append(
                Time(row["process"], row["stage"], tuple(row["jobs"]), wall, None if cpu is None else float(cpu))
            )
        except (ValueError, KeyError, TypeError):
            continue
    return out
