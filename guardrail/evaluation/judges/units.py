"""Resumable work on judge requests: finished groups of items are on disk; a restarted run does the missing ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from guardrail.core.files import write_jsonl
from guardrail.core.progress import progress

T = TypeVar("T")
UNIT_ITEMS = 32
FOLDER = ".judge"


def run_units(
    items: Sequence[T],
    work: Callable[[list[T]], list[dict[str, Any]]],
    folder: Path,
    key: str,
    desc: str,
    unit_items: int = UNIT_ITEMS,
) -> list[dict[str, Any]]:
    """``work`` on consecutive groups of ``items``; one JSON-able dict per item, in order. ``key`` names the work."""
    out: list[dict[str, Any]] = []
    parts = folder / FOLDER / key
    with progress(total=len(items), desc=desc, unit="answer") as bar:
        for number, start in enumerate(range(0, len(items), unit_items)):
            group = list(items[start : start + unit_items])
            file = parts / f"unit-{number:06d}.jsonl"
            if file.is_file():
                found = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
            else:
                found = work(group)
                write_jsonl(file, found)
            assert len(found) == len(group), f"{len(group)} items but {len(found)} results"
            out += found
            bar.update(len(group))
    return out


def clear_units(folder: Path, key: str) -> None:
    """Remove the finished groups of ``key`` once the file that holds them is written."""
    shutil.rmtree(folder / FOLDER / key, ignore_errors=True)
    if (folder / FOLDER).is_dir() and not any((folder / FOLDER).iterdir()):
        (folder / FOLDER).rmdir()
