"""Intervals and tests for a crossed design: every training seed is evaluated on the same prompts.

Shapes: R training seeds, P prompts, S samples per prompt. Values are fractions or 0/1; nothing here is in percent.

Both seeds and prompts are samples from something larger, so both widen an interval. Their variance components come
from the two-way analysis of variance (Cameron, Gelbach & Miller 2011 give the same estimator for clustering in two
ways); degrees of freedom are Satterthwaite's. The shape of an interval comes from the pigeonhole bootstrap (Owen
2007): seeds and prompts are resampled independently. Left as it is, that bootstrap counts the noise of single
answers three times and a handful of seeds (R-1)/R times; its spread is therefore rescaled to the analysis of
variance. Samples of one prompt are averaged and not resampled: prompts already carry their noise.
`tests/study/test_inference.py` measures the coverage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from guardrail.statistics.rates import holm, paired_permutation_test

N_RESAMPLES = 4000
RARE = 15  # fewer expected successes or failures than this: a bootstrap limit is too close


@dataclass(frozen=True)
class Spread:
    """Standard error of a grand mean; ``seed_share`` of its variance comes from the seeds (0 with one seed)."""

    standard_error: float
    seed_share: float
    n_seeds: int
    n_prompts: int

    def quantile(self, probability: float = 0.975) -> float:
        """The critical value below which a studentised mean falls with ``probability``."""
        from scipy import stats

        of_prompts = float(stats.t.ppf(probability, self.n_prompts - 1))
        if self.n_seeds == 1:
            return of_prompts
        of_seeds = float(stats.t.ppf(probability, self.n_seeds - 1))
        return self.seed_share * of_seeds + (1 - self.seed_share) * of_prompts

    def p_value(self, mean: float) -> float:
        """Two-sided p-value of ``mean`` against zero: where the critical value meets the studentised mean."""
        from scipy import optimize

        if self.standard_error == 0 or mean == 0:
            return 1.0 if mean == 0 else 0.0
        statistic, smallest = abs(mean) / self.standard_error, 1e-12
        if self.quantile(1 - smallest) <= statistic:
            return 2 * smallest
        return 2 * float(optimize.brentq(lambda tail: self.quantile(1 - tail) - statistic, smallest, 0.5))


def as_cells(values: np.ndarray) -> np.ndarray:
    """``(R, P)`` or ``(R, P, S)`` as ``(R, P)``; raises ``ValueError`` for NaN or fewer than two prompts."""
    values = np.asarray(values, dtype=np.float64)
    cells = values.mean(axis=2) if values.ndim == 3 else values
    if cells.ndim != 2 or cells.shape[1] < 2 or not np.isfinite(cells).all():
        raise ValueError(f"expected finite values of shape (seeds, at least 2 prompts[, samples]), got {values.shape}")
    return cells


def crossed_spread(values: np.ndarray) -> Spread:
    """Spread of the mean of ``(R, P[, S])`` values over new seeds *and* new prompts (over new prompts when R is 1)."""
    cells = as_cells(values)
    R, P = cells.shape
    mean = cells.mean()
    if np.ptp(cells) == 0:
        # All equal: no variance seen is not no variance. What other prompts could add is bounded as Wilson bounds a
        # share of which 0 in P were seen.
        student = Spread(0.0, 0.0, 1, P).quantile()
        return Spread(_wilson(0.0, P, student)[1] / student, 0.0, 1, P)
    prompts = R * cells.mean(axis=0).var(ddof=1)
    if R == 1:
        return Spread(float(np.sqrt(prompts / P)), 0.0, R, P)
    seeds = P * cells.mean(axis=1).var(ddof=1)
    residual = cells - cells.mean(axis=1, keepdims=True) - cells.mean(axis=0) + mean
    noise = float((residual**2).sum() / ((R - 1) * (P - 1)))
    total = max(seeds + prompts - noise, seeds, prompts)  # never below what one factor alone gives
    # The seeds' mean square holds noise as well. Their share with it makes intervals too wide where seeds do not
    # differ, their share without it too narrow where they do; the middle covers 93-97% in both cases.
    share = (seeds / (seeds + prompts) + max(seeds - noise, 0.0) / total) / 2
    return Spread(float(np.sqrt(total / (R * P))), float(share), R, P)


def crossed_bootstrap(
    values: np.ndarray, level: float = 0.95, rate: bool = False, seed: int = 0, n_resamples: int = N_RESAMPLES
) -> tuple[float, float, float]:
    """Mean and ``level`` interval of ``(R, P[, S])`` values; see the module's text.

    With ``rate`` the values are outcomes in [0, 1] whose mean is a rate: the interval stays inside [0, 1], and where
    successes or failures are rare Wilson's interval at the effective sample size takes its place.
    """
    cells = as_cells(values)
    R, P = cells.shape
    mean, spread = float(cells.mean()), crossed_spread(cells)
    t = spread.quantile(0.5 + level / 2)
    if np.ptp(cells) == 0:
        low, high = mean - t * spread.standard_error, mean + t * spread.standard_error
    else:
        rng = np.random.default_rng(seed)
        of_seeds = rng.multinomial(R, np.full(R, 1 / R), n_resamples) / R
        of_prompts = rng.multinomial(P, np.full(P, 1 / P), n_resamples) / P
        draws = ((of_seeds @ cells) * of_prompts).sum(axis=1)
        tail = (1 - level) / 2
        normal = -_normal_quantile(tail)
        scale = t * spread.standard_error / (normal * draws.std())
        low_draw, high_draw = np.quantile(draws, [tail, 1 - tail])
        low, high = mean - scale * (mean - low_draw), mean + scale * (high_draw - mean)
    if rate:
        if min(mean, 1 - mean) * P < RARE:
            effective = min(mean * (1 - mean) / spread.standard_error**2, R * P) if 0 < mean < 1 else P
            low, high = _wilson(mean, effective, t)
        low, high = max(0.0, low), min(1.0, high)
    return mean, float(low), float(high)


def _normal_quantile(tail: float) -> float:
    from scipy import stats

    return float(stats.norm.ppf(tail))


def _wilson(rate: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's interval for an effective n and any quantile; `rates.wilson_interval` takes counts."""
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return float(centre - half), float(centre + half)


def sign_flip(units: np.ndarray, seed: int = 0) -> float | None:
    """Sign-flip p-value of a zero mean of independent ``units``; ``None`` for fewer than two.

    n units that all agree in sign cannot give less than ``2 / 2**n``.
    """
    return paired_permutation_test(list(units), seed=seed) if len(units) > 1 else None


def paired_difference(difference: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Is the mean of paired differences ``(R, P[, S])`` (one arm minus the other, same seed and prompt) zero?

    ``p_value_prompts``: signs flipped per prompt, all its seeds together: says something about these checkpoints.
    ``p_value_seeds``: signs flipped per seed; two training runs per seed are the unit, so with R seeds it cannot
    fall below ``2 / 2**R``. ``p_value_crossed``: Student's t with the crossed spread, for new seeds and new prompts.
    ``p_value`` is the larger of prompts and crossed: a difference must hold for both. With one seed it is the prompts'
    alone and ``scope`` says so.
    """
    cells = as_cells(difference)
    R, P = cells.shape
    mean, low, high = crossed_bootstrap(cells, seed=seed)
    spread = crossed_spread(cells)
    prompts = sign_flip(cells.mean(axis=0), seed=seed)
    assert prompts is not None
    crossed = None if R == 1 else spread.p_value(mean)
    return {
        "difference": mean,
        "interval": [low, high],
        "p_value": prompts if crossed is None else max(prompts, crossed),
        "p_value_prompts": prompts,
        "p_value_seeds": sign_flip(cells.mean(axis=1), seed=seed),
        "p_value_crossed": crossed,
        "scope": "these checkpoints" if R == 1 else "new training seeds and prompts",
        "n_seeds": R,
        "n_prompts": P,
        "minimum_detectable_difference": minimum_detectable_difference(spread),
    }


def minimum_detectable_difference(spread: Spread, level: float = 0.95, power: float = 0.8) -> float:
    """The true difference that a study with this spread would call significant with probability ``power``."""
    return spread.standard_error * (spread.quantile(0.5 + level / 2) + spread.quantile(power))


def corrected(p_values: list[float | None]) -> list[dict[str, float | None]]:
    """Holm (family-wise) and Benjamini-Hochberg (false discovery) adjusted p-values, ``None`` kept in place."""
    known = [p for p in p_values if p is not None]
    if not known:
        return [{"p_value_holm": None, "p_value_bh": None} for _ in p_values]
    from statsmodels.stats.multitest import multipletests

    family = iter(holm(known))
    bh = iter(multipletests(known, method="fdr_bh")[1])
    return [
        {
            "p_value_holm": None if p is None else float(next(family)),
            "p_value_bh": None if p is None else float(next(bh)),
        }
        for p in p_values
    ]
