"""How much does the choice of layer and position decide the subset? Selected sets compared over a store's views.

For two sets A, B: Jaccard = |A and B| / |A or B|; two random subsets of n of N rows have about n / (2N - n).
Writes ``sweep.json`` and ``sweep.png`` beside the subsets. Both stores must hold the views
(``get_representation.py --layer 8,16,-1 --position eos,prompt_last``).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from guardrail.core.errors import UserError
from guardrail.similarity.representations.read import Representations

Array = np.ndarray[Any, Any]


def split_view(view: str) -> tuple[int, str]:
    """``layer16_eos`` as ``(16, "eos")``."""
    match = re.fullmatch(r"layer(\d+)_(\w+)", view)
    assert match is not None, view
    return int(match.group(1)), match.group(2)


def sweep_views(pool: Representations, anchors: Representations, sweep: tuple[str, ...]) -> list[str]:
    """Views in both stores that differ from the chosen one only in what is swept, by layer then position.

    Raises ``UserError`` with the command to run when there is nothing to compare.
    """
    if pool.manifest is None or anchors.manifest is None or pool.view is None:
        raise UserError("--sweep needs representation stores, not bare tensors: run get_representation.py first")
    layer, position = split_view(pool.view)
    shared = [view for view in pool.manifest["views"] if view in anchors.manifest["views"]]
    parts = [(*split_view(view), view) for view in shared]
    kept = sorted(
        part
        for part in parts
        if ("layers" in sweep or part[0] == layer) and ("positions" in sweep or part[1] == position)
    )
    if len(kept) < 2:
        raise UserError(
            f"--sweep {','.join(sweep)}: the two stores share only {', '.join(shared)}; extract both with several, "
            "e.g. --layer 8,16,-1 --position eos,completion_mean"
        )
    return [view for _, _, view in kept]


def jaccard(a: Array, b: Array) -> float:
    """|A and B| / |A or B| of two sets of row numbers, 0 to 1."""
    left, right = set(a.tolist()), set(b.tolist())
    return len(left & right) / len(left | right)


def compare_views(chosen: dict[str, Array], n_pool: int) -> dict[str, Any]:
    """Jaccard between every two views' sets: matrix, mean off the diagonal, and what chance would give."""
    views = list(chosen)
    matrix = [[round(jaccard(chosen[a], chosen[b]), 4) for b in views] for a in views]
    off = [matrix[i][j] for i in range(len(views)) for j in range(i)]
    n = len(chosen[views[0]])
    return {
        "jaccard": matrix,
        "mean_jaccard": round(float(np.mean(off)), 4),
        "min_jaccard": min(off),
        "jaccard_by_chance": round(n / (2 * n_pool - n), 4),
    }


def run_sweep(
    views: list[str], selectors: tuple[str, ...], n_pool: int, choose: Callable[[str], dict[str, Array]]
) -> dict[str, Any]:
    """``choose(view)`` gives every selector's row numbers under one view; returns one comparison per selector."""
    chosen = {view: choose(view) for view in views}
    return {
        "views": views,
        "selectors": {name: compare_views({v: chosen[v][name] for v in views}, n_pool) for name in selectors},
    }
