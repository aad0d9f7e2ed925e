"""Selectors and controls on one interface: ``select(pool, n) -> row numbers in output order``; named in ``options``.

High-Sim against Low-Sim confounds similarity with diversity, length and format. Each control holds one rival fixed or
uses it alone, at the same budget:

* ``high``, ``low``: most and least similar rows (REFERENCE "Selection"); files ``top{N}`` and ``bottom{N}``.
* ``random``: uniform without replacement, by ``--seed``. ``full``: the whole pool (no budget).
* ``high_length_matched``, ``low_length_matched``: most/least similar rows inside each of ten length strata, in the
  pool's own proportions, so that both arms have the length distribution of a random subset.
* ``high_category_matched``, ``low_category_matched``: the same with the rows' category (topic).
* ``high_format_matched``, ``low_format_matched``: the same with list / no list.
* ``low_sim_low_div``: among the 3N least similar rows, the tightest N found around one of 16 seeds.
* ``high_sim_high_div``: among the 3N most similar rows, N by farthest-first traversal (maximin cosine distance).
  Both of them measure cosines in 128 random dimensions where D is larger.
  Together they swap diversity between the arms: Low-Sim is usually also more diverse.
* ``length_high``, ``length_low``: similarity of length alone: |log length - log length of the nearest anchor|.
* ``longest``, ``shortest``: by length, without anchors.
* ``bi_anchor_high``, ``bi_anchor_low``: LARF's score, mean cosine to unsafe anchors minus mean cosine to safe ones
  (LLLeoLi/LARF get_bi_rep_llama.py, whose ``avg`` equals its number of anchors).

Rows at a budget of 3N are capped by the pool: with N_sel above a third of it, these two controls weaken and say so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from guardrail.core.errors import UserError
from guardrail.data.rows import Row
from guardrail.similarity.scorers.cosines import CHUNK_BYTES, FIXED_POINT, Matrix, fixed_point
from guardrail.similarity.selection import ranking
from guardrail.similarity.selection.composition import answer_text, category_column, category_of, is_list, length_chars

Array = np.ndarray[Any, Any]
LENGTH_STRATA = 10
CANDIDATES = 3
BALL_SEEDS = 16
PROJECTION_DIM = 128


@dataclass
class Pool:
    """What selectors see. ``matrix`` is (N, D); ``scores`` (N,) float32 are the similarity scores of the rows."""

    rows: list[Row]
    seed: int = 0
    matrix: Matrix | None = None
    anchors: torch.Tensor | None = None
    scores: Array | None = None
    merge: str = "score"
    anchor_lengths: list[int] | None = None
    lengths: list[int] | None = None
    bi_anchor_scores: Array | None = None
    notes: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def note(self, selector: str, text: str) -> None:
        self.notes.setdefault(selector, []).append(text)


def high(pool: Pool, n: int) -> Array:
    assert pool.scores is not None
    if pool.merge in ("union", "round_robin"):
        assert pool.matrix is not None and pool.anchors is not None
        return ranking.merged_order(pool.matrix, pool.anchors, pool.scores, pool.merge, n, nearest=True)
    return ranking.rank_rows(pool.scores)[:n]


def low(pool: Pool, n: int) -> Array:
    """Least similar last, as the public code writes its bottom file."""
    assert pool.scores is not None
    if pool.merge in ("union", "round_robin"):
        assert pool.matrix is not None and pool.anchors is not None
        order = ranking.merged_order(pool.matrix, pool.anchors, pool.scores, pool.merge, n, nearest=False)
        return order[::-1].copy()
    return ranking.rank_rows(pool.scores)[-n:]


def random(pool: Pool, n: int) -> Array:
    return np.random.default_rng(pool.seed).choice(len(pool), size=n, replace=False).astype(np.int64)


def full(pool: Pool, n: int) -> Array:
    pool.note("full", f"the whole pool: {len(pool)} rows, not the budget of {n}")
    return np.arange(len(pool), dtype=np.int64)


def stratified(scores: Array, strata: Array, n: int, highest: bool) -> Array:
    """The best rows of every stratum, quotas in proportion to stratum sizes (largest remainders; exactly n rows)."""
    labels, sizes = np.unique(strata, return_counts=True)
    exact = n * sizes / sizes.sum()
    quotas = np.floor(exact).astype(int)
    for position in np.argsort(-(exact - quotas), kind="stable")[: n - quotas.sum()]:
        quotas[position] += 1
    order = ranking.rank_rows(scores if highest else -scores)
    chosen = [order[strata[order] == label][:quota] for label, quota in zip(labels, quotas, strict=True)]
    rows = np.sort(np.concatenate(chosen))
    return rows[np.argsort(-scores[rows], kind="stable")].astype(np.int64)


def length_strata(lengths: list[int]) -> Array:
    """Number of the length decile (from the pool itself) of every row; equal lengths share a stratum."""
    cuts = np.quantile(lengths, np.linspace(0, 1, LENGTH_STRATA + 1)[1:-1])
    return np.searchsorted(cuts, lengths, side="right")


def _lengths(pool: Pool) -> list[int]:
    return pool.lengths if pool.lengths is not None else [length_chars(row) for row in pool.rows]


def _matched(strata_of: Callable[[Pool], Array], highest: bool) -> Callable[[Pool, int], Array]:
    def select(pool: Pool, n: int) -> Array:
        assert pool.scores is not None
        return stratified(pool.scores, strata_of(pool), n, highest)

    return select


def _category_strata(pool: Pool) -> Array:
    column = category_column(pool.rows)
    if column is None:
        raise UserError("a category-matched selector needs a category (or source) column on every row of the pool")
    return np.asarray([category_of(row, column) for row in pool.rows])


def _format_strata(pool: Pool) -> Array:
    return np.asarray([is_list(answer_text(row)) for row in pool.rows])


def _candidates(pool: Pool, n: int, highest: bool, selector: str) -> Array:
    assert pool.scores is not None
    count = min(len(pool), CANDIDATES * n)
    if count < CANDIDATES * n:
        pool.note(selector, f"only {count / n:.2f} candidates per selected row (3 wanted): the control is weaker")
    order = ranking.rank_rows(pool.scores)
    return order[:count] if highest else order[-count:]


def low_sim_low_div(pool: Pool, n: int) -> Array:
    """The tightest ball of n rows among the 3n least similar: the n nearest to a centre, which is then re-centred."""
    assert pool.matrix is not None and pool.scores is not None
    rows = _candidates(pool, n, highest=False, selector="low_sim_low_div")
    rows = np.sort(rows)
    unit = project(pool.matrix, rows, pool.seed)
    best: tuple[float, Array] | None = None
    for seed in farthest_first(unit, min(BALL_SEEDS, len(rows))):
        centre = unit[seed]
        for _ in range(3):
            members = torch.sort(unit @ centre, descending=True, stable=True).indices[:n]
            total = unit[members].sum(dim=0)
            centre = fixed_point(total[None])[0]
        tightness = float(torch.linalg.vector_norm(total / FIXED_POINT)) / n  # grows with the mean pairwise cosine
        if best is None or tightness > best[0] + 1e-9:
            best = (tightness, members.numpy())
    assert best is not None
    chosen = rows[best[1]]
    return chosen[np.argsort(-pool.scores[chosen], kind="stable")]


def high_sim_high_div(pool: Pool, n: int) -> Array:
    """Farthest-first over the 3n most similar rows, from the most similar one, in a random projection if D > 128."""
    assert pool.matrix is not None and pool.scores is not None
    rows = _candidates(pool, n, highest=True, selector="high_sim_high_div")
    chosen = rows[farthest_first(project(pool.matrix, rows, pool.seed), n)]
    return chosen[np.argsort(-pool.scores[chosen], kind="stable")]


def project(matrix: Matrix, rows: Array, seed: int) -> torch.Tensor:
    """Unit rows in fixed point, projected at random to 128 dimensions if D is larger (cosines to about 0.1).

    Whole numbers throughout (``cosines.fixed_point``): sums of products are exact, so no choice hangs on rounding.
    """
    D = matrix.shape[1]
    size = max(16, CHUNK_BYTES // (8 * D))
    parts = [fixed_point(matrix[torch.from_numpy(rows[i : i + size])]) for i in range(0, len(rows), size)]
    if D <= PROJECTION_DIM:
        return torch.cat(parts)
    basis = torch.randn(D, PROJECTION_DIM, generator=torch.Generator().manual_seed(seed))
    basis = torch.round(basis.double() * 2**14)
    return torch.cat([fixed_point(part @ basis) for part in parts])


def farthest_first(unit: torch.Tensor, n: int) -> list[int]:
    """Greedy maximin: start at row 0, then always the row whose largest cosine to the chosen ones is smallest."""
    chosen = [0]
    nearest = unit @ unit[0]
    nearest[0] = torch.inf
    while len(chosen) < n:
        row = int(torch.argmin(nearest))
        chosen.append(row)
        nearest = torch.maximum(nearest, unit @ unit[row])
        nearest[row] = torch.inf
    return chosen


def _by_length_distance(highest: bool) -> Callable[[Pool, int], Array]:
    def select(pool: Pool, n: int) -> Array:
        assert pool.anchor_lengths is not None
        anchors = np.log(np.maximum(1, np.unique(pool.anchor_lengths)))
        own = np.log(np.maximum(1, np.asarray(_lengths(pool))))
        right = np.clip(np.searchsorted(anchors, own), 0, len(anchors) - 1)
        left = np.maximum(right - 1, 0)
        closeness = -np.minimum(np.abs(own - anchors[right]), np.abs(own - anchors[left]))
        order = ranking.rank_rows(closeness)
        return order[:n] if highest else order[-n:]

    return select


def _by_length(longest: bool) -> Callable[[Pool, int], Array]:
    def select(pool: Pool, n: int) -> Array:
        lengths = np.asarray(_lengths(pool), dtype=np.float64)
        return ranking.rank_rows(lengths if longest else -lengths)[:n]

    return select


def _by_bi_anchor(highest: bool) -> Callable[[Pool, int], Array]:
    def select(pool: Pool, n: int) -> Array:
        assert pool.bi_anchor_scores is not None
        order = ranking.rank_rows(pool.bi_anchor_scores)
        return order[:n] if highest else order[-n:]

    return select


def _length_strata_of(pool: Pool) -> Array:
    return length_strata(_lengths(pool))


high_length_matched, low_length_matched = _matched(_length_strata_of, True), _matched(_length_strata_of, False)
high_category_matched, low_category_matched = _matched(_category_strata, True), _matched(_category_strata, False)
high_format_matched, low_format_matched = _matched(_format_strata, True), _matched(_format_strata, False)
length_high, length_low = _by_length_distance(True), _by_length_distance(False)
longest, shortest = _by_length(True), _by_length(False)
bi_anchor_high, bi_anchor_low = _by_bi_anchor(True), _by_bi_anchor(False)
