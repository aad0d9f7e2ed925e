"""Rankings of the pool: one stable sort, ties by row order; the merge rules for per-anchor lists.

The paper words the selection per downstream example: for each, the K most (High-Sim) or least (Low-Sim) similar rows
of the alignment pool. No public code merges such lists, so the rules are stated here. N_sel is ``--select_n``.

* ``score`` (default): rank by the mean of a row's ``avg_n`` largest cosines to the anchors; first N_sel and last N_sel.
  With ``avg_n`` 1 this ranks by "similarity to the most similar downstream example".
* ``mean``: rank by the mean cosine to all anchors (``score`` with ``avg_n`` M).
* ``union``: take every anchor's first K rows with the smallest K whose union has at least N_sel rows, then keep the
  N_sel rows of the union with the best ``score`` (High-Sim: highest; Low-Sim: lowest).
* ``round_robin``: anchors contribute their first rows, then their second rows, and so on, a row once; within a round
  the more extreme cosine comes first; stop at exactly N_sel rows.

For ``union`` and ``round_robin`` the Low-Sim list is built from the anchors' *least* similar rows; it is not the tail
of the High-Sim ranking. Scores written beside the rows are always the ``score`` rule's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from guardrail.similarity.scorers.cosines import Matrix, best_ranks

Array = np.ndarray[Any, Any]


def rank_rows(scores: Array) -> Array:
    """Row numbers by descending score, ties by row order, (N,) int64."""
    return np.argsort(-scores, kind="stable").astype(np.int64)


def merged_order(pool: Matrix, anchors: Matrix, scores: Array, merge: str, select_n: int, nearest: bool) -> Array:
    """The first ``select_n`` rows under ``union`` or ``round_robin``, the most extreme first, (select_n,) int64."""
    N, M = pool.shape[0], anchors.shape[0]
    depth = min(select_n, max(16, -(-4 * select_n // M)))
    ranks, cosines = best_ranks(pool, anchors, depth, nearest)
    if (ranks < N).sum() < select_n and depth < select_n:  # the lists overlap much: look as deep as it can take
        ranks, cosines = best_ranks(pool, anchors, select_n, nearest)
    sign = -1.0 if nearest else 1.0
    if merge == "round_robin":
        order = np.lexsort((np.arange(N), sign * cosines, ranks))
        return order[:select_n].astype(np.int64)
    last_rank = np.sort(ranks, kind="stable")[select_n - 1]  # K - 1
    union = np.flatnonzero(ranks <= last_rank)
    order = union[np.argsort(sign * scores[union], kind="stable")]
    return order[:select_n].astype(np.int64)


def tie_report(scores: Array, select_n: int) -> dict[str, Any]:
    """Rows that share their score with another, and how many rows tie across each cut (inside and outside)."""
    _, counts = np.unique(scores, return_counts=True)
    order = np.sort(scores)[::-1]
    top, bottom = order[select_n - 1], order[len(order) - select_n]

    def crossing(cut: Any, inside: Array) -> int:
        total = int((scores == cut).sum())
        return total if total > int((inside == cut).sum()) else 0

    return {
        "rows_sharing_a_score": int(counts[counts > 1].sum()),
        "rows_tied_across_top_cut": crossing(top, order[:select_n]),
        "rows_tied_across_bottom_cut": crossing(bottom, order[-select_n:]),
        "rule": "row order",
    }
