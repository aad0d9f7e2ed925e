"""Prediction intervals and p-values for a *new group*: a task, a pool or a study that no model was fitted on.

Rows of one group (the arms of one task) are no independent evidence about another group. Everything here therefore
leaves whole groups out, and weighs groups equally whatever their number of rows.

* `jackknife_plus`: the jackknife+ (Barber, Candès, Ramdas and Tibshirani 2021) over groups, with the weights of
  hierarchical conformal prediction (Lee, Barber and Willett 2023). It needs no distribution, but at least
  level / (1 - level) groups: nine for 90%. With fewer every honest distribution-free interval is infinite.
* `student_interval`: for few groups, from the mean squares of the groups' left-out errors. It assumes that these are
  about normal, and says so by its name.
* `conformal_p_value`: how extreme a score is among the left-out scores of the groups (Vovk, Gammerman and Shafer 2005).
* `skill`: the share of the squared error of "always the mean" that a model saves on groups it was not fitted on.

Shapes: n rows in G groups. ``benchmarks/forecast.py`` measures coverage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def group_weights(groups: Sequence[str]) -> np.ndarray:
    """(n,) weights: 1 / G per group, spread evenly over its rows."""
    _, place, counts = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    return np.asarray(1.0 / (len(counts) * counts[place]))


def weighted_quantile(values: np.ndarray, weights: np.ndarray, level: float) -> float:
    """The smallest value whose cumulated weight reaches ``level``; infinity when all of them together do not."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order]) >= level - 1e-12
    return float(values[order][reached.argmax()]) if reached.any() else float("inf")


def jackknife_plus(
    predictions: np.ndarray, errors: np.ndarray, groups: Sequence[str], level: float = 0.9
) -> tuple[float, float]:
    """The interval of a new row of a new group.

    Args:
        predictions: (n,) what the model fitted without row i's group predicts for the new row.
        errors: (n,) outcome of row i minus what that model predicts for row i.

    One of the G + 1 groups is the new one and may be anywhere: its weight lies at infinity.
    """
    G = len(set(groups))
    weights = group_weights(groups) * G / (G + 1)
    high = weighted_quantile(predictions + np.abs(errors), weights, level)
    low = -weighted_quantile(np.abs(errors) - predictions, weights, level)
    return low, high


def enough_groups(level: float) -> int:
    """Groups from which on `jackknife_plus` is used: two of them may lie outside its interval.

    From half as many on it is finite, but then its ends are those of the most extreme group, far above ``level``.
    """
    return round(2 / (1 - level)) - 1


def student_interval(
    prediction: float, errors: np.ndarray, groups: Sequence[str], level: float = 0.9
) -> tuple[float, float]:
    """``prediction`` plus and minus Student's quantile (G - 1 degrees) times the root mean square of ``errors``."""
    from scipy import stats

    G = len(set(groups))
    error = float(np.sqrt((group_weights(groups) * errors**2).sum()))
    half = float(stats.t.ppf(0.5 + level / 2, G - 1)) * error
    return prediction - half, prediction + half


def conformal_p_value(score: float, scores: np.ndarray, groups: Sequence[str]) -> float:
    """The chance that a row of a new group like the others scores at least ``score``; at least 1 / (G + 1)."""
    G = len(set(groups))
    return float((group_weights(groups)[scores >= score].sum() * G + 1) / (G + 1))


@dataclass(frozen=True)
class Skill:
    """``value``: 1 perfect, 0 no better than the mean, below worse; ``interval``: 80%, over groups (jackknife)."""

    value: float
    interval: tuple[float, float]
    n_groups: int


def skill(errors: np.ndarray, errors_of_mean: np.ndarray, groups: Sequence[str]) -> Skill:
    """How much of the squared error of the mean is saved on left-out groups, (n,) left-out errors each.

    The interval is the delete-one-group jackknife's (Tukey 1958) with G - 1 degrees of freedom; its lower end is
    exceeded by the truth in nine cases of ten. Raises ``ValueError`` for fewer than two groups.
    """
    from scipy import stats

    names, place = np.unique(np.asarray(groups), return_inverse=True)
    G = len(names)
    if G < 2:
        raise ValueError("skill on left-out groups needs at least two groups")
    weights = group_weights(groups)
    model = np.bincount(place, weights * errors**2, G)
    mean = np.bincount(place, weights * errors_of_mean**2, G)
    if mean.sum() == 0:
        return Skill(0.0, (0.0, 0.0), G)
    value = 1 - float(model.sum() / mean.sum())
    rest = mean.sum() - mean
    without = 1 - np.divide(model.sum() - model, rest, out=np.ones(G), where=rest > 0)
    error = float(np.sqrt((G - 1) / G * ((without - without.mean()) ** 2).sum()))
    half = float(stats.t.ppf(0.9, G - 1)) * error
    return Skill(value, (value - half, value + half), G)
