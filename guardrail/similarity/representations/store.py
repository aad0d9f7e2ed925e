"""The representation store: a folder of row shards, a row index, and a manifest that is written last.

    <store>/
      manifest.json                what was extracted, from what, by which model; absent while incomplete
      rows.parquet                 one line per stored row, in data order: id, n_tokens, n_tokens_full
      shards-<fingerprint>/        shard-00000.safetensors: one (rows, D) tensor per view and `rows`, the row numbers
      reps-full.pt                 export of the first view: one plain (N, D) tensor in data order

A shard is complete or absent, so a killed run goes on where it stopped; shards of other options or other data lie in
another folder, so nothing can be mixed up. Only the manifest makes a store readable.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardrail.core.errors import UserError
from guardrail.core.files import atomic_path, read_json, write_json

if TYPE_CHECKING:
    import torch

MANIFEST = "manifest.json"
ROWS = "rows.parquet"
EXPORT = "reps-full.pt"
FORMAT = 1
KIND = "representations"
MAX_SHARD_ROWS = 512
COMPARED = ("text", "prompt_style", "max_length", "long_rows", "final_norm")  # must agree between pool and anchors
FIELDS = {
    **dict.fromkeys(("format", "dim", "n_rows", "n_excluded", "n_truncated", "n_shards"), int),
    **dict.fromkeys(("model", "source", "options"), dict),
    **dict.fromkeys(("fingerprint", "data_hash"), str),
    "views": list,
}


def shard_rows(n_rows: int) -> int:
    """Rows per shard, from the number of rows alone: a run resumed on other hardware finds the same shards."""
    return max(1, min(MAX_SHARD_ROWS, math.ceil(n_rows / 8)))


def shard_folder(store: Path, fingerprint: str) -> Path:
    return store / f"shards-{fingerprint}"


def shard_file(store: Path, fingerprint: str, number: int) -> Path:
    return shard_folder(store, fingerprint) / f"shard-{number:05d}.safetensors"


def read_manifest(store: Path) -> dict[str, Any] | None:
    """The manifest, or ``None`` when there is none (no store, an unfinished one, or another kind of folder).

    Raises ``UserError`` for one that is cut short or lacks what a manifest of this kind holds.
    """
    path = store / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = read_json(path)
    except UserError as error:
        raise UserError(f"{error}; delete it and extract again") from error
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        return None
    wrong = [name for name, kind in FIELDS.items() if not isinstance(manifest.get(name), kind)]
    inner = {"model": ("path", "hash", "tokenizer_hash"), "source": ("path",), "options": COMPARED}
    wrong += [
        f"{name}.{key}"
        for name, keys in inner.items()
        if name not in wrong
        for key in keys
        if key not in manifest[name]
    ]
    if wrong or manifest["format"] != FORMAT:
        what = f"lacks {', '.join(wrong[:3])}" if wrong else f"has format {manifest['format']}, expected {FORMAT}"
        raise UserError(f"{path} {what}: it is not a manifest of this version; delete it and extract again")
    return manifest


def write_shard(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write one shard atomically; every view must be finite and filled."""
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)


def read_shard(path: Path, names: Sequence[str]) -> list[torch.Tensor]:
    """Tensors of one shard by name; ``UserError`` names the file when it is missing, cut short or not ours."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as handle:
            return [handle.get_tensor(name) for name in names]
    except (SafetensorError, OSError) as error:
        reason = "it is not there" if not path.is_file() else str(error)[:150]
        raise UserError(
            f"cannot read {path} ({reason}); run get_representation.py again: it replaces what is broken"
        ) from error


def is_whole(path: Path, members: Sequence[int], views: Sequence[str]) -> bool:
    """Is the shard there, readable, and of these rows (or of some, where long rows are excluded)?"""
    if not path.is_file():
        return False
    try:
        rows, n_tokens, *values = read_shard(path, ("rows", "n_tokens", *views))
    except UserError:
        return False
    same = {len(rows)} == {len(n_tokens), *(len(value) for value in values)}
    return same and rows.ndim == 1 and set(rows.tolist()) <= set(members)


def read_view(store: Path, manifest: dict[str, Any], view: str) -> torch.Tensor:
    """One view of a complete store as (N, D) in data order, in the stored dtype."""
    import torch

    out: torch.Tensor | None = None
    place = {row: position for position, row in enumerate(manifest["stored_rows"])} if manifest["n_excluded"] else None
    n_rows, dim = manifest["n_rows"], manifest["dim"]
    seen = torch.zeros(n_rows, dtype=torch.bool)
    for number in range(manifest["n_shards"]):
        path = shard_file(store, manifest["fingerprint"], number)
        values, rows = read_shard(path, (view, "rows"))
        if place is not None:
            rows = torch.tensor([place.get(int(row), -1) for row in rows], dtype=torch.long)
        if tuple(values.shape) != (len(rows), dim) or (
            len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < n_rows
        ):
            raise UserError(f"{path} does not belong to {store / MANIFEST} (other shape or rows); extract again")
        if out is None:
            out = torch.empty((n_rows, dim), dtype=values.dtype)
        out[rows] = values
        seen[rows] = True
    if out is None or not bool(seen.all()):
        raise UserError(f"{store}: its shards hold {int(seen.sum())} rows, its manifest says {n_rows}; extract again")
    return out


def finish_store(store: Path, manifest: dict[str, Any], row_ids: list[str], export: bool) -> None:
    """Write the row index and the export, then the manifest, then drop shards of earlier options.

    The old manifest goes first: there is no moment at which a manifest stands beside files that are not its own.
    """
    import pyarrow
    import pyarrow.parquet
    import torch

    (store / MANIFEST).unlink(missing_ok=True)
    n_total = manifest["n_rows"] + manifest["n_excluded"]
    n_tokens, n_tokens_full = torch.zeros(n_total, dtype=torch.int32), torch.zeros(n_total, dtype=torch.int32)
    stored = torch.zeros(n_total, dtype=torch.bool)
    for number in range(manifest["n_shards"]):
        path = shard_file(store, manifest["fingerprint"], number)
        rows, counts, full = read_shard(path, ("rows", "n_tokens", "n_tokens_full"))
        stored[rows] = True
        n_tokens[rows], n_tokens_full[rows] = counts, full
    kept = stored.nonzero().flatten().tolist()
    assert len(kept) == manifest["n_rows"], "as many representations as rows that were not excluded"
    manifest = {**manifest, "stored_rows": kept if manifest["n_excluded"] else None}
    table = pyarrow.table(
        {
            "id": [row_ids[row] for row in kept],
            "n_tokens": n_tokens[stored].numpy(),
            "n_tokens_full": n_tokens_full[stored].numpy(),
        }
    )
    with atomic_path(store / ROWS) as temporary:
        pyarrow.parquet.write_table(table, temporary)
    if export:
        matrix = read_view(store, manifest, manifest["views"][0])
        with atomic_path(store / EXPORT) as temporary:
            torch.save(matrix, temporary)
    else:
        (store / EXPORT).unlink(missing_ok=True)
    write_json(store / MANIFEST, manifest)
    for folder in store.glob("shards-*"):
        if folder != shard_folder(store, manifest["fingerprint"]):
            shutil.rmtree(folder, ignore_errors=True)
    for left in (*store.glob(".*.tmp-*"), *store.glob("shards-*/.*.tmp-*")):  # of killed runs; we hold the lock
        left.unlink(missing_ok=True)


def read_row_index(store: Path) -> dict[str, list[Any]]:
    """``id``, ``n_tokens``, ``n_tokens_full`` of every stored row, in data order."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(store / ROWS) as file:
            return dict(file.read(columns=["id", "n_tokens", "n_tokens_full"]).to_pydict())
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"cannot read {store / ROWS} ({str(error)[:150]}); extract again") from error
