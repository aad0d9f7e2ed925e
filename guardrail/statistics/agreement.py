"""Agreement: of raters beyond chance (Cohen's kappa, Krippendorff's alpha), of rankings (Spearman's correlation)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from guardrail.statistics.rates import CONFIDENCE
from guardrail.statistics.resampling import N_RESAMPLES, Estimate


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


def average_ranks(values: Any) -> Any:
    """Ranks from 1 of a sequence of numbers, ties at their mean rank, (n,) float64."""
    import numpy as np

    _, inverse, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2.0)[inverse]


def spearman(first: Any, second: Any) -> float | None:
    """Spearman's (1904) rank correlation in [-1, 1], average ranks for ties; None when a side is constant."""
    import numpy as np

    x, y = average_ranks(first), average_ranks(second)
    if len(x) != len(y) or not len(x):
        raise ValueError(f"spearman needs two equally long, non-empty sequences, got {len(x)} and {len(y)}")
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else None


def spearman_interval(
    first: Any, second: Any, confidence: float = CONFIDENCE, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> Estimate:
    """Spearman's correlation with a percentile bootstrap interval over items (Efron 1979); ranks anew in each resample.

    Raises ``ValueError`` when a side is constant. Resamples in which a side is constant are left out.
    """
    import numpy as np

    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    value = spearman(a, b)
    if value is None:
        raise ValueError("spearman_interval: a side is the same for all items")
    rng = np.random.default_rng(seed)
    found = [spearman(a[draw], b[draw]) for draw in (rng.integers(0, len(a), len(a)) for _ in range(n_resamples))]
    tail = (1 - confidence) / 2
    low, high = np.quantile([one for one in found if one is not None], [tail, 1 - tail])
    return Estimate(value, float(low), float(high), confidence)
