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


def shard_rows(n_rows: int) -> int:
    """Rows per shard, from the number of rows alone: a run resumed on other hardware finds the same shards."""
    return max(1, min(MAX_SHARD_ROWS, math.ceil(n_rows / 8)))


def shard_folder(store: Path, fingerprint: str) -> Path:
    return store / f"shards-{fingerprint}"


def shard_file(store: Path, fingerprint: str, number: int) -> Path:
    return shard_folder(store, fingerprint) / f"shard-{number:05d}.safetensors"


def read_manifest(store: Path) -> dict[str, Any] | None:
    """The manifest, or ``None`` when there is none (no store, an unfinished one, or another kind of folder)."""
    if not (store / MANIFEST).is_file():
        return None
    manifest = read_json(store / MANIFEST)
    return manifest if isinstance(manifest, dict) and manifest.get("kind") == KIND else None


def write_shard(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write one shard atomically; every view must be finite and filled."""
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)


def read_view(store: Path, manifest: dict[str, Any], view: str) -> torch.Tensor:
    """One view of a complete store as (N, D) in data order, in the stored dtype."""
    import torch
    from safetensors import safe_open

    out: torch.Tensor | None = None
    place = {row: position for position, row in enumerate(manifest["stored_rows"])} if manifest["n_excluded"] else None
    filled = 0
    for number in range(manifest["n_shards"]):
        path = shard_file(store, manifest["fingerprint"], number)
        if not path.is_file():
            raise UserError(f"{store} lacks {path.name}; extract the representations again")
        with safe_open(path, framework="pt") as handle:
            values, rows = handle.get_tensor(view), handle.get_tensor("rows")
        if out is None:
            out = torch.empty((manifest["n_rows"], values.shape[1]), dtype=values.dtype)
        if place is not None:
            rows = torch.tensor([place[int(row)] for row in rows], dtype=torch.long)
        out[rows] = values
        filled += len(rows)
    if out is None or filled != manifest["n_rows"]:
        raise UserError(
            f"{store}: its shards hold {filled} rows, its manifest says {manifest['n_rows']}; extract again"
        )
    return out


def finish_store(store: Path, manifest: dict[str, Any], row_ids: list[str], export: bool) -> None:
    """Write the row index and the export, then the manifest, then drop shards of earlier options.

    The old manifest goes first: there is no moment at which a manifest stands beside files that are not its own.
    """
    import pyarrow
    import pyarrow.parquet
    import torch
    from safetensors import safe_open

    (store / MANIFEST).unlink(missing_ok=True)
    n_total = manifest["n_rows"] + manifest["n_excluded"]
    n_tokens, n_tokens_full = torch.zeros(n_total, dtype=torch.int32), torch.zeros(n_total, dtype=torch.int32)
    stored = torch.zeros(n_total, dtype=torch.bool)
    for number in range(manifest["n_shards"]):
        with safe_open(shard_file(store, manifest["fingerprint"], number), framework="pt") as handle:
            rows = handle.get_tensor("rows")
            stored[rows] = True
            n_tokens[rows], n_tokens_full[rows] = handle.get_tensor("n_tokens"), handle.get_tensor("n_tokens_full")
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


def read_row_index(store: Path) -> dict[str, list[Any]]:
    """``id``, ``n_tokens``, ``n_tokens_full`` of every stored row, in data order."""
    import pyarrow.parquet

    return pyarrow.parquet.read_table(store / ROWS).to_pydict()
