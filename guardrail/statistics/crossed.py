"""Intervals and tests for a crossed design: every training seed is evaluated on the same prompts.

Shapes: R training seeds, P prompts, S samples per prompt. Values are fractions or 0/1; nothing here is in percent.

Both seeds and prompts are samples from something larger, so both widen an interval. Their variance components come
from the two-way analysis of variance (Cameron, Gelbach & Miller 2011 give the same estimator for clustering in two
ways). A handful of seeds shows its variance badly; intervals and p-values count that in by a generalised pivotal
quantity (see `Spread.exceeded`), and are symmetric for differences.

The shape of a rate's interval comes from the pigeonhole bootstrap (Owen 2007): seeds and prompts are resampled
independently. Left as it is, that bootstrap counts the noise of single answers three times and a handful of seeds
(R-1)/R times; its spread is therefore rescaled to the analysis of variance. Samples of one prompt are averaged and not
resampled: prompts already carry their noise. `tests/statistics/test_crossed.py` measures the coverage.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from guardrail.statistics.rates import normal_quantile, score_interval, unseen_share
from guardrail.statistics.resampling import paired_permutation_test

N_RESAMPLES = 4000
FINE, COARSE = 181, 5  # nodes of the seeds' mean square, and of the other two
MOST_SEEDS = 100  # no study trains more
RARE = 15  # fewer expected successes or failures than this: a bootstrap limit is too close


@lru_cache(maxsize=256)
def _pivots(R: int, P: int) -> tuple[np.ndarray, np.ndarray]:
    """What the three mean squares may be of their expectations: ``(factors (3, K), weights (K,))``.

    Each mean square times its degrees of freedom over its expectation is chi-squared; a factor is degrees of freedom
    over a quantile of that. Seeds have few degrees of freedom and get the nodes of a logistic scale, which reaches far
    into both tails; prompts and noise get the middles of ``COARSE`` equal shares.
    """
    from scipy import stats

    x = np.linspace(-18.0, 18.0, FINE)
    u = 1 / (1 + np.exp(-x))
    few = (R - 1) / stats.chi2.ppf(u, R - 1)
    weight = u * (1 - u)
    middles = (np.arange(COARSE) + 0.5) / COARSE
    prompts, noise = (df / stats.chi2.ppf(middles, df) for df in (P - 1, (R - 1) * (P - 1)))
    factors = np.array([part.ravel() for part in np.meshgrid(few, prompts, noise, indexing="ij")])
    weights = np.repeat(weight / weight.sum() / COARSE**2, COARSE**2)
    return factors, weights


@dataclass(frozen=True)
class Spread:
    """Standard error of a grand mean, and how a studentised mean is distributed.

    ``squares``: mean squares of seeds, prompts and noise. None: only prompts vary, Student's t with P - 1 degrees.
    """

    standard_error: float
    n_seeds: int
    n_prompts: int
    squares: tuple[float, float, float] | None = None

    def exceeded(self, statistic: float) -> float:
        """Two-sided probability that a studentised mean lies beyond ``statistic``.

        With ``squares``: of the generalised pivotal quantity (Weerahandi 1993; for crossed designs Burdick, Borror and
        Montgomery 2005). Given the mean squares, the variance of the mean is what their expectations may be, each its
        mean square times degrees of freedom over chi-squared; the normal probability is averaged over that. With seeds
        alone this is Student's t with R - 1 degrees of freedom; where they do not differ it comes close to the normal.
        """
        from scipy import special, stats

        if self.squares is None:
            return 2 * float(stats.t.sf(statistic, self.n_prompts - 1))
        (seeds, prompts, noise), weights = _pivots(self.n_seeds, self.n_prompts)
        variance = self.squares[0] * seeds + self.squares[1] * prompts - self.squares[2] * noise
        scale = np.sqrt(np.maximum(variance, 0.0) / (self.n_seeds * self.n_prompts)) / self.standard_error
        beyond = special.ndtr(-statistic / np.maximum(scale, 1e-12))
        return 2 * float(weights @ beyond)

    def quantile(self, probability: float = 0.975) -> float:
        """The critical value below which a studentised mean falls with ``probability`` (above a half)."""
        from scipy import optimize, stats

        if self.squares is None:
            return float(stats.t.ppf(probability, self.n_prompts - 1))
        tail, high = 2 * (1 - probability), 4.0
        while self.exceeded(high) > tail:
            high *= 4
        return float(optimize.brentq(lambda t: self.exceeded(t) - tail, 0.0, high, xtol=1e-7))

    def p_value(self, mean: float) -> float:
        """Two-sided p-value of ``mean`` against zero."""
        if self.standard_error == 0 or mean == 0:
            return 1.0 if mean == 0 else 0.0
        return min(1.0, max(2e-12, self.exceeded(abs(mean) / self.standard_error)))

    def detectable(self, level: float = 0.95, power: float = 0.8) -> float:
        """The true difference that a study with this spread would call significant with probability ``power``."""
        return self.standard_error * (self.quantile(0.5 + level / 2) + self.quantile(power))


def as_cells(values: np.ndarray) -> np.ndarray:
    """``(R, P)`` or ``(R, P, S)`` as ``(R, P)``; raises ``ValueError`` for NaN or fewer than two prompts."""
    values = np.asarray(values, dtype=np.float64)
    cells = values.mean(axis=2) if values.ndim == 3 else values
    if cells.ndim != 2 or cells.shape[1] < 2 or not np.isfinite(cells).all():
        raise ValueError(f"expected finite values of shape (seeds, at least 2 prompts[, samples]), got {values.shape}")
    return cells


def mean_squares(cells: np.ndarray) -> tuple[float, float, float]:
    """Mean squares of seeds, prompts and noise of ``(R, P)`` cells; with one seed the noise is in the prompts'."""
    R, P = cells.shape
    prompts = float(R * cells.mean(axis=0).var(ddof=1))
    if R == 1:
        return 0.0, prompts, 0.0
    residual = cells - cells.mean(axis=1, keepdims=True) - cells.mean(axis=0) + cells.mean()
    noise = float((residual**2).sum() / ((R - 1) * (P - 1)))
    return float(P * cells.mean(axis=1).var(ddof=1)), prompts, noise


def _spread(seeds: float, prompts: float, noise: float, R: int, P: int) -> Spread:
    """The spread that R seeds and P prompts with these mean squares have."""
    if R == 1:
        return Spread(float(np.sqrt(prompts / P)), R, P)
    total = max(seeds + prompts - noise, seeds, prompts)  # never below what one factor alone gives
    if total == 0:  # all means are equal by chance, single answers differ
        return Spread(float(np.sqrt(noise / (R * P))), R, P)
    return Spread(float(np.sqrt(total / (R * P))), R, P, (float(seeds), float(prompts), float(noise)))


@dataclass(frozen=True)
class Components:
    """Variances of one answer's value: between ``seeds``, between ``prompts``, and of ``answers`` given both."""

    seeds: float
    prompts: float
    answers: float

    def spread(self, n_seeds: int, n_prompts: int) -> Spread:
        """The spread that a mean over so many seeds and prompts is to be expected to have."""
        seeds, prompts = self.answers + n_prompts * self.seeds, self.answers + n_seeds * self.prompts
        return _spread(seeds, prompts, self.answers, n_seeds, n_prompts)


def components(values: np.ndarray) -> Components:
    """The variance components of ``(R, P[, S])`` values by the two-way analysis of variance.

    Raises ``ValueError`` for fewer than two seeds: what differs between seeds cannot be told from what is left.
    """
    cells = as_cells(values)
    R, P = cells.shape
    if R < 2:
        raise ValueError("variance components need at least two seeds")
    seeds, prompts, noise = mean_squares(cells)
    return Components(max(seeds - noise, 0.0) / P, max(prompts - noise, 0.0) / R, noise)


def crossed_spread(values: np.ndarray) -> Spread:
    """Spread of the mean of ``(R, P[, S])`` values over new seeds *and* new prompts (over new prompts when R is 1)."""
    cells = as_cells(values)
    R, P = cells.shape
    if np.ptp(cells) == 0:  # no variance seen is not no variance: what other prompts could add is bounded
        student = Spread(0.0, 1, P).quantile()
        return Spread(unseen_share(P, student) / student, 1, P)
    return _spread(*mean_squares(cells), R, P)


def seeds_needed(
    difference: np.ndarray,
    smallest: float,
    between_runs: float | None = None,
    power: float = 0.8,
    level: float = 0.95,
) -> int | None:
    """How many training seeds find a true difference of ``smallest`` with ``power``, two-sided at 1 - ``level``.

    ``difference``: ``(R, P[, S])`` paired differences, in the unit of ``smallest``. Prompts stay as many as they are;
    what differs between prompts whatever the seed does not shrink with more seeds, so that ``None`` (more than
    ``MOST_SEEDS``) means: more prompts are needed. One seed shows no spread between seeds: give ``between_runs``, a
    variance of independent runs' mean differences, or the answer is a lower bound; all of its spread over prompts
    counts as noise that more seeds average out.
    """
    cells = as_cells(difference)
    R, P = cells.shape
    if np.ptp(cells) == 0:
        return 2 if crossed_spread(cells).detectable(level, power) <= smallest else None
    seeds, prompts, noise = mean_squares(cells)
    if R == 1:
        noise = prompts
        seeds = max(noise, P * (between_runs or 0.0))
    noise = min(noise, max(seeds, prompts))
    of_prompts = max(prompts - noise, 0.0) / R
    for n in range(2, MOST_SEEDS + 1):
        if _spread(seeds, n * of_prompts + noise, noise, n, P).detectable(level, power) <= smallest:
            return n
    return None


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
    if np.ptp(cells) == 0 or (not rate and R > 1):
        low, high = mean - t * spread.standard_error, mean + t * spread.standard_error
    else:
        rng = np.random.default_rng(seed)
        of_seeds = rng.multinomial(R, np.full(R, 1 / R), n_resamples) / R
        of_prompts = rng.multinomial(P, np.full(P, 1 / P), n_resamples) / P
        draws = ((of_seeds @ cells) * of_prompts).sum(axis=1)
        tail = (1 - level) / 2
        normal = -normal_quantile(tail)
        scale = t * spread.standard_error / (normal * draws.std())
        low_draw, high_draw = np.quantile(draws, [tail, 1 - tail])
        low, high = mean - scale * (mean - low_draw), mean + scale * (high_draw - mean)
    if rate:
        if min(mean, 1 - mean) * P < RARE:
            effective = min(mean * (1 - mean) / spread.standard_error**2, R * P) if 0 < mean < 1 else P
            low, high = score_interval(mean, effective, t)
        low, high = max(0.0, low), min(1.0, high)
    return mean, float(low), float(high)


def sign_flip(units: np.ndarray, seed: int = 0) -> float | None:
    """Sign-flip p-value of a zero mean of independent ``units``; ``None`` for fewer than two.

    n units that all agree in sign cannot give less than ``2 / 2**n``.
    """
    return paired_permutation_test(list(units), seed=seed) if len(units) > 1 else None


def paired_difference(difference: np.ndarray, seed: int = 0, level: float = 0.95) -> dict[str, Any]:
    """Is the mean of paired differences ``(R, P[, S])`` (one arm minus the other, same seed and prompt) zero?

    ``p_value_prompts``: signs flipped per prompt, all its seeds together: says something about these checkpoints.
    ``p_value_seeds``: signs flipped per seed; two training runs per seed are the unit, so with R seeds it cannot
    fall below ``2 / 2**R``. ``p_value_crossed``: Student's t with the crossed spread, for new seeds and new prompts.
    ``p_value`` is the larger of prompts and crossed: a difference must hold for both. With one seed it is the prompts'
    alone and ``scope`` says so.
    """
    cells = as_cells(difference)
    R, P = cells.shape
    mean, low, high = crossed_bootstrap(cells, level, seed=seed)
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
        "minimum_detectable_difference": spread.detectable(level),
    }
