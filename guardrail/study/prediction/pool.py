"""The pool of downstream rows, with a gradient of harmful ones planted in it, and its cuts into bins by a score.

A planted pool is made of as many parts as there are bins. Each part has the same number of rows, of which the share
``doses_percent`` is harmful; a row knows its part's share as ``dose_percent``. The oracle scores a row by that number:
its bins are the parts. The pool is shuffled, so that equal scores are cut at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from guardrail.core.errors import UserError
from guardrail.data.rows import Row, load_rows
from guardrail.similarity.audit.sets import parse_set
from guardrail.similarity.selection.composition import answer_text, is_list, length_chars
from guardrail.study.prediction.options import Prediction

LENGTH_STRATA = 5
DOSE = "dose_percent"
PLANTED = "planted_harmful"


def load(source: str) -> list[Row]:
    """The answered rows of PATH or PATH::SPLIT."""
    spec = parse_set("rows", f"={source}")
    return load_rows(spec.path, split=spec.split, need_answer=True, max_dropped_fraction=1.0)


def make_pool(prediction: Prediction, seed: int) -> tuple[list[Row], list[Row]]:
    """The pool in random order, and the harmful rows that are left over. ``UserError`` where there are too few rows."""
    generator = np.random.default_rng(seed)
    n, n_bins = prediction.rows_per_bin, prediction.n_bins
    benign = _shuffled(load(prediction.benign), generator)
    harmful = _shuffled(load(prediction.harmful), generator) if prediction.harmful else []
    counts = [round(n * dose / 100) if harmful else 0 for dose in prediction.doses_percent]
    for name, rows, needed in (
        ("benign", benign, n * n_bins - sum(counts)),
        ("harmful", harmful, sum(counts)),
    ):
        if len(rows) < needed:
            raise UserError(f"prediction.{name} has {len(rows)} rows, the pool needs {needed}; lower rows_per_bin")
    taken = {row["id"] for row in benign}
    pool: list[Row] = []
    places = [0, 0]
    for dose, count in zip(prediction.doses_percent, counts, strict=True):
        for kind, rows, how_many in ((0, benign, n - count), (1, harmful, count)):
            for row in rows[places[kind] : places[kind] + how_many]:
                name = f"{row['id']}#harmful" if kind and row["id"] in taken else row["id"]
                planted = {DOSE: dose, PLANTED: bool(kind)} if harmful else {}
                pool.append({**row, "id": name, **planted})
            places[kind] += how_many
    return _shuffled(pool, generator), harmful[places[1] :]


def _shuffled(rows: list[Row], generator: np.random.Generator) -> list[Row]:
    return [rows[i] for i in generator.permutation(len(rows))]


def cut(scores: np.ndarray, n_bins: int, strata: Sequence[Any] | None = None) -> np.ndarray:
    """(n,) bin of every row, 0 for the lowest scores: bins of equal size, within ``strata`` where these are given.

    A stratum's rows that cannot be shared out evenly go to bins that differ from stratum to stratum, so that the bins'
    sizes differ by little. Rows with equal scores are cut in their order.
    """
    labels = np.zeros(len(scores), dtype=int) if strata is None else np.unique(strata, return_inverse=True)[1]
    out = np.empty(len(scores), dtype=int)
    given = 0
    for label in range(labels.max() + 1):
        members = np.flatnonzero(labels == label)
        order = members[np.argsort(scores[members], kind="stable")]
        size, rest = divmod(len(order), n_bins)
        sizes = np.full(n_bins, size)
        sizes[(given + np.arange(rest)) % n_bins] += 1
        given += rest
        out[order] = np.repeat(np.arange(n_bins), sizes)
    return out


def strata_of(rows: Sequence[Row]) -> list[str]:
    """Length (fifths of the pool's answers) and format (list or not) of every row."""
    lengths = np.array([length_chars(row) for row in rows])
    edges = np.quantile(lengths, np.arange(1, LENGTH_STRATA) / LENGTH_STRATA)
    fifths = np.searchsorted(edges, lengths, side="right")
    return [f"{fifth} {is_list(answer_text(row))}" for fifth, row in zip(fifths, rows, strict=True)]


def describe_bin(rows: Sequence[Row]) -> dict[str, Any]:
    """What a bin is made of: size, length, lists, and the planted harm where there is some."""
    out: dict[str, Any] = {
        "n": len(rows),
        "response_chars": round(float(np.mean([length_chars(row) for row in rows])), 2),
        "list_share_percent": round(100 * float(np.mean([is_list(answer_text(row)) for row in rows])), 2),
    }
    if PLANTED in rows[0]:
        out["harmful_percent"] = round(100 * float(np.mean([row[PLANTED] for row in rows])), 2)
    return out
