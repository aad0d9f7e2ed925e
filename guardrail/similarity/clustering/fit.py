"""Cluster representations in cosine geometry: rows have length 1, where squared distance is 2 - 2 cos.

 Shapes: N rows, D hidden, K clusters.
Known limits: agglomerative and hdbscan hold N x N or tree structures; they are refused above 20,000 rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from guardrail.core.errors import UserError, unknown
from guardrail.similarity.scorers.cosines import Matrix, RowView, unit_blocks, unit_rows

ALGORITHMS = ("kmeans", "minibatch_kmeans", "agglomerative", "hdbscan")
NEEDS_SEED = ("kmeans", "minibatch_kmeans")
MAX_QUADRATIC_ROWS = 20_000
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
    if algorithm == "kmeans":
        from sklearn.cluster import KMeans

        labels = KMeans(n_clusters, n_init=restarts, random_state=seed).fit_predict(unit)
    elif algorithm == "minibatch_kmeans":
        from sklearn.cluster import MiniBatchKMeans

        labels = MiniBatchKMeans(n_clusters, n_init=restarts, random_state=seed, batch_size=4096).fit_predict(unit)
    elif algorithm == "agglomerative":
        from sklearn.cluster import AgglomerativeClustering

        labels = AgglomerativeClustering(n_clusters, metric="cosine", linkage="average").fit_predict(unit)
    else:
        from sklearn.cluster import HDBSCAN

        labels = HDBSCAN(min_cluster_size=min_cluster_size, copy=True).fit_predict(unit)
    return renumber(labels)


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
