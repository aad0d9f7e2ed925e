"""Statistics for rates, agreement and paired comparisons. Proportions are fractions in [0, 1] here; reports turn them
into percent by name.

numpy throughout; ``scipy.stats`` where it has the distribution. Random procedures take a seed and are exact repeats.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95
N_RESAMPLES = 10_000
EXACT_PERMUTATION_MAX = 14  # sign flips are enumerated up to this many non-zero differences


def normal_quantile(probability: float) -> float:
    """The standard normal quantile function."""
    from statistics import NormalDist

    return NormalDist().inv_cdf(probability)


def wilson_interval(successes: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927, no continuity correction).

    The set of p with |p_hat - p| <= z sqrt(p (1 - p) / n). Raises ``ValueError`` unless 0 <= successes <= n, n >= 1.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"wilson_interval needs 0 <= successes <= n and n >= 1, got {successes} of {n}")
    return _wilson(successes / n, n, confidence)


def _wilson(share: float, n: float, confidence: float) -> tuple[float, float]:
    z = normal_quantile(0.5 + confidence / 2)
    denominator = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / denominator
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / denominator
    low = 0.0 if share == 0 else max(0.0, min(share, centre - half))
    high = 1.0 if share == 1 else min(1.0, max(share, centre + half))
    return low, high


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """Cohen's (1960) kappa of two raters on the same items; None when chance agreement is 1 (one constant label).

    (p_observed - p_chance) / (1 - p_chance), chance from the product of the two raters' marginals.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"cohen_kappa needs two equally long, non-empty sequences, got {len(first)} and {len(second)}")
    n = len(first)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    labels = set(first) | set(second)
    chance = sum((sum(a == x for a in first) / n) * (sum(b == x for b in second) / n) for x in labels)
    return None if math.isclose(chance, 1.0) else (observed - chance) / (1 - chance)


def krippendorff_alpha(
    ratings: Sequence[Sequence[Any]], distance: Callable[[Any, Any], float] | None = None
) -> float | None:
    """Krippendorff's alpha; ``ratings[rater][item]``, None for a missing rating.

    1 - D_observed / D_expected over pairable values (items rated at least twice), from the coincidence matrix
    (Krippendorff 2011, "Computing Krippendorff's alpha-reliability"). ``distance`` defaults to nominal (0 or 1);
    pass ``interval_distance`` for numbers. None when nothing can be paired or all values are equal.
    """
    if distance is None:
        distance = nominal_distance
    if len({len(row) for row in ratings}) != 1:
        raise ValueError("every rater needs one entry per item (None where missing)")
    coincidences: dict[tuple[Any, Any], float] = {}
    for item in zip(*ratings, strict=True):
        values = [value for value in item if value is not None]
        if len(values) < 2:
            continue
        for a, b in itertools.permutations(values, 2):
            coincidences[a, b] = coincidences.get((a, b), 0.0) + 1 / (len(values) - 1)
    totals: dict[Any, float] = {}
    for (a, _), weight in coincidences.items():
        totals[a] = totals.get(a, 0.0) + weight
    n = sum(totals.values())
    if n <= 1 or len(totals) < 2:
        return None
    observed = sum(weight * distance(a, b) for (a, b), weight in coincidences.items()) / n
    expected = sum(
        totals[a] * (totals[b] - (a == b)) * distance(a, b) for a, b in itertools.product(totals, totals)
    ) / (n * (n - 1))
    return None if expected == 0 else 1 - observed / expected


def nominal_distance(a: Any, b: Any) -> float:
    return float(a != b)


def interval_distance(a: float, b: float) -> float:
    return float(a - b) ** 2


@dataclass(frozen=True)
class Estimate:
    """A number with its interval, in the units of the data."""

    value: float
    low: float
    high: float
    confidence: float = CONFIDENCE


def cluster_means(values: Sequence[float], clusters: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """``(sum, count)`` of the values of each cluster, clusters in order of first appearance."""
    index: dict[Hashable, int] = {}
    where = np.array([index.setdefault(c, len(index)) for c in clusters])
    array = np.asarray(values, dtype=np.float64)
    if len(where) != len(array):
        raise ValueError(f"{len(array)} values but {len(where)} cluster labels")
    return np.bincount(where, array, len(index)), np.bincount(where, minlength=len(index)).astype(np.float64)


def bootstrap_mean(
    values: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    confidence: float = CONFIDENCE,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Mean with a bootstrap interval; whole ``clusters`` (all samples of one prompt) are drawn together.

    Percentile interval (Efron 1979), widened by sqrt(K / (K - 1)) around the mean for K clusters: the plain percentile
    interval is too short by that factor in small samples. A constant sample gives a zero-width interval.
    """
    if not len(values):
        raise ValueError("bootstrap_mean needs at least one value")
    sums, counts = cluster_means(values, range(len(values)) if clusters is None else clusters)
    return bootstrap_ratio(sums, counts, confidence, n_resamples, seed)


FEW_PROMPTS = 6  # a variance between clusters that comes from fewer of them than this is not believed


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
    size = float(K)
    if min((sums > 0).sum(), (sums < counts).sum()) >= FEW_PROMPTS:
        from scipy import stats

        variance = K / (K - 1) * float(((sums - share * counts) ** 2).sum()) / n**2
        tail = 0.5 + confidence / 2
        correction = (normal_quantile(tail) / float(stats.t.ppf(tail, K - 1))) ** 2
        size = n if variance == 0 else min(n, max(1.0, share * (1 - share) / variance * correction))
    return _wilson(share, size, confidence)


def bootstrap_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    confidence: float = CONFIDENCE,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """``sum(numerators) / sum(denominators)`` over K units that are drawn together: a loss per token, say.

    The interval is ``bootstrap_mean``'s, which is this with counts as denominators.
    """
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
    differences: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> float:
    """Two-sided p-value of a sign-flip test of mean difference zero; the signs of a cluster flip together.

    Exact (all sign patterns) for up to 14 clusters that differ, else Monte Carlo with the observed pattern counted:
    p = (1 + #{|T*| >= |T|}) / (1 + B).
    """
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


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down adjusted p-values, in the order given."""
    m = len(p_values)
    out = [0.0] * m
    running = 0.0
    for position, index in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (m - position) * p_values[index]))
        out[index] = running
    return out


def minimum_detectable_difference(
    n: int, discordant_fraction: float | None = None, rate: float | None = None, power: float = 0.8, alpha: float = 0.05
) -> float:
    """Smallest true difference of two rates (fraction) found with ``power`` at two-sided level ``alpha``; at most 1.

    Two independent groups of ``n``: give the common ``rate``; (z_alpha + z_power) sqrt(2 r (1 - r) / n).
    Paired rows: give ``discordant_fraction``, the share d of rows on which the two arms differ; the variance of a
    difference in {-1, 0, 1} is d - x^2, and x solves z_alpha sqrt(d) + z_power sqrt(d - x^2) = x sqrt(n) (normal
    approximation of McNemar's test, Connor 1987). A difference x needs d >= x, so d is raised to x where it is less,
    and never below the smallest significant outcome of the exact sign test (6 rows at 5%).
    """
    if n < 1 or (discordant_fraction is None) == (rate is None):
        raise ValueError("give n >= 1 and exactly one of discordant_fraction and rate")
    z_alpha, z_power = normal_quantile(1 - alpha / 2), normal_quantile(power)
    if rate is not None:
        return min(1.0, (z_alpha + z_power) * math.sqrt(2 * rate * (1 - rate) / n))
    assert discordant_fraction is not None

    def surplus(x: float) -> float:
        d = max(discordant_fraction, x)
        return x * math.sqrt(n) - z_alpha * math.sqrt(d) - z_power * math.sqrt(max(0.0, d - x * x))

    if surplus(1.0) < 0:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if surplus(middle) >= 0 else (middle, high)
    fewest_rows = math.ceil(1 - math.log2(alpha))  # 2 * 2^-m <= alpha
    return min(1.0, max(high, fewest_rows / n))


def best_of_k(n_harmful: int, n_samples: int, k: int) -> float:
    """Probability that at least one of ``k`` samples is harmful, from ``n_harmful`` of ``n_samples`` observed.

    Unbiased over draws without replacement: 1 - C(n - c, k) / C(n, k) (the pass@k estimator, Chen et al. 2021).
    """
    if not 0 <= n_harmful <= n_samples or not 1 <= k <= n_samples:
        raise ValueError(f"best_of_k needs 0 <= n_harmful <= n and 1 <= k <= n, got {n_harmful}, {n_samples}, {k}")
    return 1 - math.comb(n_samples - n_harmful, k) / math.comb(n_samples, k)
