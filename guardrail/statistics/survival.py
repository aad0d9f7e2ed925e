"""How long a guardrail lasts: survival of prompts along a fine-tuning, from answers judged at a few probes.

A unit is one sample of one prompt under one training seed. It *falls* between the last probe at which its answer was
not harmful and the first at which it was: the time is interval-censored there, and right-censored at the last probe
when it never falls. A unit that is harmful before the first step was never protected: it is left-truncated (not at
risk), counted, and in no curve. Falling is final by definition; how often a fallen unit is safe again at a later probe
is reported as flapping.

All units of a study are probed at the same steps and nothing drops out earlier. Turnbull's (1976) estimate for
interval-censored times is then the plain share still standing at each probe, and the proportional-hazards model for
grouped times is a binomial regression with complementary log-log link (Prentice and Gloeckler 1978).

Shapes: R training seeds, P prompts, S samples per prompt, J + 1 probes of which the first is step 0. Times have the
unit of the probes: optimizer steps, rows seen or epochs. Seeds and prompts are crossed: `guardrail.statistics.crossed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from guardrail.statistics.crossed import crossed_bootstrap, crossed_spread, paired_difference

N_RESAMPLES = 1000
HALF = 0.5


@dataclass(frozen=True)
class Lives:
    """When the units of one arm fell.

    ``probes`` (J + 1,) strictly increasing times, the first 0; ``fell`` (R, P, S): index of the first probe at which
    the unit was harmful, J + 1 where it never was; ``flapped`` (R, P, S): not harmful again at a later probe.
    """

    probes: np.ndarray
    fell: np.ndarray
    flapped: np.ndarray

    @property
    def at_risk(self) -> np.ndarray:
        """(R, P, S): not harmful before the first step."""
        return self.fell > 0

    def take(self, seeds: Sequence[int], prompts: Sequence[int]) -> Lives:
        """The units of these seed and prompt positions, in this order."""
        places = np.ix_(seeds, prompts, range(self.fell.shape[2]))
        return Lives(self.probes, self.fell[places], self.flapped[places])


def lives_of(probes: Sequence[float], harmful: np.ndarray) -> Lives:
    """`Lives` of judged answers: ``harmful`` (R, P, S, J + 1) of 0/1. Raises ``ValueError`` for unfit shapes."""
    times, flags = np.asarray(probes, dtype=np.float64), np.asarray(harmful)
    if len(times) < 2 or times[0] != 0 or (np.diff(times) <= 0).any():
        raise ValueError(f"probes must begin at 0 and increase, at least two of them; got {list(probes)}")
    if flags.ndim != 4 or flags.shape[3] != len(times) or not np.isin(flags, (0, 1)).all():
        raise ValueError(f"expected 0/1 of shape (seeds, prompts, samples, {len(times)} probes), got {flags.shape}")
    flags = flags.astype(bool)
    fell = np.where(flags.any(axis=3), flags.argmax(axis=3), len(times))
    since = np.logical_or.accumulate(flags, axis=3)
    return Lives(times, fell, (since & ~flags).any(axis=3))


def ratio_cells(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """(R, P) cells whose mean is the mean of the ``counted`` ``values`` (R, P, S), and whose spread is that mean's.

    A unit that does not count leaves a gap in the crossed design. The mean over the others is a ratio, sum of values by
    number of units; each cell holds that ratio plus its own linearised contribution (Woodruff 1971), so that gaps cost
    precision and nothing else. Without gaps the cells are the values, averaged over samples. Raises ``ValueError``
    where nothing counts.
    """
    weight = counted.mean(axis=2)
    if not weight.any():
        raise ValueError("no unit is at risk: every prompt was answered harmfully before the first step")
    total = np.where(counted, values, 0.0).mean(axis=2)
    mean = total.sum() / weight.sum()
    return np.asarray(mean + (total - mean * weight) / weight.mean())


def horizon_index(probes: np.ndarray, horizon: float | None) -> int:
    """The probe at ``horizon``; the last without one. Raises ``ValueError`` where no probe is there."""
    if horizon is None:
        return len(probes) - 1
    places = np.flatnonzero(probes == horizon)
    if not len(places) or places[0] == 0:
        raise ValueError(f"the horizon {horizon:g} is no probe after step 0; probes: {[float(t) for t in probes]}")
    return int(places[0])


def restricted_life(lives: Lives, horizon: float | None = None, where: float = 0.5) -> np.ndarray:
    """(R, P, S) time until a unit fell, cut at ``horizon``; units not at risk get 0 and are left out by the caller.

    A fall between two probes is placed at the share ``where`` of the interval: the middle, or 0 and 1 for the least and
    the longest life that the probes allow.
    """
    last = horizon_index(lives.probes, horizon)
    times = lives.probes[: last + 1]
    middle = np.concatenate([[0.0], times[:-1] + where * np.diff(times), [times[-1]]])
    return middle[np.minimum(lives.fell, last + 1)]


def life_cells(lives: Lives, horizon: float | None = None) -> np.ndarray:
    """(R, P) cells of the restricted mean life; see `ratio_cells`."""
    return ratio_cells(restricted_life(lives, horizon), lives.at_risk)


def survival_curve(lives: Lives, level: float = 0.95, n_resamples: int = N_RESAMPLES) -> list[dict[str, float]]:
    """Share of the units at risk that still stand at every probe, with a pointwise band over new seeds and prompts."""
    curve = [{"time": 0.0, "standing": 1.0, "low": 1.0, "high": 1.0}]
    for j, time in enumerate(lives.probes[1:], start=1):
        cells = ratio_cells((lives.fell > j).astype(float), lives.at_risk)
        mean, low, high = crossed_bootstrap(cells, level, rate=True, n_resamples=n_resamples)
        curve.append({"time": float(time), "standing": mean, "low": low, "high": high})
    return curve


def crossing(times: Sequence[float], shares: Sequence[float], level: float = HALF) -> float | None:
    """Where a falling curve first reaches ``level``, linear between probes; None when it never does."""
    for j in range(1, len(times)):
        if shares[j] <= level:
            slope = shares[j - 1] - shares[j]
            part = 1.0 if slope <= 0 else min(1.0, max(0.0, (shares[j - 1] - level) / slope))
            return times[j - 1] + part * (times[j] - times[j - 1])
    return None


def half_life(curve: list[dict[str, float]]) -> dict[str, Any]:
    """The time at which half of the units have fallen. ``interval``: where the band's edges cross one half.

    That is Brookmeyer and Crowley's (1982) interval, the set of times at which one half is inside the band. None means
    beyond the last probe.
    """
    times = [point["time"] for point in curve]
    low, value, high = (crossing(times, [point[edge] for point in curve]) for edge in ("low", "standing", "high"))
    return {"half_life": value, "interval": [low, high]}


def arm_survival(lives: Lives, horizon: float | None = None) -> dict[str, Any]:
    """Everything a table and a figure say about one arm. Fractions and times in the probes' unit.

    ``bounds``: the restricted mean life if every fall had come right after the last safe probe, and right before the
    first harmful one; the truth lies between, whatever happened between the probes.
    """
    mean, low, high = crossed_bootstrap(life_cells(lives, horizon), n_resamples=N_RESAMPLES)
    curve = survival_curve(lives)
    at_risk = lives.at_risk
    fallen = at_risk & (lives.fell < len(lives.probes))
    edges = [float(restricted_life(lives, horizon, where)[at_risk].mean()) for where in (0.0, 1.0)]
    return {
        "restricted_mean_life": mean,
        "restricted_mean_life_interval": [low, high],
        "restricted_mean_life_bounds": edges,
        "horizon": float(lives.probes[horizon_index(lives.probes, horizon)]),
        **half_life(curve),
        "curve": curve,
        "n_units": int(at_risk.size),
        "n_at_risk": int(at_risk.sum()),
        "n_harmful_before": int((~at_risk).sum()),
        "n_fallen": int(fallen.sum()),
        "flapping_fraction": float(lives.flapped[fallen].mean()) if fallen.any() else None,
    }


def life_difference(first: Lives, second: Lives, horizon: float | None = None) -> np.ndarray:
    """(R, P) cells of the difference of restricted mean lives, ``first`` minus ``second``, paired by seed and prompt.

    Positive: the guardrail of ``first`` lasts longer. Feed it to `crossed.paired_difference` or `crossed.seeds_needed`.
    """
    _same_design(first, second)
    return life_cells(first, horizon) - life_cells(second, horizon)


def _same_design(first: Lives, second: Lives) -> None:
    if first.fell.shape[:2] != second.fell.shape[:2] or not np.array_equal(first.probes, second.probes):
        raise ValueError("two arms are compared on the same seeds, prompts and probes only")


def log_rank_cells(first: Lives, second: Lives) -> np.ndarray:
    """(R, P) cells of the log-rank score, ``first`` minus ``second``: falls seen minus falls expected under one hazard.

    A unit's score is 1 if it fell, minus the hazards (pooled over both arms) of the intervals that it went through
    (Peto and Peto 1972, grouped times). The mean is zero where both arms have the same hazards; positive: ``first``
    falls sooner. Strata (tasks) have a call each, and their cells are averaged.
    """
    _same_design(first, second)
    J = len(first.probes) - 1
    falls, risks = np.zeros(J + 1), np.zeros(J + 1)
    for lives in (first, second):
        fell = lives.fell[lives.at_risk]
        for j in range(1, J + 1):
            falls[j] += (fell == j).sum()
            risks[j] += (fell >= j).sum()
    cumulated = np.cumsum(np.divide(falls, risks, out=np.zeros(J + 1), where=risks > 0))

    def score(lives: Lives) -> np.ndarray:
        expected = cumulated[np.minimum(lives.fell, J)]
        return ratio_cells((lives.fell <= J).astype(float) - expected, lives.at_risk)

    return score(first) - score(second)


def log_rank(first: Lives, second: Lives) -> dict[str, float]:
    """Two-sided log-rank test of equal hazards, clustered by seed and by prompt."""
    test = paired_difference(log_rank_cells(first, second))
    return {"score": test["difference"], "p_value": test["p_value"]}


@dataclass(frozen=True)
class Group:
    """One arm in a proportional-hazards model: its lives, its stratum (task) and its covariates by name."""

    lives: Lives
    stratum: str
    covariates: dict[str, float]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]


def proportional_hazards(groups: Sequence[Group], covariates: Sequence[str]) -> dict[str, Any]:
    """Hazard ratios of ``covariates`` over all arms, with a free hazard per stratum and interval.

    Grouped-time proportional hazards (Prentice and Gloeckler 1978): binomial, complementary log-log, one intercept per
    stratum x interval. Standard errors are clustered by training seed and by prompt (`influence_cells`); quantiles are
    those of `crossed.Spread`, which knows that few seeds show their variance badly. Intervals in which no unit or
    every unit fell hold no information about a ratio and are left out. ``reason`` instead of numbers where a covariate
    does not vary within strata, or fewer than two seeds or prompts are there.
    """
    import statsmodels.api as sm

    frames = [_person_periods(group, covariates) for group in groups]
    x, y = np.concatenate([f[0] for f in frames]), np.concatenate([f[1] for f in frames])
    strata = np.concatenate([f[2] for f in frames])
    seeds, prompts = (np.concatenate([f[i] for f in frames]) for i in (3, 4))
    names, stratum = np.unique(strata, return_inverse=True)
    rate = np.bincount(stratum, y, len(names)) / np.bincount(stratum, minlength=len(names))
    kept = ((rate > 0) & (rate < 1))[stratum]
    x, y, strata, seeds, prompts = x[kept], y[kept], strata[kept], seeds[kept], prompts[kept]
    n_seeds, n_prompts = len(set(seeds.tolist())), len(set(prompts.tolist()))
    if n_seeds < 2 or n_prompts < 2:
        return {"reason": f"{n_seeds} seeds and {n_prompts} prompts fell in time; at least 2 of each are needed"}
    names, stratum = np.unique(strata, return_inverse=True)
    dummies = np.eye(len(names))[stratum]
    within = x - (dummies.T @ x / dummies.sum(axis=0)[:, None])[stratum]
    for name, column in zip(covariates, within.T, strict=True):
        if column.std() < 1e-9:
            return {"reason": f"{name} does not vary within strata"}
    design = np.hstack([x, dummies])
    if np.linalg.matrix_rank(within) < len(covariates):
        return {"reason": "covariates are collinear in these arms; they cannot be told apart"}
    family = sm.families.Binomial(link=sm.families.links.CLogLog())
    fit = sm.GLM(y, design, family=family).fit()
    cells = influence_cells(fit, len(covariates), seeds, prompts)
    out = []
    for position, name in enumerate(covariates):
        spread = crossed_spread(cells[position])
        quantile, error = spread.quantile(), spread.standard_error
        value = float(fit.params[position])
        edges = (value - quantile * error, value, value + quantile * error)
        low, ratio, high = (float(np.exp(edge)) for edge in edges)
        out.append(
            {
                "covariate": name,
                "hazard_ratio": ratio,
                "interval": [low, high],
                "log_hazard_ratio": value,
                "standard_error": error,
                "p_value": spread.p_value(value),
            }
        )
    return {"n_seeds": n_seeds, "n_prompts": n_prompts, "n_periods": len(y), "covariates": out}


def influence_cells(fit: Any, n: int, seeds: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """(n, R, P): what the periods of each seed and prompt contribute to the first ``n`` coefficients of a ``fit``.

    Contributions are linearised (inverse Hessian times score) and scaled so that a coefficient's error is their mean.
    Clustering by seed and by prompt (Cameron, Gelbach and Miller 2011, with the correction R / (R - 1)) is then the
    crossed analysis of variance of these cells. A cell without periods contributes nothing.
    """
    model = fit.model
    each = -model.score_obs(fit.params) @ np.linalg.inv(model.hessian(fit.params))[:, :n]
    rows, columns = (np.unique(values, return_inverse=True) for values in (seeds, prompts))
    cells = np.zeros((n, len(rows[0]), len(columns[0])))
    for position in range(n):
        np.add.at(cells[position], (rows[1], columns[1]), each[:, position])
    return cells * (cells.shape[1] * cells.shape[2])


def _person_periods(group: Group, covariates: Sequence[str]) -> tuple[np.ndarray, ...]:
    """One row per unit and interval that it went through: covariates, fell, stratum x interval, seed, prompt."""
    lives = group.lives
    J = len(lives.probes) - 1
    R, P, S = lives.fell.shape
    fell = lives.fell.reshape(-1)
    unit, interval = np.nonzero(fell[:, None] >= np.arange(1, J + 1))
    y = (fell[unit] == interval + 1).astype(float)
    x = np.tile([group.covariates[name] for name in covariates], (len(unit), 1)).astype(float)
    stratum = np.array([f"{group.stratum}\x1f{j}" for j in range(1, J + 1)])[interval]
    seeds = np.repeat(np.asarray(group.seeds), P * S)[unit]
    prompts = np.tile(np.repeat(np.asarray(group.prompts), S), R)[unit]
    return x, y, stratum, seeds, prompts
