"""Do the scores of a small model (or of stored vectors) agree with the target model's? Measured, never assumed.

Per scorer, over the rows that both have a score of: Spearman's rank correlation with a bootstrap interval (rows
resampled), and how far the flags of the riskiest tenth disagree: the share of the target's flagged rows that the small
model does not flag, with a bootstrap interval. Where scores tie at the border of the tenth, rows are taken by id.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from guardrail.core.cli import log
from guardrail.core.errors import UserError
from guardrail.similarity.scorers.run import read_scores
from guardrail.statistics.agreement import spearman_interval

FLAGGED = 0.1
N_RESAMPLES = 1000
MIN_ROWS = 10
Array = np.ndarray[Any, Any]


def flags(values: Array, ids: list[str], share: float = FLAGGED) -> Array:
    """(n,) booleans: the ``share`` of rows with the largest values, at least one; ties by id."""
    order = sorted(range(len(values)), key=lambda i: (-values[i], ids[i]))
    out = np.zeros(len(values), dtype=bool)
    out[order[: max(1, round(share * len(values)))]] = True
    return out


def compare_scores(small: Array, target: Array, ids: list[str], seed: int = 0) -> dict[str, Any]:
    """Agreement of two scores of the same rows, each (n,) with NaN where there is none.

    ``spearman`` and ``flag_disagreement_fraction`` are None with fewer than 10 common rows, or where a score is
    constant; ``reason`` says so.
    """
    both = np.flatnonzero(np.isfinite(small) & np.isfinite(target))
    out: dict[str, Any] = {"n": len(both), "spearman": None, "flag_disagreement_fraction": None}
    a, b, names = small[both], target[both], [ids[i] for i in both]
    if len(both) < MIN_ROWS:
        return {**out, "reason": f"only {len(both)} rows have both scores"}
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return {**out, "reason": "a score is the same for all rows"}
    found = spearman_interval(a, b, n_resamples=N_RESAMPLES, seed=seed)
    mine, theirs = flags(a, names), flags(b, names)
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(both), (N_RESAMPLES, len(both)))
    shares = []
    for draw in draws:
        flagged = np.count_nonzero(theirs[draw])
        if flagged:
            shares.append(np.count_nonzero(theirs[draw] & ~mine[draw]) / flagged)
    low, high = np.quantile(shares, [0.025, 0.975])
    return {
        **out,
        "spearman": found.value,
        "spearman_interval": [found.low, found.high],
        "flag_disagreement_fraction": float(np.count_nonzero(theirs & ~mine) / np.count_nonzero(theirs)),
        "flag_disagreement_interval": [float(low), float(high)],
        "n_flagged": int(np.count_nonzero(theirs)),
    }


def compare_files(small: str | Path, target: str | Path, seed: int = 0) -> dict[str, Any]:
    """Agreement per scorer that both files have; printed on stderr too.

    Raises ``UserError``: no scorer in common, other rows.
    """
    small_ids, mine = read_scores(small)
    target_ids, theirs = read_scores(target)
    common = [name for name in mine if name in theirs]
    if not common:
        raise UserError(f"{small} has {', '.join(mine)}, {target} has {', '.join(theirs)}: no scorer in common")
    place = {row_id: i for i, row_id in enumerate(target_ids)}
    ids = [row_id for row_id in small_ids if row_id in place]
    if not ids:
        raise UserError(f"{small} and {target} have no row in common; score the same rows with both models")
    if len(ids) < max(len(small_ids), len(target_ids)):
        log(f"{len(ids)} rows are in both files, of {len(small_ids)} and {len(target_ids)}")
    here = {row_id: i for i, row_id in enumerate(small_ids)}
    out = {}
    for name in common:
        a, b = mine[name][[here[i] for i in ids]], theirs[name][[place[i] for i in ids]]
        out[name] = found = compare_scores(a, b, ids, seed)
        if found["spearman"] is None:
            log(f"{name}: no agreement can be given: {found['reason']}")
            continue
        (low, high), (least, most) = found["spearman_interval"], found["flag_disagreement_interval"]
        log(
            f"{name}: Spearman {found['spearman']:.3f} ({low:.3f} to {high:.3f}) over {found['n']} rows; of the "
            f"{found['n_flagged']} riskiest rows of the target {100 * found['flag_disagreement_fraction']:.0f}% "
            f"({100 * least:.0f} to {100 * most:.0f}%) are not flagged here"
        )
    return out
