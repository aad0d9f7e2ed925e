"""Bring representations and the rows they stand for together: by id where a store has ids, by count otherwise."""

from __future__ import annotations

from guardrail.core.errors import UserError
from guardrail.data.rows import Row, hash_rows
from guardrail.similarity.representations.read import Representations


def align_rows(rows: list[Row], reps: Representations, where: str) -> tuple[list[Row], int]:
    """The rows in the order of ``reps.matrix``, and how many rows have no representation (excluded as too long).

    Raises ``UserError``: a store of other data, a bare tensor with another number of rows (both numbers shown).
    """
    if reps.ids is None or reps.manifest is None:
        if len(rows) != len(reps):
            raise UserError(
                f"{where} has {len(rows)} rows, {reps.path} has {len(reps)} representations; they must agree"
            )
        return rows, 0
    if hash_rows(rows) != reps.manifest["data_hash"]:
        source = reps.manifest["source"]
        raise UserError(
            f"{reps.path} was extracted from other data than {where}: "
            f"{len(reps) + reps.manifest['n_excluded']} rows of {source['path']} "
            f"(data hash {reps.manifest['data_hash']}), against {len(rows)} rows "
            f"(data hash {hash_rows(rows)}); extract again or name the right file"
        )
    by_id = {row["id"]: row for row in rows}
    return [by_id[one] for one in reps.ids], len(rows) - len(reps)


def check_comparable(pool: Representations, anchors: Representations) -> list[str]:
    """Refuse a pool and anchors that cannot be compared; return notes on what could not be checked.

    Raises ``UserError``: other width, other model or tokenizer, other layer, position, text part, style or length cap.
    """
    if pool.dim != anchors.dim:
        raise UserError(
            f"{pool.path} has width {pool.dim}, {anchors.path} has width {anchors.dim}; "
            "both must come from the same model and layer"
        )
    if pool.manifest is None or anchors.manifest is None:
        bare = pool.path if pool.manifest is None else anchors.path
        return [f"{bare} is a bare tensor: model, layer and position could not be checked"]
    a, b = pool.manifest, anchors.manifest
    for key in ("hash", "tokenizer_hash"):
        if a["model"][key] != b["model"][key]:
            raise UserError(
                f"{pool.path} and {anchors.path} come from different models ({a['model']['path']}, "
                f"{b['model']['path']}: {key} differs); extract both with one model"
            )
    if pool.view != anchors.view:
        raise UserError(f"{pool.path} holds {pool.view}, {anchors.path} {anchors.view}; compare one layer and position")
    keys = ("text", "prompt_style", "max_length", "long_rows", "final_norm")
    differing = [key for key in keys if a["options"][key] != b["options"][key]]
    if differing:
        shown = ", ".join(f"{key} {a['options'][key]!r} against {b['options'][key]!r}" for key in differing)
        raise UserError(f"{pool.path} and {anchors.path} were extracted with different options: {shown}")
    return []
