"""Which property of an alignment subset goes with durability? Linear models over all subsets of a study.

One observation is one subset of one task (its seeds averaged: they share the subset, so they are no independent
evidence about it). Predictors are standardised: a coefficient is "points of harmfulness per standard deviation".
Every model has an intercept per task. Each predictor stands alone first, then all together with variance inflation:
rivals that move together cannot be told apart, and the table says so. Intervals are HC3 with Student quantiles.
Known limit: subsets are chosen, not randomised; a coefficient is an association.
"""

from __future__ import annotations

from typing import Any

import numpy as np

PREDICTORS = ("similarity", "diversity", "response_chars", "list_share_percent", "initial_percent")
MINIMUM_FREEDOM = 3
MATCHED = "utility is the same in both arms: already matched"


def regress(
    observations: list[dict[str, Any]], outcome: str, predictors: tuple[str, ...] = PREDICTORS
) -> dict[str, Any]:
    """Coefficients of ``outcome`` on ``predictors`` with task intercepts, alone and together.

    ``observations`` hold ``task``, ``outcome`` and the predictors; rows that lack one of a model's columns are left
    out of that model and n says so. A model with fewer than three residual degrees of freedom, or a predictor that
    does not vary within tasks, gives ``reason`` instead of numbers.
    """
    alone = [{"predictor": name, **_fit(observations, outcome, (name,))} for name in predictors]
    usable = tuple(row["predictor"] for row in alone if "reason" not in row)
    together = _fit(observations, outcome, usable) if len(usable) > 1 else {"reason": "fewer than two predictors vary"}
    out_alone = [
        {"predictor": row["predictor"], **({"reason": row["reason"]} if "reason" in row else _one(row))}
        for row in alone
    ]
    return {"outcome": outcome, "alone": out_alone, "together": together}


def _one(row: dict[str, Any]) -> dict[str, Any]:
    return {**row["coefficients"][0], "n": row["n"], "r_squared": row["r_squared"]}


def _fit(observations: list[dict[str, Any]], outcome: str, predictors: tuple[str, ...]) -> dict[str, Any]:
    rows = [row for row in observations if all(row.get(name) is not None for name in (outcome, *predictors))]
    tasks = sorted({row["task"] for row in rows})
    freedom = len(rows) - len(tasks) - len(predictors)
    if freedom < MINIMUM_FREEDOM:
        return {"reason": f"{len(rows)} subsets leave {freedom} degrees of freedom; at least {MINIMUM_FREEDOM} needed"}
    dummies = np.array([[row["task"] == task for task in tasks] for row in rows], dtype=float)
    y = np.array([row[outcome] for row in rows], dtype=float)
    x = np.array([[row[name] for name in predictors] for row in rows], dtype=float)
    within = x - dummies @ (dummies.T @ x / dummies.sum(axis=0)[:, None])
    for name, column, inside in zip(predictors, x.T, within.T, strict=True):
        if inside.std() < 1e-9 * max(1.0, abs(column).max()):
            return {"reason": f"{name} does not vary within tasks"}
    if np.ptp(y - dummies @ (dummies.T @ y / dummies.sum(axis=0))) < 1e-9:
        return {"reason": f"{outcome} does not vary within tasks"}
    import statsmodels.api as sm

    design = np.hstack([x / x.std(axis=0, ddof=1), dummies])
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return {"reason": "predictors are collinear in these subsets; they cannot be told apart"}
    influence = np.einsum("ij,jk,ik->i", design, np.linalg.pinv(design.T @ design), design)
    kind = "HC3" if influence.max() < 1 - 1e-6 else "nonrobust"  # HC3 divides by 1 - leverage
    fit = sm.OLS(y, design).fit(cov_type=kind, use_t=True)
    intervals = fit.conf_int()
    coefficients = []
    for position, name in enumerate(predictors):
        others = np.delete(within, position, axis=1)
        coefficients.append(
            {
                "predictor": name,
                "points_per_sd": float(fit.params[position]),
                "interval": [float(edge) for edge in intervals[position]],
                "p_value": float(fit.pvalues[position]),
                "sd": float(x[:, position].std(ddof=1)),
                "variance_inflation": _inflation(within[:, position], others),
            }
        )
    return {"n": len(rows), "r_squared": float(fit.rsquared), "standard_errors": kind, "coefficients": coefficients}


def _inflation(column: np.ndarray, others: np.ndarray) -> float:
    """1 / (1 - R^2) of one predictor on the rest, within tasks; 1 means independent of them."""
    if others.shape[1] == 0:
        return 1.0
    residual = column - others @ np.linalg.lstsq(others, column, rcond=None)[0]
    share = float((residual**2).sum() / (column**2).sum())
    return 1.0 / max(share, 1e-9)


def matched_capability(pairs: list[dict[str, float]]) -> dict[str, Any]:
    """The high-minus-low difference at equal utility: the intercept of difference on utility difference.

    ``pairs``: one per task and seed, ``difference_points`` (harmfulness, high minus low) and
    ``utility_difference`` (high minus low, in the task's own unit). Needs five pairs and a utility difference that
    varies; ``reason`` otherwise.
    """
    if len(pairs) < 5:
        return {"reason": f"{len(pairs)} task-seed pairs; at least 5 needed"}
    y = np.array([pair["difference_points"] for pair in pairs])
    x = np.array([pair["utility_difference"] for pair in pairs])
    if x.std() < 1e-9:
        return {"reason": MATCHED}
    if y.std() < 1e-9:
        return {"reason": "the difference is the same in all pairs: no variance to judge it by"}
    import statsmodels.api as sm

    fit = sm.OLS(y, sm.add_constant(x)).fit(cov_type="HC3", use_t=True)
    return {
        "difference_points": float(fit.params[0]),
        "interval_points": [float(edge) for edge in fit.conf_int()[0]],
        "p_value": float(fit.pvalues[0]),
        "points_per_utility_unit": float(fit.params[1]),
        "mean_utility_difference": float(x.mean()),
        "n_pairs": len(pairs),
    }
