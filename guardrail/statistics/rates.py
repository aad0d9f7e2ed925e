"""Rates with their intervals. Proportions are fractions in [0, 1] here; reports turn them into percent by name."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np

CONFIDENCE = 0.95
FEW_PROMPTS = 6  # a variance between clusters that comes from fewer of them than this is not believed
Numbers: TypeAlias = "Sequence[float] | np.ndarray"


def normal_quantile(probability: float) -> float:
    """The standard normal quantile function."""
    from statistics import NormalDist

    return NormalDist().inv_cdf(probability)


def score_interval(rate: float, n: float, quantile: float) -> tuple[float, float]:
    """Wilson's score interval of ``rate`` for any (effective) ``n`` and critical value; inside [0, 1], holds ``rate``.

    The set of p with |rate - p| <= quantile sqrt(p (1 - p) / n) (Wilson 1927, no continuity correction).
    """
    z = quantile
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return (0.0 if rate == 0 else max(0.0, min(rate, centre - half))), (
        1.0 if rate == 1 else min(1.0, max(rate, centre + half))
    )


def wilson_interval(successes: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval for a proportion. Raises ``ValueError`` unless 0 <= successes <= n and n >= 1."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"wilson_interval needs 0 <= successes <= n and n >= 1, got {successes} of {n}")
    return score_interval(successes / n, n, normal_quantile(0.5 + confidence / 2))


def unseen_share(n: float, quantile: float) -> float:
    """How large a share can be of which 0 in ``n`` were seen: Wilson's upper limit. No variance seen is not none."""
    return score_interval(0.0, n, quantile)[1]


def cluster_means(values: Numbers, clusters: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """``(sum, count)`` of the values of each cluster, clusters in order of first appearance."""
    import numpy as np

    index: dict[Hashable, int] = {}
    where = np.array([index.setdefault(c, len(index)) for c in clusters])
    array = np.asarray(values, dtype=np.float64)
    if len(where) != len(array):
        raise ValueError(f"{len(array)} values but {len(where)} cluster labels")
    return np.bincount(where, array, len(index)), np.bincount(where, minlength=len(index)).astype(np.float64)


def clustered_interval(
    hits: Sequence[bool], clusters: Sequence[Hashable], confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Interval for the share of ``hits`` when answers come in ``clusters`` (all samples of one prompt).

    Wilson's score interval at the effective sample size p (1 - p) / v (Kish 1965; Korn and Graubard 1998), v the
    variance of the ratio between clusters, with their correction for the degrees of freedom of v. It lies between
    1 and the number of answers. Near 0 and 1, where fewer than `FEW_PROMPTS` clusters have a hit (or a miss), v says
    little and the number of clusters is the effective size: samples of one prompt then count as one answer. Never of
    zero width; holds the share. With one answer per cluster this is close to ``wilson_interval``.
    """
    sums, counts = cluster_means([float(hit) for hit in hits], clusters)
    if not len(sums):
        raise ValueError("clustered_interval needs at least one answer")
    n, K = float(counts.sum()), len(sums)
    share = float(sums.sum() / n)
    size, tail = float(K), 0.5 + confidence / 2
    if min((sums > 0).sum(), (sums < counts).sum()) >= FEW_PROMPTS:
        from scipy.special import stdtrit  # Student's quantile as scipy.stats computes it, at a tenth of the import

        variance = K / (K - 1) * float(((sums - share * counts) ** 2).sum()) / n**2
        correction = (normal_quantile(tail) / float(stdtrit(K - 1, tail))) ** 2
        size = n if variance == 0 else min(n, max(1.0, share * (1 - share) / variance * correction))
    return score_interval(share, size, normal_quantile(tail))


def best_of_k(n_harmful: int, n_samples: int, k: int) -> float:
    """Probability that at least one of ``k`` samples is harmful, from ``n_harmful`` of ``n_samples`` observed.

    Unbiased over draws without replacement: 1 - C(n - c, k) / C(n, k) (the pass@k estimator, Chen et al. 2021).
    """
    if not 0 <= n_harmful <= n_samples or not 1 <= k <= n_samples:
        raise ValueError(f"best_of_k needs 0 <= n_harmful <= n and 1 <= k <= n, got {n_harmful}, {n_samples}, {k}")
    return 1 - math.comb(n_samples - n_harmful, k) / math.comb(n_samples, k)
