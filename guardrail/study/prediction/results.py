"""A scorer's cuts of the pool, and the numbers of those of their cells that are done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from guardrail.data.rows import Row
from guardrail.similarity.selection.composition import length_chars, spearman
from guardrail.study.prediction import analysis
from guardrail.study.prediction.cells import Cells, Place, stack_cells
from guardrail.study.prediction.pool import PLANTED, cut, describe_bin, strata_of


@dataclass(frozen=True)
class Cut:
    """The pool's rows in bins by one scorer; ``bins`` are the numbers that are fine-tuned (matched: the two ends)."""

    scorer: str
    kind: str
    parts: tuple[tuple[Row, ...], ...]

    @classmethod
    def of(cls, scorer: str, kind: str, rows: Sequence[Row], scores: np.ndarray, n_bins: int) -> Cut:
        numbers = cut(scores, n_bins, strata_of(rows) if kind == "matched" else None)
        parts = tuple(tuple(rows[int(i)] for i in np.flatnonzero(numbers == number)) for number in range(n_bins))
        return cls(scorer, kind, parts)

    @property
    def bins(self) -> list[int]:
        last = len(self.parts) - 1
        return [0, last] if self.kind == "matched" else list(range(last + 1))

    def rows(self, number: int) -> list[Row]:
        return list(self.parts[number])

    def place(self, number: int, seed: int) -> Place:
        return Place(self.scorer, self.kind, number, seed)


def analyse_scorer(
    name: str,
    found: dict[str, Any],
    cuts: Sequence[Cut],
    rows: Sequence[Row],
    cells: Cells,
    cost: dict[str, float | None],
) -> dict[str, Any]:
    """One scorer's entry of `prediction.json`; seeds count whose bins are all there."""
    out: dict[str, Any] = {"scorer": name, "cost": cost}
    if "scores" not in found:
        return {**out, "reason": found["reason"]}
    correlation = spearman(found["scores"], [float(length_chars(row)) for row in rows])
    out["planted_auc"] = planted_auc(found["scores"], rows)
    out["length_correlation"] = None if correlation is None else round(correlation, analysis.DIGITS)
    for one in cuts:
        if one.scorer != name:
            continue
        seeds = [
            seed
            for seed in cells.study.seeds
            if all(cells.is_done(one.place(number, seed), one.rows(number)) for number in one.bins)
        ]
        if not seeds:
            continue
        try:
            out[one.kind] = analysis.rounded(_numbers(one, seeds, cells))
        except ValueError as error:  # a checkpoint that refuses nothing has no life to lose
            return {**out, "reason": f"{one.kind} bins: {error}"}
    return out if "plain" in out else {**out, "reason": "no seed has all of its bins"}


def planted_auc(scores: np.ndarray, rows: Sequence[Row]) -> float | None:
    """The chance that a planted harmful row has a higher score than another one; None where nothing is planted."""
    from sklearn.metrics import roc_auc_score

    planted = [bool(row.get(PLANTED)) for row in rows]
    return round(float(roc_auc_score(planted, scores)), analysis.DIGITS) if 0 < sum(planted) < len(planted) else None


def _numbers(one: Cut, seeds: list[int], cells: Cells) -> dict[str, Any]:
    documents = [[cells.read(one.place(number, seed)) for seed in seeds] for number in one.bins]
    steps, prompts, flags = stack_cells(documents)
    outcomes = analysis.outcome_cells(steps, flags)
    bins = [
        {
            "bin": number + 1,
            **describe_bin(one.rows(number)),
            "final_percent": float(outcomes["harmful"][place].mean()),
            "life_percent": float(100 - outcomes["life"][place].mean()),
        }
        for place, number in enumerate(one.bins)
    ]
    return {
        "n_seeds": len(seeds),
        "seeds": seeds,
        "n_prompts": len(prompts),
        "steps": steps,
        "bins": bins,
        "before_percent": float(100 * flags[..., 0].mean()),
        "final_percent_by_seed": outcomes["harmful"].mean(axis=2).T.tolist(),
        **{outcome: analysis.describe(values) for outcome, values in outcomes.items()},
    }
