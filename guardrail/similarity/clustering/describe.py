"""What a cluster is: size, similarity inside, silhouette, list share, lengths, the rows nearest to its centre.

Centre = mean of the cluster's unit rows. All cosines. Shapes: N rows, D hidden, K clusters.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from guardrail.core.errors import UserError
from guardrail.data.rows import Row
from guardrail.similarity.selection.composition import answer_text, describe_rows, is_list

SILHOUETTE_ROWS = 5000
NEAREST = 5
Array = np.ndarray[Any, Any]


def mean_pairwise_cosine(unit: Array) -> float | None:
    """Mean cosine over all pairs of different rows, from the norm of their sum; ``None`` for one row."""
    n = len(unit)
    total = unit.sum(axis=0, dtype=np.float64)
    own = float((unit.astype(np.float64) ** 2).sum())
    return (float(total @ total) - own) / (n * (n - 1)) if n > 1 else None


def silhouettes(unit: Array, labels: Array, seed: int) -> tuple[dict[int, float], int]:
    """Mean cosine silhouette per cluster in [-1, 1], and on how many rows (a seeded sample above 5,000)."""
    from sklearn.metrics import silhouette_samples

    rows = np.flatnonzero(labels >= 0)
    if len(rows) > SILHOUETTE_ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, SILHOUETTE_ROWS, replace=False))
    names = np.unique(labels[rows])
    if not 2 <= len(names) < len(rows):
        return {}, 0
    values = silhouette_samples(unit[rows], labels[rows], metric="cosine")
    return {int(name): float(values[labels[rows] == name].mean()) for name in names}, len(rows)


def describe_clusters(unit: Array, labels: Array, rows: list[Row], seed: int) -> list[dict[str, Any]]:
    """One entry per cluster in order of its number, hdbscan's noise (-1) last; ``rows[i]`` belongs to ``unit[i]``."""
    silhouette, silhouette_rows = silhouettes(unit, labels, seed)
    out = []
    for label in sorted((int(name) for name in np.unique(labels)), key=lambda name: (name < 0, name)):
        members = np.flatnonzero(labels == label)
        centre = unit[members].mean(axis=0)
        centre = centre / max(float(np.linalg.norm(centre)), 1e-12)
        to_centre = unit[members] @ centre
        nearest = members[np.argsort(-to_centre, kind="stable")[:NEAREST]]
        inside = mean_pairwise_cosine(unit[members])
        composition = describe_rows([rows[i] for i in members], top_categories=5)
        out.append(
            {
                "cluster": label,
                "size": len(members),
                "mean_pairwise_cosine": None if inside is None else round(inside, 6),
                "mean_cosine_to_centre": round(float(to_centre.mean()), 6),
                "silhouette": round(silhouette[label], 6) if label in silhouette else None,
                "silhouette_rows": silhouette_rows,
                "list_fraction": composition["list_fraction"],
                "length_chars": composition["length_chars"],
                "categories": composition["categories"],
                "nearest_to_centre": [{"id": rows[i]["id"], "list": is_list(answer_text(rows[i]))} for i in nearest],
            }
        )
    return out


def choose_cluster(clusters: list[dict[str, Any]], select: str, min_size: int) -> tuple[int, str]:
    """The chosen cluster's number and the rule in words.

    ``select``: ``similarity`` (highest mean pairwise cosine among clusters of at least ``min_size`` rows), ``list``
    (highest list share among them), or a cluster's number. Noise is never chosen by rule.
    """
    by_number = {entry["cluster"]: entry for entry in clusters}
    if select.lstrip("-").isdigit():
        if int(select) not in by_number:
            raise UserError(f"--select {select}: no such cluster; there are {', '.join(map(str, by_number))}")
        return int(select), "named with --select"
    eligible = [c for c in clusters if c["cluster"] >= 0 and c["size"] >= max(2, min_size)]
    if not eligible:
        largest = max((c["size"] for c in clusters if c["cluster"] >= 0), default=0)
        raise UserError(f"no cluster has --min_group_size {min_size} rows (the largest has {largest}); lower it")
    key = "mean_pairwise_cosine" if select == "similarity" else "list_fraction"
    best = max(eligible, key=lambda entry: (entry[key], -entry["cluster"]))
    what = "mean pairwise cosine" if select == "similarity" else "list share"
    return best["cluster"], f"highest {what} among the {len(eligible)} clusters of at least {min_size} rows"


def stability(labelings: list[Array]) -> dict[str, Any]:
    """Adjusted Rand index between every two labelings of the same rows: 1 identical, about 0 unrelated."""
    from sklearn.metrics import adjusted_rand_score

    pairs = [
        float(adjusted_rand_score(labelings[i], labelings[j]))
        for i in range(len(labelings))
        for j in range(i + 1, len(labelings))
    ]
    if not pairs:
        return {"n_seeds": len(labelings), "adjusted_rand_index": None}
    return {
        "n_seeds": len(labelings),
        "adjusted_rand_index": {
            "mean": round(float(np.mean(pairs)), 4),
            "min": round(min(pairs), 4),
            "max": round(max(pairs), 4),
        },
    }
