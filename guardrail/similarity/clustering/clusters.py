"""Cluster representations in cosine geometry, and say what every cluster is.

Rows have length 1, where squared distance is 2 - 2 cos. A cluster is described by its size, the similarity inside,
silhouette, list share, lengths and the rows nearest to its centre (the mean of its unit rows); all cosines.

Shapes: N rows, D hidden, K clusters.
Known limits: agglomerative and hdbscan hold N x N or tree structures; they are refused above 20,000 rows.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import torch

from guardrail.core.errors import UserError, unknown
from guardrail.data.rows import Row
from guardrail.similarity.clustering.options import ALGORITHMS
from guardrail.similarity.scorers.cosines import Matrix, RowView, blocks, unit_blocks, unit_rows
from guardrail.similarity.selection.composition import answer_text, describe_rows, is_list

MAX_QUADRATIC_ROWS = 20_000
SILHOUETTE_ROWS = 5000
NEAREST = 5
BLOCK_ROWS = 2048  # rows that become float64 at a time: a pool is never copied
Array = np.ndarray[Any, Any]


def unit_array(matrix: torch.Tensor) -> Array:
    """Unit rows as float32 (N, D); ``UserError`` when a row is not finite."""
    return torch.cat([block for _, block in unit_blocks(matrix)]).numpy()


def fit_labels(
    unit: Array, algorithm: str, n_clusters: int, seed: int, restarts: int = 10, min_cluster_size: int = 5
) -> Array:
    """Cluster numbers (N,) int64 of unit rows; -1 marks hdbscan's noise. Numbered by descending size, then first row.

    Args:
        n_clusters: ignored by hdbscan, which finds the number from ``min_cluster_size``.
        seed, restarts: of the k-means variants.

    Raises ``UserError``: unknown algorithm, fewer (distinct) rows than clusters, too many rows for a quadratic one.
    """
    if algorithm not in ALGORITHMS:
        raise unknown("--clustering", algorithm, ALGORITHMS)
    N = unit.shape[0]
    if algorithm != "hdbscan":
        if n_clusters < 2:
            raise UserError(f"--n_clusters {n_clusters} makes no groups; expected at least 2")
        if n_clusters > N:
            raise UserError(f"--n_clusters {n_clusters} is more than the {N} rows; lower it")
    if algorithm in ("agglomerative", "hdbscan") and N > MAX_QUADRATIC_ROWS:
        raise UserError(
            f"{algorithm} needs memory that grows with the square of the rows; {N} are too many, use kmeans"
        )
    from sklearn import cluster

    if algorithm == "kmeans":
        model = cluster.KMeans(n_clusters, n_init=restarts, random_state=seed)
    elif algorithm == "minibatch_kmeans":
        model = cluster.MiniBatchKMeans(n_clusters, n_init=restarts, random_state=seed, batch_size=4096)
    elif algorithm == "agglomerative":
        model = cluster.AgglomerativeClustering(n_clusters, metric="cosine", linkage="average")
    else:
        model = cluster.HDBSCAN(min_cluster_size=min_cluster_size, copy=True)
    return renumber(model.fit_predict(unit))


def renumber(labels: Array) -> Array:
    """The same groups numbered by descending size, then by first row; -1 stays."""
    names, first, counts = np.unique(labels, return_index=True, return_counts=True)
    real = names >= 0
    order = np.lexsort((first[real], -counts[real]))
    new = {int(old): position for position, old in enumerate(names[real][order])} | {-1: -1}
    return np.asarray([new[int(label)] for label in labels], dtype=np.int64)


def label_rows(matrix: Matrix, n_clusters: int, seed: int, sample: int) -> Array:
    """Mini-batch k-means labels of all rows from centres fitted on at most ``sample`` of them; blocks throughout."""
    from sklearn.cluster import MiniBatchKMeans

    rows = np.arange(matrix.shape[0])
    if len(rows) > sample:
        rows = np.sort(np.random.default_rng(seed).choice(len(rows), sample, replace=False))
    model = MiniBatchKMeans(n_clusters, n_init=3, random_state=seed, batch_size=2048)
    model.fit(unit_rows(RowView(matrix, rows)).numpy())
    labels = np.empty(matrix.shape[0], dtype=np.int64)
    for part, block in unit_blocks(matrix):
        labels[part] = model.predict(block.numpy())
    return labels


def mean_pairwise_cosine(unit: Array) -> float | None:
    """Mean cosine over all pairs of different rows, from the norm of their sum; ``None`` for one row."""
    n = len(unit)
    total = unit.sum(axis=0, dtype=np.float64)
    own = sum(float((unit[part].astype(np.float64) ** 2).sum()) for part in blocks(n, BLOCK_ROWS))
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

    pairs = [float(adjusted_rand_score(a, b)) for a, b in combinations(labelings, 2)]
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
