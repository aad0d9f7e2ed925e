"""Fit, validate and ask a forecast: a regularised linear model per outcome, its left-out errors, its range.

The model is `sklearn.linear_model.BayesianRidge` (MacKay 1992; Tipping 2001) on standardised properties: studies have
few arms, and it chooses its own shrinkage from them without a search. Every group (task) weighs the same. Nothing of
its own error bars is used; those come from leaving whole groups out (`guardrail.statistics.conformal`).

It gives no number, and says why, where

* a property of its model is not known;
* a property, or their combination, lies outside what was seen: beyond the seen range, or away from the other arms
  (Mahalanobis distance with Ledoit and Wolf's covariance), farther than all but ``ALPHA`` of the tasks are when they
  are left out (conformal p-value; with few tasks: farther than every one of them). A property that is beyond the seen
  range by more than a quarter of it is always outside: few left-out tasks would allow anything;
* skill on left-out groups is not above zero: the lower end of its 80% interval, for every way of leaving out.

Shapes: n arms, p properties, G groups. Everything that is kept is plain numbers: no pickle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from guardrail.similarity.forecast.observations import PROPERTIES, Observation
from guardrail.statistics.conformal import conformal_p_value, enough_groups, jackknife_plus, skill, student_interval

LEVEL = 0.9
ALPHA = 0.1
MARGIN = 0.25
MIN_GROUPS = 3
CONSTANT_TOLERANCE = 0.1
SCHEMES = ("task", "pool", "study")


@dataclass(frozen=True)
class Linear:
    """``intercept`` + properties @ ``coefficients``, in the properties' own units."""

    intercept: float
    coefficients: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(self.intercept + x @ self.coefficients)


def fit_linear(x: np.ndarray, y: np.ndarray, groups: Sequence[str]) -> Linear:
    """The model on (n, p) properties; the mean where nothing varies."""
    from sklearn.linear_model import BayesianRidge

    weights = equal_weights(groups)
    centre, spread = x.mean(axis=0), x.std(axis=0)
    varies = spread > 1e-9 * np.maximum(1.0, np.abs(centre))
    coefficients = np.zeros(x.shape[1])
    mean = float(np.average(y, weights=weights))
    if not varies.any() or np.ptp(y) < 1e-12:
        return Linear(mean, coefficients)
    scaled = (x[:, varies] - centre[varies]) / spread[varies]
    found = BayesianRidge().fit(scaled, y, sample_weight=weights)
    coefficients[varies] = found.coef_ / spread[varies]
    return Linear(float(found.intercept_ - centre @ coefficients), coefficients)


def equal_weights(groups: Sequence[str]) -> np.ndarray:
    """(n,) weights with mean 1 under which every group counts the same."""
    _, place, counts = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    weights = 1.0 / counts[place]
    return np.asarray(weights / weights.mean())


def distances(x: np.ndarray, of: np.ndarray) -> np.ndarray:
    """(m,) Mahalanobis distances of the rows of ``x`` (m, p) from the rows ``of`` (n, p)."""
    from sklearn.covariance import LedoitWolf

    centre, spread = of.mean(axis=0), of.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    scaled = (of - centre) / spread
    inverse = LedoitWolf(assume_centered=True).fit(scaled).precision_
    away = (x - centre) / spread
    return np.sqrt(np.maximum(0.0, np.einsum("np,pq,nq->n", away, inverse, away)))


def excesses(x: np.ndarray, of: np.ndarray) -> np.ndarray:
    """(m, p) how far each value of ``x`` (m, p) lies outside the range of ``of`` (n, p), in lengths of that range."""
    low, high = of.min(axis=0), of.max(axis=0)
    return np.maximum(0.0, np.maximum(low - x, x - high)) / np.where(high > low, high - low, 1.0)


def leave_out(x: np.ndarray, y: np.ndarray, tasks: Sequence[str], groups: Sequence[str]) -> dict[str, Any]:
    """Models without each of the ``groups``; left-out errors of model and mean, distances and excesses, (n,) each.

    ``tasks`` give the weights of the fits, ``groups`` what is left out.
    """
    labels, all_tasks = np.asarray(groups), np.asarray(tasks)
    errors, of_mean, away, outside = (np.full(len(y), np.nan) for _ in range(4))
    models = {}
    for name in dict.fromkeys(groups):
        out = labels == name
        inside = all_tasks[~out].tolist()
        models[name] = fit_linear(x[~out], y[~out], inside)
        errors[out] = y[out] - models[name](x[out])
        of_mean[out] = y[out] - np.average(y[~out], weights=equal_weights(inside))
        away[out] = distances(x[out], x[~out])
        outside[out] = excesses(x[out], x[~out]).max(axis=1)
    assert not np.isnan(errors).any()
    return {"models": models, "errors": errors, "errors_of_mean": of_mean, "distances": away, "excesses": outside}


def order_right(y: np.ndarray, errors: np.ndarray, tasks: Sequence[str]) -> dict[str, Any]:
    """Of the pairs of arms of one left-out task, the share whose order was forecast right (ties of either: half)."""
    right, n = 0.0, 0
    forecast, labels = y - errors, np.asarray(tasks)
    for name in dict.fromkeys(tasks):
        rows = np.flatnonzero(labels == name)
        for k, i in enumerate(rows):
            for j in rows[k + 1 :]:
                if y[i] == y[j]:
                    continue
                product = np.sign(y[i] - y[j]) * np.sign(forecast[i] - forecast[j])
                right, n = right + (product + 1) / 2, n + 1
    return {"order_right_fraction": right / n if n else None, "n_pairs": n}


def fit_outcome(observations: Sequence[Observation], outcome: str, properties: Sequence[str]) -> dict[str, Any]:
    """One model of one ``outcome``, ready for JSON; ``reason`` instead of numbers where it cannot be fitted."""
    rows = [one for one in observations if outcome in one.outcomes]
    names = [name for name in properties if rows and all(name in one.properties for one in rows)]
    tasks = [one.task for one in rows]
    head = {"outcome": outcome, "n_arms": len(rows), "tasks": list(dict.fromkeys(tasks))}
    if len(set(tasks)) < MIN_GROUPS:
        return {**head, "reason": f"{len(set(tasks))} tasks were measured; at least {MIN_GROUPS} are needed"}
    if not names:
        return {**head, "reason": "the studies hold none of the properties for all arms"}
    x = np.array([[one.properties[name] for name in names] for one in rows])
    y = np.array([one.outcomes[outcome] for one in rows])
    varying = np.ptp(x, axis=0) > 1e-9 * np.maximum(1.0, np.abs(x).max(axis=0))
    constant = {name: float(x[0, i]) for i, name in enumerate(names) if not varying[i]}
    names = [name for name, varies in zip(names, varying, strict=True) if varies]
    if not names:
        return {**head, "reason": "no property differs between the arms"}
    x = x[:, varying]
    labels = {"task": tasks, "pool": [one.pool for one in rows], "study": [one.study for one in rows]}
    skills = {}
    left: dict[str, Any] = {}
    for scheme in SCHEMES:
        if len(set(labels[scheme])) < (MIN_GROUPS if scheme == "task" else 2):
            continue
        found = leave_out(x, y, tasks, labels[scheme])
        measured = skill(found["errors"], found["errors_of_mean"], labels[scheme])
        skills[scheme] = {"value": measured.value, "interval": list(measured.interval), "n_groups": measured.n_groups}
        left = left or found
    whole = fit_linear(x, y, tasks)
    return {
        **head,
        "properties": names,
        "constant": constant,
        "not_known_for_all": [name for name in PROPERTIES if name in properties and name not in (*names, *constant)],
        "intercept": whole.intercept,
        "coefficients": whole.coefficients.tolist(),
        "left_out": {
            "tasks": tasks,
            "errors": left["errors"].tolist(),
            "distances": left["distances"].tolist(),
            "excesses": left["excesses"].tolist(),
            "models": {
                name: {"intercept": one.intercept, "coefficients": one.coefficients.tolist()}
                for name, one in left["models"].items()
            },
        },
        "seen": x.tolist(),
        "skill": skills,
        **order_right(y, left["errors"], tasks),
    }


def skill_reason(model: dict[str, Any]) -> str | None:
    """Why this model's skill is not shown to be above zero; None where it is."""
    for scheme, found in model["skill"].items():
        low, high = found["interval"]
        if not low > 0:
            return (
                f"no skill is shown when whole {plural(scheme)} are left out ({found['value']:.2f}, 80% interval "
                f"{low:.2f} to {high:.2f}, {found['n_groups']} {plural(scheme)}; 0 is no better than the mean)"
            )
    return None


def plural(scheme: str) -> str:
    return {"study": "studies"}.get(scheme, f"{scheme}s")


def range_reason(model: dict[str, Any], values: dict[str, float]) -> str | None:
    """Why ``values`` lie outside what the model has seen; None where they do not. All properties must be there."""
    seen = np.array(model["seen"])
    for name, known in model["constant"].items():
        if abs(values[name] - known) > CONSTANT_TOLERANCE * abs(known) + 1e-9:
            return f"{name} is {values[name]:.4g}; every arm seen had {known:.4g}"
    x = np.array([values[name] for name in model["properties"]])
    left = model["left_out"]
    beyond = excesses(x[None], seen)[0]
    worst = float(beyond.max())
    if worst > MARGIN or (worst > 0 and is_extreme(worst, left["excesses"], left["tasks"])):
        i = int(beyond.argmax())
        low, high = seen[:, i].min(), seen[:, i].max()
        return f"{model['properties'][i]} is {x[i]:.4g}; seen were {low:.4g} to {high:.4g}"
    if is_extreme(float(distances(x[None], seen)[0]), left["distances"], left["tasks"]):
        return "its properties together are farther from all arms seen than those of left-out tasks are"
    return None


def is_extreme(score: float, scores: Sequence[float], tasks: Sequence[str]) -> bool:
    """Among the most extreme ``ALPHA`` of left-out tasks; with few tasks: more extreme than every one of them."""
    smallest = 1 / (len(set(tasks)) + 1)
    return conformal_p_value(score, np.array(scores), tasks) <= max(ALPHA, smallest + 1e-9)


def ask(model: dict[str, Any], values: dict[str, float], level: float = LEVEL) -> dict[str, Any]:
    """The forecast for one arm: ``forecast``, ``interval``, ``interval_from``; or ``abstains``, the reason, alone."""
    if "reason" in model:
        return {"abstains": model["reason"]}
    missing = [name for name in (*model["properties"], *model["constant"]) if name not in values]
    if missing:
        return {"abstains": f"{' and '.join(missing)} not known"}
    reason = skill_reason(model) or range_reason(model, values)
    return {"abstains": reason} if reason else estimate(model, values, level)


def estimate(model: dict[str, Any], values: dict[str, float], level: float = LEVEL) -> dict[str, Any]:
    """The number and its interval, whatever skill and range: for measuring them (benchmarks/forecast.py)."""
    x = np.array([values[name] for name in model["properties"]])
    left = model["left_out"]
    tasks, errors = left["tasks"], np.array(left["errors"])
    value = float(model["intercept"] + x @ np.array(model["coefficients"]))
    by_task = {
        name: float(one["intercept"] + x @ np.array(one["coefficients"])) for name, one in left["models"].items()
    }
    if len(by_task) >= enough_groups(level):
        low, high = jackknife_plus(np.array([by_task[name] for name in tasks]), errors, tasks, level)
        source = "jackknife+ over tasks"
    else:
        low, high = student_interval(value, errors, tasks, level)
        source = f"Student's t over {len(by_task)} tasks"
    return {"forecast": value, "interval": [low, high], "level": level, "interval_from": source}
