"""Token ids of training rows, kept by the content of each row: runs that share rows tokenise them once.

Alignments of one seed read the same instructions and differ in a thousand safety rows. Rows are therefore looked up one
by one: a run tokenises those that no earlier run had, and adds them as one more part.

    <cache>/tokens/<options>/<part>/keys.npy, ids.npy, offsets.npy, spans.npy, full_lengths.npy

``<options>`` is a hash over everything besides the rows that decides the ids (tokenizer files, template file, style,
length, mask). A part appears whole or not at all and is never changed; one that cannot be read is removed and its rows
are tokenised again. One run at a time adds to ``<options>``: another one waits and finds the rows there. Beyond
`LIMIT_BYTES`, the parts that were not used for the longest time go.

Shapes: N rows, T tokens of all of them, K spans.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from guardrail.core.files import atomic_path

LIMIT_BYTES = 20 * 2**30
IN_USE_SEC = 3600.0  # a part that was used this recently stays, whatever the limit
KEY_BYTES = 16
ARRAYS = ("ids", "offsets", "spans", "full_lengths")
Arrays = dict[str, np.ndarray]


def row_key(messages: Any, mask: Sequence[tuple[int, int]] = ()) -> bytes:
    """What a row is looked up by: its conversation and the characters without loss, nothing else."""
    text = json.dumps([messages, mask] if mask else messages, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:KEY_BYTES]


@dataclass(frozen=True)
class Part:
    """Rows that one run added. ``keys`` (N, 16) bytes; ``arrays`` as in `guardrail.training.data.TokenisedRows`."""

    folder: Path
    keys: np.ndarray
    arrays: Arrays

    def rows(self) -> Iterator[bytes]:
        """The rows' keys, in order."""
        content = self.keys.tobytes()
        return (content[i : i + KEY_BYTES] for i in range(0, len(content), KEY_BYTES))


def cached_rows(folder: Path, keys: Sequence[bytes], encode: Callable[[list[int]], Arrays] | None) -> Arrays | None:
    """The arrays of the rows with these ``keys``, in order; a row may occur more than once.

    ``encode(numbers)`` makes the arrays of the rows with these numbers; they are added to the cache. Without it, as
    another rank adds them: None when a row is not there.
    """
    with _locked(folder) if encode else contextlib.nullcontext():
        parts = _read_parts(folder)
        where, missing = _find(parts, keys)
        if missing:
            if encode is None:
                return None
            new = encode(missing)
            added = np.frombuffer(b"".join(keys[i] for i in missing), dtype=np.uint8).reshape(-1, KEY_BYTES)
            parts.append(_write_part(folder, added, new))
            where, missing = _find(parts, keys)
            assert not missing, "a row that was just added"
    out = _gather(parts, where)
    for number in np.unique(where[:, 0]):
        with contextlib.suppress(OSError):  # removed by hand meanwhile: its content is here
            os.utime(parts[number].folder)
    if encode:
        _make_room(folder.parent)
    return out


def _find(parts: list[Part], keys: Sequence[bytes]) -> tuple[np.ndarray, list[int]]:
    """``(N, 2)`` part and row number of every key, and the numbers of those that are nowhere (once per content)."""
    wanted: dict[bytes, tuple[int, int] | None] = dict.fromkeys(keys)
    for number, part in enumerate(parts):
        for row, key in enumerate(part.rows()):
            if key in wanted and wanted[key] is None:
                wanted[key] = (number, row)
    missing: dict[bytes, int] = {}
    for i, key in enumerate(keys):
        if wanted[key] is None:
            missing.setdefault(key, i)
    if missing:
        return np.zeros((0, 2), dtype=np.int64), list(missing.values())
    return np.array([wanted[key] for key in keys], dtype=np.int64).reshape(-1, 2), []


def _gather(parts: list[Part], where: np.ndarray) -> Arrays:
    """The rows at ``where`` (N, 2), joined."""
    N = len(where)
    lengths, counts, full = (np.zeros(N, dtype=np.int64) for _ in range(3))
    chosen = {int(number): np.flatnonzero(where[:, 0] == number) for number in np.unique(where[:, 0])}
    bounds: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # of the spans of each of a part's rows
    for number, rows in chosen.items():
        arrays, old = parts[number].arrays, where[rows, 1]
        first = np.searchsorted(arrays["spans"][:, 0], np.arange(len(arrays["full_lengths"]) + 1))
        bounds[number] = first[old], first[old + 1]
        lengths[rows] = arrays["offsets"][old + 1] - arrays["offsets"][old]
        counts[rows] = bounds[number][1] - bounds[number][0]
        full[rows] = arrays["full_lengths"][old]
    offsets, places = (np.concatenate([[0], np.cumsum(sizes)]) for sizes in (lengths, counts))
    ids, spans = np.zeros(offsets[-1], dtype=np.int32), np.zeros((places[-1], 3), dtype=np.int64)
    spans[:, 0] = np.repeat(np.arange(N), counts)
    for number, rows in chosen.items():
        arrays, old = parts[number].arrays, where[rows, 1]
        source, target = _runs(arrays["offsets"][old], offsets[rows], lengths[rows])
        ids[target] = arrays["ids"][source]
        source, target = _runs(bounds[number][0], places[rows], counts[rows])
        spans[target, 1:] = arrays["spans"][source, 1:]
    return {"ids": ids, "offsets": offsets, "spans": spans, "full_lengths": full}


def _runs(sources: np.ndarray, targets: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of runs of ``lengths`` that start at ``sources`` and belong at ``targets``."""
    within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(sources, lengths) + within, np.repeat(targets, lengths) + within


def _read_parts(folder: Path) -> list[Part]:
    """Every whole part; one that cannot be read is removed."""
    parts = []
    for place in sorted(folder.glob("[!.]*")) if folder.is_dir() else []:
        try:
            keys, *arrays = (np.load(place / f"{name}.npy", mmap_mode="r") for name in ("keys", *ARRAYS))
            if len({len(keys), len(arrays[1]) - 1, len(arrays[3])}) != 1:
                raise ValueError("arrays of different parts")
        except (OSError, EOFError, ValueError):
            shutil.rmtree(place, ignore_errors=True)
            continue
        parts.append(Part(place, keys, dict(zip(ARRAYS, arrays, strict=True))))
    return parts


def _write_part(folder: Path, keys: np.ndarray, arrays: Arrays) -> Part:
    place = folder / hashlib.sha256(keys.tobytes()).hexdigest()[:16]
    with atomic_path(place) as temporary:
        temporary.mkdir()
        for name, array in {"keys": keys, **arrays}.items():
            np.save(temporary / f"{name}.npy", array)
    return Part(place, keys, arrays)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One run at a time; the lock goes with the process, also after ``kill -9``."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _make_room(root: Path) -> None:
    """Remove what was not used for the longest time until the cache is below its limit."""
    entries = []
    for place in (*root.glob("*/[!.]*"), *root.glob("*.npz")):  # earlier versions kept whole files
        with contextlib.suppress(OSError):
            files = [file for file in place.rglob("*") if file.is_file()] if place.is_dir() else [place]
            entries.append((place.stat().st_mtime, sum(file.stat().st_size for file in files), place))
    total = sum(size for _, size, _ in entries)
    for used, size, place in sorted(entries):
        if total <= LIMIT_BYTES or used > time.time() - IN_USE_SEC:
            return
        shutil.rmtree(place, ignore_errors=True) if place.is_dir() else place.unlink(missing_ok=True)
        total -= size
