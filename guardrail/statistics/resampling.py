"""Bootstrap intervals and permutation tests; whole clusters (all samples of one prompt) move together.

Random procedures take a seed and are exact repeats. For training seeds crossed with prompts see `crossed`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from guardrail.statistics.rates import CONFIDENCE, Numbers, cluster_means, normal_quantile, unseen_share

N_RESAMPLES = 10_000
EXACT_PERMUTATION_MAX = 14  # sign flips are enumerated up to this many non-zero differences


@dataclass(frozen=True)
class Estimate:
    """A number with its interval, in the units of the data."""

    value: float
    low: float
    high: float
    confidence: float = CONFIDENCE


def bootstrap_mean(
    values: Numbers,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = CONFIDENCE,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    limits: tuple[float, float] | None = None,
) -> Estimate:
    """Mean with a bootstrap interval; whole ``clusters`` (all samples of one prompt) are drawn together.

    Percentile interval (Efron 1979), widened by sqrt(K / (K - 1)) around the mean for K clusters: the plain percentile
    interval is too short by that factor in small samples. ``limits``: what a value can be at least and at most (0 and
    1 for a rate); the interval stays inside. Where all K clusters are equal nothing can be resampled: with limits,
    the share of clusters that could have been different is bounded as Wilson bounds 0 in K; without, the width is 0.
    """
    import numpy as np

    if not len(values):
        raise ValueError("bootstrap_mean needs at least one value")
    sums, counts = cluster_means(values, range(len(values)) if clusters is None else clusters)
    found = bootstrap_ratio(sums, counts, confidence, n_resamples, seed)
    if limits is None:
        return found
    mean, (lowest, highest) = found.value, limits
    if np.ptp(sums / counts) == 0:
        unseen = unseen_share(len(sums), normal_quantile(0.5 + confidence / 2))
        return Estimate(mean, mean - unseen * (mean - lowest), mean + unseen * (highest - mean), confidence)
    return Estimate(mean, max(lowest, found.low), min(highest, found.high), confidence)


def bootstrap_ratio(
    numerators: Numbers,
    denominators: Numbers,
    confidence: float = CONFIDENCE,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """``sum(numerators) / sum(denominators)`` over K units that are drawn together: a loss per token, say.

    The interval is ``bootstrap_mean``'s, which is this with counts as denominators.
    """
    import numpy as np

    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    K = len(above)
    if not K or len(below) != K:
        raise ValueError(f"bootstrap_ratio needs two equally long, non-empty sequences, got {K} and {len(below)}")
    mean = float(above.sum() / below.sum())
    if K == 1:
        return Estimate(mean, mean, mean, confidence)
    rng = np.random.default_rng(seed)
    means = np.empty(n_resamples)
    step = max(1, 4_000_000 // K)
    for start in range(0, n_resamples, step):
        draw = rng.integers(0, K, (min(step, n_resamples - start), K))
        means[start : start + len(draw)] = above[draw].sum(1) / below[draw].sum(1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    widen = math.sqrt(K / (K - 1))
    return Estimate(mean, float(mean + (low - mean) * widen), float(mean + (high - mean) * widen), confidence)


def paired_permutation_test(
    differences: Numbers,
    clusters: Sequence[Hashable] | None = None,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> float:
    """Two-sided p-value of a sign-flip test of mean difference zero; the signs of a cluster flip together.

    Exact (all sign patterns) for up to 14 clusters that differ, else Monte Carlo with the observed pattern counted:
    p = (1 + #{|T*| >= |T|}) / (1 + B).
    """
    import numpy as np

    sums, _ = cluster_means(differences, range(len(differences)) if clusters is None else clusters)
    moving = sums[sums != 0]
    observed = abs(sums.sum())
    if not len(moving):
        return 1.0
    tolerance = 1e-9 * max(1.0, np.abs(moving).sum())
    if len(moving) <= EXACT_PERMUTATION_MAX:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(moving))))
        return float((np.abs(signs @ moving) >= observed - tolerance).mean())
    rng = np.random.default_rng(seed)
    hits, step = 0, max(1, 4_000_000 // len(moving))
    for start in range(0, n_resamples, step):
        size = min(step, n_resamples - start)
        signs = rng.integers(0, 2, (size, len(moving)), dtype=np.int8) * 2 - 1
        hits += int((np.abs(signs @ moving) >= observed - tolerance).sum())
    return (1 + hits) / (1 + n_resamples)
