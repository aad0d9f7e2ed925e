"""Selection files: rows, scores, row numbers per subset, and one ``selection.json`` for the folder.

    <folder>/top1000.jsonl  top1000_scores.npy (float32)  top1000_indices.npy (int64)  selection.json

``selection.json`` has one entry per subset under ``subsets``; runs that add a subset keep the others' entries.
It is written last, under a lock, and an entry holds the hashes of its files: it never describes a file of another run.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from guardrail.core.errors import UserError
from guardrail.core.files import atomic_path, hash_file, read_json, write_json, write_jsonl
from guardrail.core.options import decisive
from guardrail.data.hub_layout import folder_lock
from guardrail.data.rows import Row
from guardrail.similarity.selection.options import SelectionConfig

SELECTION = "selection.json"
SWEEP = "sweep.json"
Array = np.ndarray[Any, Any]


def subset_options(config: SelectionConfig, selector: str) -> dict[str, Any]:
    """The options that decide one subset: no other selectors, no sweep, no paths."""
    options = decisive(config)
    del options["sweep"]
    return {**options, "selector": selector}


def keep_rows(written: Path, read: Iterable[str | None]) -> None:
    """Refuse to write a subset over rows that the selection reads (a pool that is itself a selected file)."""
    for path in read:
        if path and written.exists() and os.path.exists(path) and os.path.samefile(path, written):
            raise UserError(f"{written} is read by this selection and would be overwritten; give another output folder")


def save_array(path: Path, array: Array) -> Path:
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.save(handle, array, allow_pickle=False)
    return path


def write_subset(folder: Path, stem: str, rows: list[Row], indices: Array, scores: Array | None) -> dict[str, Any]:
    """Write the three files of one subset; returns their names and hashes.

    ``indices`` are row numbers in the pool's data file, ``scores`` those rows' scores; without scores: NaN.
    """
    assert len(rows) == len(indices)
    values = np.full(len(indices), np.nan, dtype=np.float32) if scores is None else scores.astype(np.float32)
    paths = {
        "rows": write_jsonl(folder / f"{stem}.jsonl", rows),
        "scores": save_array(folder / f"{stem}_scores.npy", values),
        "indices": save_array(folder / f"{stem}_indices.npy", indices.astype(np.int64)),
    }
    return {"files": {key: path.name for key, path in paths.items()}, "hashes": hash_files(paths)}


def hash_files(paths: dict[str, Path]) -> dict[str, str]:
    return {key: hash_file(path) for key, path in paths.items()}


def read_selection(folder: Path) -> dict[str, Any]:
    """``selection.json`` of a folder; an empty one where there is none."""
    path = folder / SELECTION
    return read_json(path) if path.is_file() else {"subsets": {}}


def is_current(folder: Path, stem: str, fingerprint: str) -> bool:
    """Is there a subset of this fingerprint whose files still have the contents that were written?"""
    entry = read_selection(folder)["subsets"].get(stem)
    if entry is None or entry["fingerprint"] != fingerprint:
        return False
    paths = {key: folder / name for key, name in entry["files"].items()}
    return all(path.is_file() for path in paths.values()) and hash_files(paths) == entry["hashes"]


def sweep_is_current(folder: Path, fingerprint: str | None) -> bool:
    """No sweep is asked for, or the one of this fingerprint is there."""
    path = folder / SWEEP
    return fingerprint is None or (path.is_file() and read_json(path)["fingerprint"] == fingerprint)


def merge_selection(folder: Path, subsets: dict[str, dict[str, Any]], shared: dict[str, Any]) -> Path:
    """Add or replace ``subsets``; drop entries whose files are gone; ``shared`` holds the last run's pool facts."""
    with folder_lock(folder):
        old = read_selection(folder)["subsets"]
        kept = {k: v for k, v in old.items() if all((folder / f).is_file() for f in v["files"].values())}
        return write_json(folder / SELECTION, {**shared, "subsets": {**kept, **subsets}})
