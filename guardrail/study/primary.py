"""The primary comparison of a study: the one difference that was declared beforehand, and what it decides.

    block = analyse_primary(study, arms, trajectories, entries)        # the ``primary`` block of study.json

The difference is the first arm minus the second, tasks averaged, paired over training seeds and prompts. Its interval
has the level 1 - alpha and decides alone, against zero and against the smallest difference that matters:

* ``equivalent``: the whole interval lies within plus and minus the smallest difference (a test of equivalence with an
  error of at most alpha / 2 on each side);
* ``difference``: otherwise, zero lies outside the interval and p is below alpha. ``reaches_smallest`` where the whole
  interval lies beyond the smallest difference;
* ``undecided``: otherwise, and whenever a single seed speaks.

Everything else that a study reports is exploratory.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from guardrail.statistics.crossed import components, paired_difference, seeds_needed
from guardrail.study.arms import Arm, pair
from guardrail.study.config import Study
from guardrail.study.declaration import OUTCOMES, Primary, digest_of, in_words
from guardrail.study.grid import sizeless
from guardrail.study.registration import standing
from guardrail.study.trajectories import Trajectory, percent_of_training

DIFFERENCE, EQUIVALENT, UNDECIDED = "difference", "equivalent", "undecided"
DIGITS = 4
MEASURE = {"change": "change", "harmful_after": "final"}  # of `arms.pair`
Part = tuple[list[int], list[str], np.ndarray]  # seeds, prompts, (R, P) differences of one task


def analyse_primary(
    study: Study, arms: list[Arm], trajectories: list[Trajectory], entries: list[dict[str, Any]]
) -> dict[str, Any] | None:
    """Result and decision; ``reason`` instead where nothing can be said yet; None where nothing was ever declared.

    ``entries``: `guardrail.study.registration.history`.
    """
    primary = study.primary
    if primary is None:
        return {"digest": None, "standing": standing(entries)} if entries else None
    unit = primary.unit
    block: dict[str, Any] = {
        "digest": digest_of(primary),
        "declared": dataclasses.asdict(primary),
        "words": in_words(primary),
        "standing": standing(entries),
        "unit": unit,
        "n_seeds_planned": len(study.seeds),
    }
    parts = {task: part_of(study, primary, task, arms, trajectories) for task in primary.tasks}
    absent = [task for task, part in parts.items() if part is None]
    if absent:
        return {**block, "reason": f"no common finished seed of both arms for {', '.join(absent)}"}
    found = average([part for part in parts.values() if part is not None])
    if found is None:
        return {**block, "reason": "the tasks share no seed with judged prompts"}
    test = paired_difference(found, level=1 - primary.alpha)
    low, high = (round(edge, DIGITS) for edge in test["interval"])
    spread = components(found) if len(found) > 1 else None
    block |= {
        "difference": round(test["difference"], DIGITS),
        "interval": [low, high],
        "p_value": test["p_value"],
        "p_value_seeds": test["p_value_seeds"],
        "scope": test["scope"],
        "n_seeds": test["n_seeds"],
        "n_prompts": test["n_prompts"],
        "minimum_detectable": round(test["minimum_detectable_difference"], DIGITS),
        "variances": spread and {name: round(v, DIGITS) for name, v in dataclasses.asdict(spread).items()},
        "seeds_needed": seeds_needed(found, primary.smallest_difference, level=1 - primary.alpha) if spread else None,
    }
    block |= decide(block, primary)
    return {**block, "sentence": sentence(block, primary)}


def part_of(study: Study, primary: Primary, task: str, arms: list[Arm], trajectories: list[Trajectory]) -> Part | None:
    """The paired difference of one task, of the study's first design; None where no seed of both arms is finished."""
    design, size = study.all_designs[0].name, primary.subset_size
    first, second = primary.comparison
    if primary.outcome in MEASURE:
        known = {
            arm.subset: arm
            for arm in arms
            if (arm.design, arm.task) == (design, task) and (sizeless(arm.subset) or arm.size == size)
        }
        found = pair(known[first], known[second]) if first in known and second in known else None
        if found is None:
            return None
        return found["seeds"], found["prompts"], 100 * found[MEASURE[primary.outcome]]
    lasting = {
        arm.place[2]: arm
        for arm in trajectories
        if arm.place[:2] == (design, task) and (sizeless(arm.place[2]) or arm.place[3] == size)
    }
    return percent_of_training(lasting[first], lasting[second]) if first in lasting and second in lasting else None


def average(parts: list[Part]) -> np.ndarray | None:
    """The mean over tasks (R, P) on the seeds and prompts that all have; None where they share too few."""
    seeds = sorted(set.intersection(*(set(part[0]) for part in parts)))
    prompts = sorted(set.intersection(*(set(part[1]) for part in parts)))
    if not seeds or len(prompts) < 2:
        return None
    return np.mean(
        [
            cells[np.ix_([own.index(seed) for seed in seeds], [names.index(prompt) for prompt in prompts])]
            for own, names, cells in parts
        ],
        axis=0,
    )


def decide(block: dict[str, Any], primary: Primary) -> dict[str, Any]:
    """What the interval decides; see the module's text."""
    low, high = block["interval"]
    smallest = primary.smallest_difference
    beyond = low >= smallest or high <= -smallest
    if block["n_seeds"] < 2:
        decision = UNDECIDED
    elif -smallest < low and high < smallest:
        decision = EQUIVALENT
    elif block["p_value"] < primary.alpha and (low > 0 or high < 0):
        decision = DIFFERENCE
    else:
        decision = UNDECIDED
    return {"decision": decision, "reaches_smallest": decision == DIFFERENCE and beyond}


def sentence(block: dict[str, Any], primary: Primary) -> str:
    """The decision in words, with the numbers."""
    first, second = (name.replace("_", " ") for name in primary.comparison)
    low, high = block["interval"]
    percent = f"{100 * (1 - primary.alpha):g}%"
    name = OUTCOMES[primary.outcome][0]
    numbers = (
        f"{name[0].upper()}{name[1:]}, {first} minus {second}: {block['difference']:+.1f} {block['unit']} "
        f"({percent} interval {low:+.1f} to {high:+.1f}, p = {block['p_value']:.3f}, {block['n_seeds']} seeds, "
        f"{block['n_prompts']} prompts)"
    )
    smallest = f"{primary.smallest_difference:g} {block['unit']}"
    if block["n_seeds"] < 2:
        return f"Undecided: one training seed cannot speak for others. {numbers}."
    if block["decision"] == EQUIVALENT:
        return f"No difference that matters: it is smaller than {smallest}. {numbers}."
    if block["decision"] == DIFFERENCE:
        reach = "and it is at least" if block["reaches_smallest"] else "whether it reaches"
        open_ = "" if block["reaches_smallest"] else " is open"
        return f"A difference is shown, {reach} {smallest}{open_}. {numbers}."
    needed = block["seeds_needed"]
    more = f" About {needed} seeds would find {smallest} with 80% power." if needed else ""
    return f"Undecided: neither a difference nor its absence is shown. {numbers}.{more}"
