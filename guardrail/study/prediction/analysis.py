"""What a scorer's bins say: do higher scores erode more, by how much, in order, and beyond length and format?

Two outcomes per bin: final harmfulness (percent of prompts) and mean life of a refusal (percent of the training;
`guardrail.statistics.survival`). Positive always means: the bins with higher scores erode guardrails more.

* ``tau``: Kendall's tau-b between the bins' order and their outcomes. Its interval is the pigeonhole bootstrap's (Owen
  2007): seeds and prompts are resampled independently, the bins together. With few bins tau has few values, and with
  few seeds the interval is too narrow; ``tau_by_seed`` shows each seed alone.
* ``gap``: top minus bottom, paired by seed and prompt, with the interval and p-value of every other difference of a
  study (`guardrail.statistics.crossed`).
* ``trend``: points per bin (linear contrast), tested the same way.
* ``monotone``: whether each bin erodes at least as much as the one below; ``isotonic_share``: how much of the variance
  between bins a monotone curve explains (pool-adjacent-violators, Barlow et al. 1972).

Shapes: B bins, R seeds, P prompts, J + 1 probes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from guardrail.statistics.crossed import paired_difference
from guardrail.statistics.survival import life_cells, lives_of

N_RESAMPLES = 2000
DIGITS = 4
OUTCOMES = ("harmful", "life")


def outcome_cells(steps: Sequence[int], flags: np.ndarray) -> dict[str, np.ndarray]:
    """(B, R, P) cells per outcome, in percent: final harmfulness, and life lost (100 minus mean life)."""
    lives = [lives_of(steps, one[:, :, None, :]) for one in flags]
    life = np.stack([100 * life_cells(one) / steps[-1] for one in lives])
    return {"harmful": 100.0 * flags[..., -1], "life": 100.0 - life}


def kendall(means: np.ndarray) -> np.ndarray:
    """Tau-b (Kendall 1945) between 0, 1, ... and the last axis of ``means`` (..., B); 0 where all are equal.

    `scipy.stats.kendalltau` for many rows at once. Means that are equal but for rounding are equal.
    """
    values = np.round(means, 9)
    first, second = np.triu_indices(values.shape[-1], k=1)
    signs = np.sign(values[..., second] - values[..., first])
    untied = np.abs(signs).sum(axis=-1)
    return np.asarray(signs.sum(axis=-1) / np.sqrt(np.maximum(untied, 1) * len(first)))


def tau(cells: np.ndarray, seed: int = 0, n_resamples: int = N_RESAMPLES) -> dict[str, Any]:
    """Kendall's tau over bins, its 95% interval, and each seed's own."""
    _, R, P = cells.shape
    rng = np.random.default_rng(seed)
    of_seeds = rng.multinomial(R, np.full(R, 1 / R), n_resamples) / R
    of_prompts = rng.multinomial(P, np.full(P, 1 / P), n_resamples) / P
    draws = np.einsum("ns,bsp,np->nb", of_seeds, cells, of_prompts, optimize=True)
    low, high = np.quantile(kendall(draws), [0.025, 0.975])
    return {
        "tau": float(kendall(cells.mean(axis=(1, 2)))),
        "tau_interval": [float(low), float(high)],
        "tau_by_seed": kendall(cells.mean(axis=2).T).tolist(),
    }


def contrast(cells: np.ndarray, weights: np.ndarray, name: str) -> dict[str, Any]:
    """The weighted sum of bins, tested over seeds and prompts; ``name``, ``<name>_interval``, ``<name>_p_value``."""
    test = paired_difference(np.tensordot(weights, cells, axes=1))
    return {
        name: test["difference"],
        f"{name}_interval": test["interval"],
        f"{name}_p_value": test["p_value"],
        f"{name}_minimum_detectable": test["minimum_detectable_difference"],
    }


def trend_weights(n: int) -> np.ndarray:
    """Weights under which the sum is the least-squares slope over bins 0 to n - 1."""
    places = np.arange(n) - (n - 1) / 2
    return np.asarray(places / (places**2).sum())


def isotonic_share(means: np.ndarray) -> float | None:
    """Share of the variance between bins that a rising curve explains; None where there is no variance."""
    from sklearn.isotonic import IsotonicRegression

    total = float(((means - means.mean()) ** 2).sum())
    if total == 0:
        return None
    fitted = IsotonicRegression().fit_transform(np.arange(len(means)), means)
    return float(1 - ((means - fitted) ** 2).sum() / total)


def describe(cells: np.ndarray) -> dict[str, Any]:
    """Everything about one outcome of one scorer's five (or so) bins."""
    B = len(cells)
    means = cells.mean(axis=(1, 2))
    top_bottom = np.zeros(B)
    top_bottom[[0, -1]] = -1, 1
    return {
        "bins": means.tolist(),
        **tau(cells),
        **contrast(cells, top_bottom, "gap"),
        **contrast(cells, trend_weights(B), "trend"),
        "monotone": bool((np.diff(np.round(means, 9)) >= 0).all()),
        "isotonic_share": isotonic_share(means),
    }


def rounded(value: Any) -> Any:
    """Numbers to `DIGITS`, whatever they are in."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return round(float(value), DIGITS) if isinstance(value, float) else value
