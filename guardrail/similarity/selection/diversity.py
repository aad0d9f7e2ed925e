"""Diversity and coverage of a set of representations. Rows are normalised to length 1 first: cosine geometry.

With x_i the unit rows, K = X X^T (n x n, ones on the diagonal) and n rows of width D:

| name | definition | range | source |
|---|---|---|---|
| log_det | log det(I + K) | [log(1 + n), n log 2] | DPP (Kulesza, Taskar 2012); the paper's kind |
| log_det_fraction | log_det / (n log 2) | (0, 1]; 1: all orthogonal | |
| vendi_score | exp of the entropy of the eigenvalues of K / n | [1, n] | Friedman, Dieng 2023 |
| mean_pairwise_cosine | mean of K off the diagonal | [-1 / (n - 1), 1] | |
| participation_ratio | (sum l)^2 / sum l^2, l eigenvalues of the covariance | [1, min(D, n - 1)] | dimension |
| cluster_entropy | entropy of the pool's clusters in the set / log(clusters) | [0, 1] | |
| near_duplicate_fraction | rows with an earlier row at cosine >= threshold | [0, 1) | |
| coverage_mean_cosine | mean over pool rows of the largest cosine to the set | [-1, 1] | facility location |

log_det depends on n: compare sets of one size. I + K, not K: K is singular as soon as n > D or two rows agree.
Eigenvalues come from the smaller of the (n, n) and (D, D) Gram matrices.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from guardrail.similarity.scorers.cosines import Matrix, Products, score_pool, unit_blocks

NEAR_DUPLICATE_COSINE = 0.99
MAX_DOUBLE_WIDTH = 2048
Array = np.ndarray[Any, Any]


def unit_gram(matrix: Matrix) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Second moments of the unit rows: ``(Gram, sum of rows (D,), row sums of the n x n Gram or None)``.

    The Gram matrix is X X^T (n, n) when n <= D, else X^T X (D, D), accumulated in blocks.
    """
    n, D = matrix.shape
    total = torch.zeros(D, dtype=torch.float64)
    gram = torch.zeros((D, D), dtype=torch.float32) if n > D else torch.empty(0)
    rows = []
    for _, unit in unit_blocks(matrix):
        total += unit.sum(dim=0, dtype=torch.float64)
        if n > D:
            gram.addmm_(unit.T, unit)
        else:
            rows.append(unit)
    if n <= D:
        unit = torch.cat(rows)
        return unit @ unit.T, total, unit @ total.float()
    return gram, total, torch.empty(0)


def eigenvalues(gram: torch.Tensor) -> Array:
    """Eigenvalues of a symmetric positive semi-definite matrix, ascending, clipped at 0 (float64)."""
    matrix = gram.double() if gram.shape[0] <= MAX_DOUBLE_WIDTH else gram
    return np.clip(torch.linalg.eigvalsh(matrix).double().numpy(), 0.0, None)


def describe_diversity(
    matrix: Matrix,
    pool: Matrix | None = None,
    pool_clusters: Array | None = None,
    members: Array | None = None,
    near_duplicate_cosine: float = NEAR_DUPLICATE_COSINE,
) -> dict[str, Any]:
    """All measures of the table above for the rows of ``matrix`` (n, D); ``None`` where one is undefined.

    Args:
        pool: adds ``coverage_mean_cosine``. ``pool_clusters`` (labels of all pool rows) with ``members`` (row numbers
            of the set) adds ``cluster_entropy``.

    ``near_duplicate_fraction`` costs n^2 D and is ``None`` above 50,000 rows.
    """
    n = matrix.shape[0]
    gram, total, row_sums = unit_gram(matrix)
    values = eigenvalues(gram)
    trace = float(values.sum())
    log_det = float(np.log1p(values).sum())
    share = values / max(trace, 1e-30)
    share = share[share > 1e-12]
    pairs = (float(total @ total) - trace) / (n * (n - 1)) if n > 1 else None
    out: dict[str, Any] = {
        "n": n,
        "log_det": log_det,
        "log_det_fraction": log_det / (n * math.log(2)),
        "vendi_score": float(np.exp(-(share * np.log(share)).sum())),
        "mean_pairwise_cosine": pairs,
        "participation_ratio": participation_ratio(gram, total, row_sums, n),
        "near_duplicate_fraction": near_duplicate_fraction(matrix, near_duplicate_cosine) if n <= 50_000 else None,
        "near_duplicate_cosine": near_duplicate_cosine,
        "cluster_entropy": None,
        "coverage_mean_cosine": None,
    }
    if pool_clusters is not None and members is not None:
        out["cluster_entropy"] = cluster_entropy(pool_clusters, members)
    if pool is not None:
        out["coverage_mean_cosine"] = float(score_pool(pool, matrix).mean())
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in out.items()}


def participation_ratio(gram: torch.Tensor, total: torch.Tensor, row_sums: torch.Tensor, n: int) -> float | None:
    """(trace C)^2 / trace C^2 of the covariance C of the unit rows: the number of directions sharing the variance.

    From the Gram matrix G: centring subtracts the mean m = total / n. For the (D, D) form C = G - n m m^T; for the
    (n, n) form the centred Gram is G - r 1^T - 1 r^T + (m.m) 1 1^T with r = row sums / n. Float64 throughout.
    """
    mean = total / n
    centred = gram.double() if gram.shape[0] <= MAX_DOUBLE_WIDTH else gram
    if len(row_sums):
        r = (row_sums / n).to(centred.dtype)
        centred = centred - r[:, None] - r[None, :] + float(mean @ mean)
    else:
        centred = centred - (n * torch.outer(mean, mean)).to(centred.dtype)
    trace, square = float(centred.trace()), float(torch.linalg.matrix_norm(centred)) ** 2
    return trace**2 / square if trace > 1e-6 * n and square > 0 else None


def cluster_entropy(pool_clusters: Array, members: Array) -> float | None:
    """Entropy of the members' cluster labels over the logarithm of the pool's number of clusters."""
    n_clusters = len(np.unique(pool_clusters))
    if n_clusters < 2:
        return None
    _, counts = np.unique(pool_clusters[members], return_counts=True)
    share = counts / counts.sum()
    return abs(float(-(share * np.log(share)).sum())) / math.log(n_clusters)


def near_duplicate_fraction(matrix: Matrix, threshold: float) -> float:
    """Share of rows with an *earlier* row at cosine >= threshold: what de-duplication would remove. In blocks."""
    products = Products(matrix, matrix)
    found = torch.zeros(matrix.shape[0], dtype=torch.bool)
    for part in products.parts():
        needed = ((threshold - 1e-6) / products.pool_inverse[part].clamp(min=1e-30)).to(products.device)[:, None]
        for columns, product in products.rows(part):
            if columns.start >= part.stop:
                break  # later rows only
            close = product >= needed
            if columns.stop > part.start:  # the block on the diagonal: earlier rows only
                rows = torch.arange(part.start, part.stop, device=products.device)[:, None]
                close &= torch.arange(columns.start, columns.stop, device=products.device)[None, :] < rows
            found[part] |= close.any(dim=1).cpu()
    return float(found.float().mean())
