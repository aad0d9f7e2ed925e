"""Many tests at once, and what a test can find: corrected p-values, detectable differences, seeds needed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from guardrail.statistics.rates import normal_quantile


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down adjusted p-values, in the order given."""
    m = len(p_values)
    out = [0.0] * m
    running = 0.0
    for position, index in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (m - position) * p_values[index]))
        out[index] = running
    return out


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's (1995) adjusted p-values (false discovery rate), in the order given."""
    m = len(p_values)
    out = [0.0] * m
    running = 1.0
    for position, index in enumerate(sorted(range(m), key=lambda i: -p_values[i])):
        running = min(running, m / (m - position) * p_values[index])
        out[index] = running
    return out


def corrected(p_values: Sequence[float | None]) -> list[dict[str, float | None]]:
    """Holm (family-wise) and Benjamini-Hochberg adjusted p-values, ``None`` kept in place."""
    known = [p for p in p_values if p is not None]
    family, discovery = iter(holm(known)), iter(benjamini_hochberg(known))
    return [
        {"p_value_holm": None if p is None else next(family), "p_value_bh": None if p is None else next(discovery)}
        for p in p_values
    ]


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
