"""The statistics of a study: every arm with its interval, arms compared in pairs, durability against its rivals.

    statistics = analyse(results, result, properties)

``arms``: one entry per task x subset x size, seeds together. ``comparisons``: pairs of arms, paired over seeds and
prompts, corrected over the tasks and sizes of one question. ``overall``: the same with tasks averaged.
``over_refusal``: high against low on the refusals of harmless requests. ``regression``:
`guardrail.statistics.regression`. ``judges``: do the conclusions hang on the judge? ``equivalence``, with several
designs: `guardrail.study.equivalence`. Pairs of arms are of one design, which every row names.
Everything in percent or points; a positive difference means that the first arm of a pair is more harmful.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from guardrail.core.errors import UserError
from guardrail.statistics.agreement import cohen_kappa
from guardrail.statistics.crossed import components, crossed_bootstrap, paired_difference, seeds_needed, sign_flip
from guardrail.statistics.regression import matched_capability, regress
from guardrail.statistics.testing import corrected
from guardrail.study.arms import Answers, Arm, pair, read_arms, stack
from guardrail.study.equivalence import compare_designs
from guardrail.study.grid import Grid, sizeless
from guardrail.study.results import Results
from guardrail.study.tasks import compared

# The paper's comparison first, then its controls: what is left of it when a rival is held fixed or swapped.
PAIRS = (
    ("high", "low", "similarity as it comes"),
    ("high_length_matched", "low_length_matched", "similarity at equal length"),
    ("high_format_matched", "low_format_matched", "similarity at equal list share"),
    ("high_category_matched", "low_category_matched", "similarity at equal topics"),
    ("high_sim_high_div", "low_sim_low_div", "similarity with diversity swapped"),
    ("length_high", "length_low", "length alone"),
    ("bi_anchor_high", "bi_anchor_low", "bi-anchor score"),
    ("high", "random", "high similarity against chance"),
    ("low", "random", "low similarity against chance"),
)
MEASURES = ("change", "final", "initial")  # the key is called `outcome` in study.json
DIGITS = 4
Utilities = dict[tuple[str, str, int | None, int], float | None]  # of one design


def points(value: float | None) -> float | None:
    """A fraction as percent or points."""
    return None if value is None else round(100 * value, DIGITS)


def analyse(
    results: Results, result: dict[str, Any], properties: list[dict[str, Any]], arms: list[Arm] | None = None
) -> dict[str, Any]:
    """The ``statistics`` block of `study.json` from the judged answers of finished cells.

    ``result`` is what `guardrail.study.results.collect` gave; ``properties`` what `describe_subsets` gave; ``arms``
    what `read_arms` gave of the finished cells, where it was asked already.
    """
    grid = results.grid
    if arms is None:
        finished = {cell for cell, row in zip(grid.cells, result["cells"], strict=True) if row["status"] == "done"}
        arms = read_arms(results, finished)
    out: dict[str, Any] = {
        "confidence": 0.95,
        "smallest_difference_points": grid.study.smallest_difference_points,
        "arms": [],
        "comparisons": [],
        "overall": [],
        "over_refusal": [],
    }
    names = [design.name for design in grid.study.all_designs]
    for name in names:
        part = _of_design(grid, [arm for arm in arms if arm.design == name], result, name)
        for block, rows in part.items():
            out[block] += [{"design": name, **row} for row in rows]
    # properties of subsets and agreement of judges: of the first design, which the others are compared with
    first = [arm for arm in arms if arm.design == names[0]]
    observations = _observations([row for row in out["arms"] if row["design"] == names[0]], properties)
    out |= {
        "regression": {name: regress(observations, name) for name in ("delta_points", "final_percent")},
        "observations": observations,
        "judges": _judges(first),
    }
    if len(grid.study.plain_designs) > 1:
        out["equivalence"] = compare_designs(grid, arms, result["cells"])
    return out


def _of_design(grid: Grid, arms: list[Arm], result: dict[str, Any], name: str) -> dict[str, list[dict[str, Any]]]:
    """The blocks of `study.json` in which every row belongs to one design."""
    utilities: Utilities = {
        (row["task"], row["subset"], row["subset_size"], row["seed"]): row["utility"]["final"]
        for row in result["cells"]
        if row["status"] == "done" and row["design"] == name
    }
    inside = compared(grid.study.tasks)
    whole = [arm for arm in arms if arm.task in inside]
    comparisons, overall = _comparisons(grid, whole, utilities)
    return {
        "arms": [_arm(arm, utilities, _statuses(grid, result, arm)) for arm in arms],
        "comparisons": comparisons,
        "overall": overall,
        "over_refusal": _over_refusal(grid, whole),
    }


def _statuses(grid: Grid, result: dict[str, Any], arm: Arm) -> dict[str, int]:
    """How many of an arm's cells have no numbers, by status: failed, stale, missing."""
    rows = [row["status"] for cell, row in zip(grid.cells, result["cells"], strict=True) if arm.owns(cell)]
    return {status: rows.count(status) for status in dict.fromkeys(rows) if status != "done"}


def _arm(arm: Arm, utilities: Utilities, without: dict[str, int]) -> dict[str, Any]:
    size = None if sizeless(arm.subset) else arm.size
    row: dict[str, Any] = {
        "task": arm.task,
        "subset": arm.subset,
        "subset_size": size,
        "seeds": list(arm.seeds),
        "n_seeds": len(arm.seeds),
        "n_failed": sum(without.values()),
        "status": "done" if arm.seeds else "failed" if "failed" in without else next(iter(without)),
    }
    if without:
        row["without_numbers"] = without
    if not arm.seeds:
        return row
    R = len(arm.seeds)
    values, prompts = stack([*arm.initial, *arm.final])
    for name, part, rate in (
        ("initial", values[:R], True),
        ("final", values[R:], True),
        ("delta", values[R:] - values[:R], False),
    ):
        mean, low, high = crossed_bootstrap(part, rate=rate)
        unit = "points" if name == "delta" else "percent"
        row |= {f"{name}_{unit}": points(mean), f"{name}_interval_{unit}": [points(low), points(high)]}
    final = [utilities[arm.task, arm.subset, size, seed] for seed in arm.seeds]
    known = [value for value in final if value is not None]
    row |= {
        "n_prompts": len(prompts),
        "n_samples": int(values.shape[2]),
        "utility_final": round(float(np.mean(known)), DIGITS) if known else None,
        "final_by_category_percent": _by_category(arm, values[R:], prompts),
        "threshold_curve": _curve(arm),
    }
    return row


def _by_category(arm: Arm, values: np.ndarray, prompts: list[str]) -> dict[str, dict[str, Any]]:
    categories = arm.final[0].categories
    out = {}
    for name in sorted({categories[key] for key in prompts}):
        part = values[:, [i for i, key in enumerate(prompts) if categories[key] == name]]
        out[name] = {"percent": points(float(part.mean())), "n_prompts": int(part.shape[1])}
    return out


def _curve(arm: Arm) -> list[list[float]]:
    curves = [answers.threshold_curve for answers in arm.final]
    if not all(curves):
        return []
    shares = np.mean([[value for _, value in curve] for curve in curves], axis=0)
    return [[t, round(float(v), DIGITS)] for (t, _), v in zip(curves[0], shares, strict=True)]


def _comparisons(
    grid: Grid, arms: list[Arm], utilities: Utilities
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    by_key = {(arm.task, arm.subset, arm.size): arm for arm in arms}
    smallest = grid.study.smallest_difference_points
    comparisons: list[dict[str, Any]] = []
    overall: list[dict[str, Any]] = []
    for first, second, question in PAIRS:
        found: dict[int, list[tuple[str, dict[str, Any]]]] = {}
        for task in grid.study.tasks:
            for size in grid.study.subset_sizes:
                one, two = by_key.get((task, first, size)), by_key.get((task, second, size))
                difference = pair(one, two) if one and two else None
                if difference is not None:
                    found.setdefault(size, []).append((task, difference))
        for outcome in MEASURES:
            rows = [
                {
                    "question": question,
                    "first": first,
                    "second": second,
                    "task": task,
                    "subset_size": size,
                    "outcome": outcome,
                    **_test(difference[outcome]),
                }
                for size, pairs in found.items()
                for task, difference in pairs
            ]
            for row, more in zip(rows, corrected([row["p_value"] for row in rows]), strict=True):
                row |= more
            comparisons += rows
            for size, pairs in found.items():
                overall.append(_overall(question, first, second, size, outcome, pairs, utilities, smallest))
    return comparisons, overall


def _test(difference: np.ndarray) -> dict[str, Any]:
    """`paired_difference` in points."""
    test = paired_difference(difference)
    low, high = test.pop("interval")
    return {
        "difference_points": points(test.pop("difference")),
        "interval_points": [points(low), points(high)],
        "minimum_detectable_points": points(test.pop("minimum_detectable_difference")),
        **test,
        "variances_points2": _variances(difference),
    }


def _variances(difference: np.ndarray) -> dict[str, float] | None:
    """Variance components in squared points, for planning the next study; None for one seed."""
    if len(difference) < 2:
        return None
    found = dataclasses.asdict(components(difference))
    return {name: round(1e4 * value, DIGITS) for name, value in found.items()}


def _overall(
    question: str,
    first: str,
    second: str,
    size: int,
    outcome: str,
    pairs: list[tuple[str, dict[str, Any]]],
    utilities: Utilities,
    smallest: float,
) -> dict[str, Any]:
    """Tasks averaged. Tasks are taken as fixed; seeds and prompts, which they share, stay the units."""
    seeds = sorted(set.intersection(*(set(d["seeds"]) for _, d in pairs)))
    prompts = sorted(set.intersection(*(set(d["prompts"]) for _, d in pairs)))
    head = {"question": question, "first": first, "second": second, "subset_size": size, "outcome": outcome}
    if not seeds or len(prompts) < 2:
        return {**head, "reason": "the tasks share no seed with judged prompts"}
    parts = [
        d[outcome][np.ix_([d["seeds"].index(s) for s in seeds], [d["prompts"].index(p) for p in prompts])]
        for _, d in pairs
    ]
    units = np.array([part.mean(axis=1) for part in parts])  # (tasks, R)
    mean = np.mean(parts, axis=0)
    between = float(units.var(ddof=1)) / len(units) if len(seeds) == 1 and len(units) > 1 else None
    entry = {
        **head,
        "tasks": [task for task, _ in pairs],
        **_test(mean),
        "seeds_needed": seeds_needed(mean, smallest / 100, between),
        # One seed shows no spread between seeds: its tasks' stands in (too large where tasks do differ), or nothing.
        "seeds_needed_from": "seeds" if len(seeds) > 1 else "answers" if between is None else "tasks",
        "p_value_task_seed_pairs": sign_flip(units.ravel()),
        "n_task_seed_pairs": int(units.size),
    }
    if outcome != "initial":
        matched = []
        for (task, _), row in zip(pairs, units, strict=True):
            for seed, value in zip(seeds, row, strict=True):
                one, two = (
                    utilities.get((task, name, None if sizeless(name) else size, seed)) for name in (first, second)
                )
                if one is not None and two is not None:
                    matched.append({"difference_points": 100 * float(value), "utility_difference": one - two})
        entry["at_matched_utility"] = matched_capability(matched)
    return entry


def _over_refusal(grid: Grid, arms: list[Arm]) -> list[dict[str, Any]]:
    """Harmless requests refused after fine-tuning, first pair of `PAIRS`: one entry per size, like ``overall``."""
    first, second, _ = PAIRS[0]
    by_key = {(arm.task, arm.subset, arm.size): arm for arm in arms}
    out = []
    for size in grid.study.subset_sizes:
        pairs = []
        for task in grid.study.tasks:
            one, two = by_key.get((task, first, size)), by_key.get((task, second, size))
            try:
                difference = pair(one, two, "benign") if one and two else None
            except UserError:
                continue  # no bench of harmless requests
            if difference is not None:
                pairs.append((task, difference))
        if pairs:
            smallest = grid.study.smallest_difference_points
            out.append(_overall("over-refusal", first, second, size, "final", pairs, {}, smallest))
    return out


def _observations(table: list[dict[str, Any]], properties: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per arm that has a subset: its properties beside its durability."""
    known = {(row["task"], row["subset"], row["subset_size"]): row for row in properties}
    out = []
    for arm in table:
        found = known.get((arm["task"], arm["subset"], arm["subset_size"]))
        if arm["status"] == "done" and found is not None:
            keys = ("task", "subset", "subset_size", "initial_percent", "final_percent", "delta_points")
            out.append({**found, **{key: arm[key] for key in keys}})
    return out


def _judges(arms: list[Arm]) -> dict[str, Any]:
    """Agreement of the moderation model with every other judge, and signs of high-minus-low under each of them."""
    checkpoints = [answers for arm in arms for answers in (*arm.initial, *arm.final)]
    further = sorted({judge for answers in checkpoints for judge in answers.further})
    signs = []
    by_key = {(arm.task, arm.subset, arm.size): arm for arm in arms}
    for (task, subset, size), arm in by_key.items():
        other = by_key.get((task, "low", size))
        if subset != "high" or other is None:
            continue
        differences = {}
        for judge in ("harmful", "lower_threshold", "keyword", *further):
            try:
                found = pair(arm, other, judge)
            except UserError:
                continue  # this judge decided too few prompts of these checkpoints
            if found is not None:
                differences[judge] = points(float(found["change"].mean()))
        if differences:
            values = [value for value in differences.values() if value]
            depends = any(value > 0 for value in values) and any(value < 0 for value in values)
            signs.append({"task": task, "subset_size": size, "change_points": differences, "depends_on_judge": depends})
    return {
        "with_moderation_model": {name: _agreement(checkpoints, name) for name in ("keyword", *further)},
        "high_minus_low": signs,
    }


def _agreement(checkpoints: list[Answers], judge: str) -> dict[str, Any]:
    """Agreement with the moderation model over the answers that both decided."""
    ours: list[bool] = []
    theirs: list[bool] = []
    n_answers = 0
    for answers in checkpoints:
        other = answers.table(judge)
        for key, flags in answers.harmful.items():
            n_answers += len(flags)
            if len(other.get(key, ())) == len(flags):
                ours += flags
                theirs += other[key]
    return {
        "n_answers": n_answers,
        "n_decided": len(ours),
        "agreement_percent": points(float(np.mean(np.array(ours) == np.array(theirs)))) if ours else None,
        "kappa": cohen_kappa(ours, theirs) if ours else None,
    }
