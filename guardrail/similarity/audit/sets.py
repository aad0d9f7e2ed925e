"""The audited data sets: rows and representations of the customer, the alignment variants and the reference sets.

A set is named ``NAME=PATH`` or ``NAME=PATH::SPLIT``. PATH is a data file, folder or hub name (representations are
extracted into ``<output_dir>/reps/``), or stored representations (a store, ``.pt``, ``.npy``, ``.safetensors``).
Sets above ``max_rows`` rows are cut to a seeded random sample, which is recorded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardrail.core.errors import UserError
from guardrail.core.files import hash_json
from guardrail.data.rows import Row, hash_rows, load_rows
from guardrail.similarity.representations import store as stores
from guardrail.similarity.representations.extract import extract_representations
from guardrail.similarity.representations.options import ExtractionOptions, ModelFacts
from guardrail.similarity.representations.read import (
    SUFFIXES,
    Representations,
    check_comparable,
    locate,
    read_representations,
)

if TYPE_CHECKING:
    import torch

BARE_VIEW = "given"


@dataclass(frozen=True)
class SetSpec:
    """What the command line names."""

    role: str
    name: str
    path: str
    split: str | None

    @property
    def stored(self) -> bool:
        """Does ``path`` hold representations rather than rows?"""
        path = Path(self.path)
        if path.suffix in SUFFIXES:
            return True
        return path.is_dir() and (
            stores.read_manifest(path) is not None or (path / stores.EXPORT).is_file() or any(path.glob("reps-*.pt"))
        )


def parse_set(role: str, text: str) -> SetSpec:
    """``NAME=PATH[::SPLIT]``; without a name, the path's last part is the name."""
    name, _, path = text.partition("=") if "=" in text else ("", "", text)
    path, _, split = path.partition("::")
    if not path:
        raise UserError(f"--{role} {text!r}: expected NAME=PATH or NAME=PATH::SPLIT")
    return SetSpec(role, name or split or Path(path).stem or path, path, split or None)


@dataclass
class AuditSet:
    """``matrices[view]`` is (rows, D); ``rows`` is ``None`` when only representations were given."""

    spec: SetSpec
    n_total: int
    ids: list[str]
    rows: list[Row] | None
    matrices: dict[str, torch.Tensor]
    source: dict[str, Any]

    @property
    def name(self) -> str:
        return self.spec.name

    def __len__(self) -> int:
        return len(self.ids)


def load_sets(
    specs: list[SetSpec],
    output: Path,
    model: str | None,
    options: ExtractionOptions | None,
    facts: ModelFacts | None,
    max_rows: int,
    seed: int,
    batch_tokens: int | None = None,
) -> list[AuditSet]:
    """Read or extract every set and keep the views that all of them have.

    Raises ``UserError``: rows to extract and no model, sets of different models or widths, no common view.
    """
    names = [(spec.role, spec.name) for spec in specs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"two {twice[0]} sets are named {twice[1]!r}; give them names with NAME=PATH")
    if options is None and (raw := next((spec for spec in specs if not spec.stored), None)):
        raise UserError(f"--{raw.role} {raw.path} holds rows; --model_name_or_path says which model represents them")
    rows = {spec: _sample(_load(spec), max_rows, seed) for spec in specs if not spec.stored}  # all input errors first
    out = []
    for spec in specs:
        if spec.stored:
            out.append(_read_stored(spec, max_rows, seed))
            continue
        assert model is not None and options is not None and facts is not None
        chosen, n_total = rows[spec]
        store = output / "reps" / f"{spec.role}_{hash_json([spec.role, spec.name])}"
        source = {"path": spec.path, "split": spec.split, "max_rows": max_rows, "seed": seed}
        extract_representations(
            chosen, source, model, options, facts, store, batch_tokens, export=False, overwrite=True
        )
        out.append(_from_store(spec, store, chosen, n_total))
    _check(out)
    if any(list(one.matrices) == [BARE_VIEW] for one in out):  # bare tensors do not say what they are: first with first
        for one in out:
            one.matrices = {BARE_VIEW: next(iter(one.matrices.values()))}
    common = [view for view in out[0].matrices if all(view in one.matrices for one in out)]
    if not common:
        shown = "; ".join(f"{one.name}: {', '.join(one.matrices)}" for one in out)
        raise UserError(f"the sets share no layer and position ({shown}); extract them with the same options")
    for one in out:
        one.matrices = {view: one.matrices[view] for view in common}
    return out


def _load(spec: SetSpec) -> list[Row]:
    return load_rows(spec.path, split=spec.split)


def _sample(rows: list[Row], max_rows: int, seed: int) -> tuple[list[Row], int]:
    return [rows[i] for i in _sample_numbers(len(rows), max_rows, seed)], len(rows)


def _sample_numbers(n: int, max_rows: int, seed: int) -> list[int]:
    if n <= max_rows:
        return list(range(n))
    import numpy as np

    return sorted(np.random.default_rng(seed).choice(n, max_rows, replace=False).tolist())


def _from_store(spec: SetSpec, store: Path, rows: list[Row], n_total: int) -> AuditSet:
    manifest = stores.read_manifest(store)
    assert manifest is not None
    reps = {view: read_representations(store, view) for view in manifest["views"]}
    ids = next(iter(reps.values())).ids
    assert ids is not None
    by_id = {row["id"]: row for row in rows}
    source = next(iter(reps.values())).describe() | {
        "path": spec.path,
        "split": spec.split,
        "truncated": manifest["n_truncated"],
    }
    return AuditSet(spec, n_total, ids, [by_id[i] for i in ids], {v: r.matrix for v, r in reps.items()}, source)


def _read_stored(spec: SetSpec, max_rows: int, seed: int) -> AuditSet:
    """Stored representations; rows come along when the store's source is still there and unchanged."""
    kind, place = locate(spec.path)
    if kind == "store":
        manifest = stores.read_manifest(place)
        assert manifest is not None
        reps = {view: read_representations(place, view) for view in manifest["views"]}
    else:
        reps = {BARE_VIEW: read_representations(spec.path)}
    first = next(iter(reps.values()))
    rows = _source_rows(first)
    ids = first.ids or [str(number) for number in range(len(first))]
    keep = _sample_numbers(len(first), max_rows, seed)
    matrices = {view: one.matrix[keep] for view, one in reps.items()}
    return AuditSet(
        spec,
        len(first),
        [ids[i] for i in keep],
        None if rows is None else [rows[i] for i in keep],
        matrices,
        first.describe(),
    )


def _source_rows(reps: Representations) -> list[Row] | None:
    if reps.manifest is None or reps.ids is None:
        return None
    source = reps.manifest["source"]
    try:
        rows = load_rows(source["path"], split=source.get("split"), limit=source.get("limit"))
    except UserError:
        return None
    if hash_rows(rows) != reps.manifest["data_hash"]:
        return None
    by_id = {row["id"]: row for row in rows}
    return [by_id[i] for i in reps.ids]


def _check(sets: list[AuditSet]) -> None:
    """All sets against the first: width, model, text part, style (through the same check as a selection)."""
    first = _as_representations(sets[0])
    for other in sets[1:]:
        check_comparable(first, _as_representations(other))


def _as_representations(one: AuditSet) -> Representations:
    matrix = next(iter(one.matrices.values()))
    source = one.source
    manifest = {"model": source["model"], "options": source["options"]} if "model" in source else None
    return Representations(one.spec.path, matrix, None, None, manifest, None if manifest is None else "any")
