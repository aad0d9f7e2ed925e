"""The part of a study that answers its question best within so many GPU-hours.

    bash scripts/study.sh configs/studies/paper_llama2_7b.yaml --plan --budget 50 [--earlier outputs/x/study.json]

The question is whether high-similarity subsets end worse than low-similarity ones, so `high` and `low` always stay.
Seeds are taken from the front, as are prompts of the bench (their order is the file's: a bench that is sorted by topic
loses topics). At least two seeds: one says nothing about other trainings. GPU-hours are those held by jobs; on a CPU
machine core-hours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from guardrail.core.errors import UserError
from guardrail.study.analysis import PAIRS
from guardrail.study.grid import Cell, Grid
from guardrail.study.jobs import jobs_behind
from guardrail.study.plan import Parts
from guardrail.study.planning.costs import TRAINING_STAGES
from guardrail.study.planning.disk import checkpoint_bytes
from guardrail.study.planning.power import Variances
from guardrail.study.planning.search import Choice, Found, Space, alternatives, best, cheapest
from guardrail.study.planning.volumes import bench_prompts
from guardrail.study.training_jobs import aligned_name, tuned_name

FEWEST_SEEDS = 2
PRIMARY = PAIRS[0][:2]
SHARES_OF_PROMPTS = (1.0, 0.5, 0.25)
PROMPT_STAGES = ("safety_answers", "harmfulness")


def control_units(subsets: Sequence[str]) -> list[tuple[str, ...]]:
    """The control arms of a study in the order in which they are worth having: by the questions of the analysis, pairs
    together, then what is in no pair, in the study's order."""
    units: list[tuple[str, ...]] = []
    left = [name for name in subsets if name not in PRIMARY]
    if "random" in left:  # the reference of both arms
        units.append(("random",))
        left.remove("random")
    for first, second, _ in PAIRS[1:]:
        if first in left and second in left:
            units.append((first, second))
            left = [name for name in left if name not in (first, second)]
    return units + [(name,) for name in left]


class Pricing:
    """Hours of any part of a study, from the costs of its processes; each job counts once, whoever shares it."""

    def __init__(self, parts: Parts, n_prompts: int) -> None:
        self.parts, self.n_prompts = parts, n_prompts
        self.units = control_units(parts.grid.study.subsets)
        self.price = self._prices()
        readers: dict[str, list[str]] = {}
        for name, job in parts.jobs.items():
            for need in job.needs:
                readers.setdefault(need, []).append(name)
        base = [name for name in parts.jobs if f"{name}.".find(".base.") > 0]
        self.behind: dict[Cell, frozenset[str]] = {}
        for cell in parts.grid.cells:
            targets = [tuned_name(cell), *base]
            for trained in (aligned_name(cell.alignment), tuned_name(cell)):
                for name in readers.get(trained, ()):
                    stage = parts.jobs[name].stage
                    if stage not in TRAINING_STAGES and (stage != "utility" or name.endswith(f".{cell.task}")):
                        targets += [name, *readers.get(name, ())]
            self.behind[cell] = frozenset(jobs_behind(parts.jobs, targets))
        self.by_name = {(cell.name, cell.seed): cell for cell in parts.grid.cells}
        self.seen: dict[tuple[Any, ...], tuple[float, float]] = {}

    def _prices(self) -> dict[str, tuple[float, float]]:
        """Job that waits -> its GPU-seconds (core-seconds), and the part of them that the number of prompts decides.

        The start of a process is shared by its jobs as their work is: it shrinks with what is left of a study.
        """
        parts, out = self.parts, {}
        for name, process in parts.processes.items():
            held = float(parts.node.holds(process.gpus).get("gpus", 0)) if parts.node.gpu else 1.0
            cost = parts.costs[name]
            works = {job: parts.counter.count(parts.jobs[job])[1] for job in process.jobs}
            whole = sum(works.values())
            for job, work in works.items():
                share = work / whole if whole > 0 else 1 / len(works)
                of_prompts = share * cost.work_sec if parts.jobs[job].stage in PROMPT_STAGES else 0.0
                out[job] = (held * share * cost.seconds, held * of_prompts)
        return out

    def subsets(self, n_controls: int) -> tuple[str, ...]:
        """The arms that stay, in the study's order."""
        kept = {*PRIMARY, *(name for unit in self.units[:n_controls] for name in unit)}
        return tuple(name for name in self.parts.grid.study.subsets if name in kept)

    def cells(self, choice: Choice) -> list[Cell]:
        study = self.parts.grid.study
        changed = dataclasses.replace(
            study,
            tasks={name: task for name, task in study.tasks.items() if name in choice.tasks},
            subset_sizes=choice.sizes,
            subsets=self.subsets(choice.controls),
            seeds=study.seeds[: choice.seeds],
        )
        return Grid(changed, self.parts.grid.folder.parent).cells

    def hours(self, choice: Choice) -> float:
        """GPU-hours held by jobs (core-hours on a CPU machine) of what is not done yet."""
        key = (choice.tasks, choice.sizes, choice.seeds, choice.controls)
        if key not in self.seen:
            cells = [self.by_name[cell.name, cell.seed] for cell in self.cells(choice)]
            needed = frozenset[str]().union(*(self.behind[cell] for cell in cells))
            prices = [self.price[name] for name in needed if name in self.price]
            with_prompts = sum(part for _, part in prices)
            self.seen[key] = (sum(seconds for seconds, _ in prices) - with_prompts, with_prompts)
        fixed, with_prompts = self.seen[key]
        return (fixed + with_prompts * choice.prompts / self.n_prompts) / 3600


def propose(parts: Parts, budget: float, variances: Variances) -> dict[str, Any]:
    """The proposal as a JSON-able object.

    Raises ``UserError`` where the study cannot ask the question, or nothing fits.
    """
    study = parts.grid.study
    missing = [name for name in PRIMARY if name not in study.subsets]
    if missing or len(study.seeds) < FEWEST_SEEDS:
        want = f"subset {missing[0]}" if missing else "a second seed"
        raise UserError(f"--budget compares high with low similarity over seeds; the study has no {want}")
    evaluation = study.evaluation
    n_prompts = int(bench_prompts(evaluation.safety_bench, evaluation.safety_bench_data, evaluation.limit))
    pricing = Pricing(parts, n_prompts)
    space = Space(
        tuple(study.tasks),
        study.subset_sizes,
        tuple(range(FEWEST_SEEDS, len(study.seeds) + 1)),
        tuple(sorted({max(2, round(n_prompts * share)) for share in SHARES_OF_PROMPTS})),
        len(pricing.units),
        study.smallest_difference_points,
        pricing.hours,
        lambda choice: variances.detectable(len(choice.tasks), choice.seeds, choice.prompts),
    )
    found = best(space, budget)
    if found is None:
        least = cheapest(space)
        raise UserError(
            f"--budget {budget:g} is too little: the smallest part of {study.name} that compares high with low takes "
            f"{least.hours:.1f} {unit_of(parts)} (task {least.choice.tasks[0]}, "
            f"size {least.choice.sizes[0]}, two seeds)"
        )
    whole = Choice(space.tasks, space.sizes, len(study.seeds), n_prompts, len(pricing.units))
    return {
        "budget_hours": budget,
        "unit": unit_of(parts),
        "variances": variances.source,
        "smallest_difference_points": study.smallest_difference_points,
        "proposal": describe(pricing, found, n_prompts),
        "dropped": dropped(pricing, found.choice, n_prompts),
        "alternatives": [
            {"better_at": what, **describe(pricing, other, n_prompts)}
            for what, other in alternatives(space, budget, found)
        ],
        "whole_study": describe(pricing, Found(whole, space.hours(whole), space.points(whole)), n_prompts),
    }


def unit_of(parts: Parts) -> str:
    return "GPU-hours" if parts.node.gpu else "core-hours"


def describe(pricing: Pricing, found: Found, n_prompts: int) -> dict[str, Any]:
    choice, study = found.choice, pricing.parts.grid.study
    cells = pricing.cells(choice)
    trained = {aligned_name(cell.alignment) for cell in cells} | {tuned_name(cell) for cell in cells}
    counter, float32 = pricing.parts.counter, study.dtype == "float32"
    return {
        "command": command(pricing, choice, n_prompts),
        "tasks": list(choice.tasks),
        "subset_sizes": list(choice.sizes),
        "seeds": list(study.seeds[: choice.seeds]),
        "subsets": list(pricing.subsets(choice.controls)),
        "prompts": choice.prompts,
        "hours": round(found.hours, 2),
        "detectable_points": round(found.points, 2),
        "cells": len(cells),
        "checkpoint_bytes": int(
            sum(checkpoint_bytes(counter, counter.jobs[name], float32) for name in trained if name in counter.jobs)
        ),
    }


def command(pricing: Pricing, choice: Choice, n_prompts: int) -> str:
    """The command that runs a choice: variables only where it leaves something out."""
    study = pricing.parts.grid.study
    subsets = pricing.subsets(choice.controls)
    words = []
    if choice.seeds < len(study.seeds):
        words.append("SEEDS=" + ",".join(map(str, study.seeds[: choice.seeds])))
    if subsets != study.subsets:
        words.append("SUBSETS=" + ",".join(subsets))
    if choice.sizes != study.subset_sizes:
        words.append("SIZE=" + ",".join(map(str, choice.sizes)))
    if choice.tasks != tuple(study.tasks):
        words.append("TASKS=" + ",".join(choice.tasks))
    if choice.prompts < n_prompts:
        words.append(f"PROMPTS={choice.prompts}")
    return " ".join([*words, "bash scripts/study.sh", pricing.parts.file or f"configs/studies/{study.name}.yaml"])


def dropped(pricing: Pricing, choice: Choice, n_prompts: int) -> dict[str, Any]:
    """What the choice leaves out of the study."""
    study = pricing.parts.grid.study
    kept = pricing.subsets(choice.controls)
    out = {
        "tasks": [name for name in study.tasks if name not in choice.tasks],
        "subsets": [name for name in study.subsets if name not in kept],
        "subset_sizes": [size for size in study.subset_sizes if size not in choice.sizes],
        "seeds": list(study.seeds[choice.seeds :]),
        "prompts": n_prompts - choice.prompts,
    }
    return {name: value for name, value in out.items() if value}


def proposal_text(found: dict[str, Any]) -> str:
    """The proposal for people."""
    unit = found["unit"]

    def line(row: dict[str, Any]) -> str:
        return (
            f"{row['hours']:,.1f} {unit}, {row['checkpoint_bytes'] / 2**30:,.1f} GiB of checkpoints if all are kept, "
            f"{row['cells']} cells; detects {row['detectable_points']:.1f} points"
        )

    best_row = found["proposal"]
    lines = [
        f"within {found['budget_hours']:g} {unit}:",
        f"  {best_row['command']}",
        f"  {line(best_row)}",
    ]
    left_out = [
        f"{name} {', '.join(map(str, v)) if isinstance(v, list) else v}" for name, v in found["dropped"].items()
    ]
    lines.append(f"  left out: {'; '.join(left_out) or 'nothing'}")
    for row in found["alternatives"]:
        lines += [f"instead, {row['better_at']}:", f"  {row['command']}", f"  {line(row)}"]
    lines += [
        f"the whole study: {line(found['whole_study'])}",
        "detectable: change of harmfulness, high minus low, tasks averaged, 80% power, two-sided 5%; seeds and prompts "
        f"are added until {found['smallest_difference_points']:g} points are detected (smallest_difference_points)",
        f"variances: {found['variances']}",
    ]
    return "\n".join(lines)
