"""May a cheap design stand in for the reference? Every arm under both, the same seeds and prompts, against margins.

The reference is the study's first design. Tested are harmfulness before and after fine-tuning, its change, and
utility: for every arm (task x subset x size), for all arms averaged, and for the paper's question itself, high minus
low. A design stands in only if *every* one of these is equivalent within the margins of the study file: an average may
hide differences of opposite sign. All tests have to reject, so that no correction for their number is needed (Berger
1982, intersection-union). Differences are of the design minus the reference, in points.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from guardrail.statistics.equivalence import DIFFERENT, EQUIVALENT, equivalence_of_answers, equivalence_of_runs
from guardrail.study.arms import Arm, pair
from guardrail.study.grid import Grid, sizeless

OUTCOMES = ("initial", "final", "change")
ONE_ARM, ALL_ARMS, QUESTION = "arm", "all arms", "high minus low"
DIGITS = 4
Place = tuple[str, str, int]  # task, subset, size


def compare_designs(grid: Grid, arms: list[Arm], cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The ``equivalence`` block of `study.json`; ``cells`` are its rows.

    ``tests``: one row per design, scope and outcome. ``designs``: the verdict on each. A pair of arms without a common
    seed has no row, and the design does not stand in.
    """
    reference, *others = [design.name for design in grid.study.plain_designs]
    margins = grid.study.equivalence
    assert margins is not None, "checked with the study file"
    tests: list[dict[str, Any]] = []
    summary = []
    for design in others:
        found = _answers(arms, design, reference)
        rows = [row for outcome in OUTCOMES for row in _harmfulness(found, outcome, margins.harmfulness_points)]
        rows += _utilities(grid, cells, design, reference, margins.utility_points)
        tests += [{"design": design, "reference": reference, **row} for row in rows]
        n_arms = sum(arm.design == reference for arm in arms)
        summary.append({"design": design, "reference": reference, **_summary(rows, n_arms)})
    return {
        "reference": reference,
        "margins": {"harmfulness_points": margins.harmfulness_points, "utility_points": margins.utility_points},
        "tests": tests,
        "designs": summary,
    }


def _summary(rows: list[dict[str, Any]], n_arms: int) -> dict[str, Any]:
    verdicts = [row["verdict"] for row in rows]
    whole = sum(row["scope"] == ONE_ARM and row["outcome"] == "change" for row in rows) == n_arms
    return {
        "stands_in": bool(rows) and whole and all(verdict == EQUIVALENT for verdict in verdicts),
        "n_tests": len(rows),
        "n_equivalent": verdicts.count(EQUIVALENT),
        "n_different": verdicts.count(DIFFERENT),
        "n_inconclusive": len(rows) - verdicts.count(EQUIVALENT) - verdicts.count(DIFFERENT),
        "n_arms": n_arms,
    }


def _answers(arms: list[Arm], design: str, reference: str) -> dict[Place, dict[str, Any]]:
    """Paired differences of every arm that both designs have."""
    by_place = {(arm.design, arm.task, arm.subset, arm.size): arm for arm in arms}
    found = {}
    for arm in arms:
        other = by_place.get((design, arm.task, arm.subset, arm.size))
        if arm.design == reference and other is not None:
            difference = pair(other, arm)
            if difference is not None:
                found[arm.task, arm.subset, arm.size] = difference
    return found


def _head(scope: str, task: str | None, subset: str | None, size: int | None, outcome: str) -> dict[str, Any]:
    shown = None if subset is not None and sizeless(subset) else size
    return {"scope": scope, "task": task, "subset": subset, "subset_size": shown, "outcome": outcome}


def _row(head: dict[str, Any], test: dict[str, Any], unit: float, margin_points: float) -> dict[str, Any]:
    interval = test.pop("interval")
    return {
        **head,
        "difference_points": round(unit * test.pop("difference"), DIGITS),
        "interval_90_points": None if interval is None else [round(unit * edge, DIGITS) for edge in interval],
        "margin_points": margin_points,
        "p_value_equivalence": test.pop("p_value"),
        **test,
    }


def averaged(parts: list[tuple[float, dict[str, Any]]], outcome: str) -> np.ndarray | None:
    """Weighted sum of differences over the seeds and prompts that all parts share; None when they share too few, or
    nothing was compared (harmless requests, where the study asks none)."""
    if not parts:
        return None
    seeds = sorted(set.intersection(*(set(d["seeds"]) for _, d in parts)))
    prompts = sorted(set.intersection(*(set(d["prompts"]) for _, d in parts)))
    if not seeds or len(prompts) < 2:
        return None
    out = np.zeros((len(seeds), len(prompts)))
    for weight, d in parts:
        rows, columns = [d["seeds"].index(s) for s in seeds], [d["prompts"].index(p) for p in prompts]
        out += weight * d[outcome][np.ix_(rows, columns)]
    return out


def _harmfulness(found: dict[Place, dict[str, Any]], outcome: str, margin: float) -> list[dict[str, Any]]:
    rows = []
    for (task, subset, size), difference in found.items():
        test = equivalence_of_answers(difference[outcome], margin / 100)
        rows.append(_row(_head(ONE_ARM, task, subset, size, outcome), test, 100, margin))
    groups: list[tuple[dict[str, Any], list[tuple[float, dict[str, Any]]]]] = []
    if len(found) > 1:
        parts = [(1 / len(found), difference) for difference in found.values()]
        groups.append((_head(ALL_ARMS, None, None, None, outcome), parts))
    for task, subset, size in found:
        if subset == "high" and (task, "low", size) in found:
            parts = [(1.0, found[task, "high", size]), (-1.0, found[task, "low", size])]
            groups.append((_head(QUESTION, task, None, size, outcome), parts))
    for head, parts in groups:
        values = averaged(parts, outcome)
        if values is not None:
            rows.append(_row(head, equivalence_of_answers(values, margin / 100), 100, margin))
    return rows


def _utilities(
    grid: Grid, cells: list[dict[str, Any]], design: str, reference: str, margin: float
) -> list[dict[str, Any]]:
    """Utility after fine-tuning: one number per run, paired by seed."""
    values: dict[tuple[str, str, int | None], dict[int, dict[str, float]]] = {}
    for row in cells:
        value = row["utility"]["final"] if row["status"] == "done" else None
        if value is not None:
            place = (row["task"], row["subset"], row["subset_size"])
            values.setdefault(place, {}).setdefault(row["seed"], {})[row["design"]] = value
    differences: dict[tuple[str, str, int | None], dict[int, float]] = {
        place: {
            seed: both[design] - both[reference] for seed, both in by_seed.items() if {design, reference} <= set(both)
        }
        for place, by_seed in values.items()
    }
    differences = {place: by_seed for place, by_seed in differences.items() if by_seed}
    rows = []
    for (task, subset, size), by_seed in differences.items():
        test = equivalence_of_runs(np.array(list(by_seed.values())), margin)
        rows.append(_row(_head(ONE_ARM, task, subset, size, "utility"), test, 1, margin))
    shared = set.intersection(*(set(by_seed) for by_seed in differences.values())) if differences else set()
    if len(differences) > 1 and shared:
        means = [np.mean([by_seed[seed] for by_seed in differences.values()]) for seed in sorted(shared)]
        test = equivalence_of_runs(np.array(means), margin)
        rows.append(_row(_head(ALL_ARMS, None, None, None, "utility"), test, 1, margin))
    return rows
