"""Equivalence: is a difference so small that it does not matter? Two one-sided tests (Schuirmann 1987).

The margin is set before anything is measured. "Equivalent" is said when both hypotheses, that the true difference is
at most ``-margin`` and that it is at least ``margin``, are rejected at 5%: the 90% interval lies within the margin.
That no difference was found is no equivalence: with few seeds most answers are "inconclusive".

Shapes as in `guardrail.statistics.crossed`: R training seeds, P prompts. The spread is that of the crossed design; the
critical value is Student's with R-1 degrees of freedom, whatever share of the spread comes from prompts, because a
false "equivalent" is the costly error. `tests/statistics/test_equivalence.py` measures how often it is said.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from guardrail.statistics.crossed import as_cells, crossed_spread

LEVEL = 0.05
EQUIVALENT, DIFFERENT, INCONCLUSIVE = "equivalent", "different", "inconclusive"


def equivalence_of_answers(difference: np.ndarray, margin: float) -> dict[str, Any]:
    """Two one-sided tests of paired differences ``(R, P[, S])``, in the unit of ``margin``, for new seeds and prompts.

    One seed says nothing about others: inconclusive.
    """
    cells = as_cells(difference)
    R, P = cells.shape
    if R > 1:
        return {**_tests(float(cells.mean()), crossed_spread(cells).standard_error, R, margin), "n_prompts": P}
    return {**_unknown(float(cells.mean()), R), "n_prompts": P}


def equivalence_of_runs(difference: np.ndarray, margin: float) -> dict[str, Any]:
    """The same for one number per run ``(R,)``: a paired t-test on each side. Runs that do not differ at all show no
    spread, and are inconclusive."""
    values = np.asarray(difference, dtype=np.float64)
    R = len(values)
    spread = float(values.std(ddof=1)) / np.sqrt(R) if R > 1 else 0.0
    return _tests(float(values.mean()), spread, R, margin) if spread > 0 else _unknown(float(values.mean()), R)


def _unknown(mean: float, n: int) -> dict[str, Any]:
    return {"difference": mean, "interval": None, "p_value": None, "verdict": INCONCLUSIVE, "n_seeds": n}


def _tests(mean: float, standard_error: float, n: int, margin: float) -> dict[str, Any]:
    """``p_value`` is the larger of the two one-sided ones; ``interval`` the 90% interval that decides the same."""
    from scipy import stats

    if margin <= 0:
        raise ValueError(f"a margin must be above 0, got {margin}")
    student = stats.t(n - 1)
    p_value = float(max(student.sf((mean + margin) / standard_error), student.cdf((mean - margin) / standard_error)))
    half = float(student.ppf(1 - LEVEL)) * standard_error
    differs = float(student.sf(abs(mean) / standard_error)) < LEVEL / 2
    verdict = EQUIVALENT if p_value < LEVEL else DIFFERENT if differs else INCONCLUSIVE
    interval = [mean - half, mean + half]
    return {"difference": mean, "interval": interval, "p_value": p_value, "verdict": verdict, "n_seeds": n}
