"""Agreement of raters beyond chance: Cohen's kappa, Krippendorff's alpha."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any


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
