"""Rankings of the pool: one stable sort, ties by row order; the merge rules for per-anchor lists.

A selection run hands the pool over in the order of its ids (`compute`), so that there ties go by id.

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
import torch

from guardrail.similarity.scorers import cosines
from guardrail.similarity.scorers.cosines import BUDGET_BYTES, FIXED_POINT, FixedRows, Matrix, blocks

Array = np.ndarray[Any, Any]


def rank_rows(scores: Array) -> Array:
    """Row numbers by descending score, ties by row order, (N,) int64."""
    return np.argsort(-scores, kind="stable").astype(np.int64)


def merged_order(pool: Matrix, anchors: Matrix, scores: Array, merge: str, select_n: int, nearest: bool) -> Array:
    """The first ``select_n`` rows under ``union`` or ``round_robin``, the most extreme first, (select_n,) int64."""
    N, M = pool.shape[0], anchors.shape[0]
    depth = min(select_n, max(16, -(-4 * select_n // M)))
    ranks, values = best_ranks(pool, anchors, depth, nearest)
    if (ranks < N).sum() < select_n and depth < select_n:  # the lists overlap much: look as deep as it can take
        ranks, values = best_ranks(pool, anchors, select_n, nearest)
    sign = -1.0 if nearest else 1.0
    if merge == "round_robin":
        order = np.lexsort((np.arange(N), sign * values, ranks))
        return order[:select_n].astype(np.int64)
    last_rank = np.sort(ranks, kind="stable")[select_n - 1]  # K - 1
    union = np.flatnonzero(ranks <= last_rank)
    order = union[np.argsort(sign * scores[union], kind="stable")]
    return order[:select_n].astype(np.int64)


def best_ranks(
    pool: Matrix, anchors: Matrix, depth: int, nearest: bool, device: torch.device | None = None
) -> tuple[Array, Array]:
    """Per pool row, its best place in any anchor's list and its cosine there: ``(ranks (N,), cosines (N,))``.

    Every anchor lists the pool by descending cosine (ascending with ``nearest=False``); place 0 is the first, equal
    cosines go by row order. Rows in no list's first ``depth`` places have rank N. A float32 product finds the
    candidates of a list and exact cosines order them; where that is more work, all cosines are computed exactly.
    Memory is O(N) beyond the blocks: lists are used and dropped.
    """
    N, M = pool.shape[0], anchors.shape[0]
    sign = 1.0 if nearest else -1.0
    device = device or cosines.pick_scoring_device()
    inverse = sign * cosines.inverse_norms(pool, "pool").to(device)
    anchor_inverse = cosines.inverse_norms(anchors, "anchors")
    depth = min(depth, N)
    fixed = FixedRows(pool, depth * M)
    ranks, best = np.full(N, N), np.zeros(N)
    # (m, N) products and their mask; the largest ones with indices; candidates, sorted
    m = max(1, min(M, BUDGET_BYTES // 2 // (5 * N + 80 * depth)))
    size = cosines.block_rows(pool.shape[1], BUDGET_BYTES // 4)
    for part in blocks(M, m):
        count = part.stop - part.start
        limit = min(cosines.MAX_CANDIDATES * depth * count // 4, N + N * count // 24)
        lists, rows = np.empty(0, np.int64), np.empty(0, np.int64)
        if depth * count <= limit:
            unit = anchors[part].to(device, torch.float32) * anchor_inverse[part].to(device)[:, None]
            product = torch.empty((count, N), dtype=torch.float32, device=device)
            for columns in blocks(N, size):
                torch.mm(unit, pool[columns].to(device, torch.float32).T, out=product[:, columns])
            product *= inverse
            bound = torch.topk(product, depth, sorted=False).values.amin(dim=1).cpu().numpy()
            lists, rows = cosines.at_least(product, bound - np.float32(cosines.margin(pool.shape[1])))
            del product
        if 0 < len(rows) <= limit:
            values = sign * cosines.exact_cosines(anchors, lists + part.start, fixed, rows)
        else:
            lists, rows, values = _whole_lists(fixed, anchors[part], depth, sign, device)
        order = np.lexsort((rows, -values, lists))
        lists, rows, values = lists[order], rows[order], values[order]
        places = np.arange(len(lists)) - np.searchsorted(lists, np.arange(count))[lists]
        # one entry per row: its best of these lists, if better than what it has
        listed = np.flatnonzero(places < depth)
        listed = listed[np.lexsort((-values[listed], places[listed], rows[listed]))]
        listed = listed[np.diff(rows[listed], prepend=-1) > 0]
        own, place, value = rows[listed], places[listed], values[listed]
        better = (place < ranks[own]) | ((place == ranks[own]) & (value > best[own]))
        ranks[own[better]], best[own[better]] = place[better], value[better]
    return ranks, sign * best


def _whole_lists(
    pool: FixedRows, anchors: torch.Tensor, depth: int, sign: float, device: torch.device
) -> tuple[Array, Array, Array]:
    """The first ``depth`` places of every anchor's list from all cosines: (anchor, row, sign * cosine) of each."""
    N, D = pool.matrix.shape
    found = []
    for part in blocks(len(anchors), max(1, BUDGET_BYTES // 2 // (8 * N))):
        unit = cosines.fixed_point(anchors[part]).to(device)
        product = torch.empty((len(unit), N), dtype=torch.float64, device=device)
        for columns in blocks(N, max(16, BUDGET_BYTES // 8 // (16 * D))):
            others = torch.from_numpy(pool[np.arange(columns.start, columns.stop)]).to(device)
            product[:, columns] = unit @ others.T
        product *= sign / FIXED_POINT**2
        for anchor, row in enumerate(product.cpu().numpy(), part.start):
            candidates = np.flatnonzero(row >= np.partition(row, N - depth)[N - depth])
            listed = candidates[np.argsort(-row[candidates], kind="stable")[:depth]]
            found.append((np.full(depth, anchor), listed, row[listed]))
    lists, rows, values = (np.concatenate(one) for one in zip(*found, strict=True))
    return lists, rows, values


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
        "rule": "id",
    }
