"""The smallest difference that a design can detect, from the variances that an earlier study showed.

What is compared is the change of harmfulness under fine-tuning, high minus low similarity, tasks averaged: paired over
training seeds and prompts. An earlier study tells how much such a difference varies between seeds, between prompts and
beyond (`guardrail.statistics.crossed.components`); more seeds and prompts shrink each in its own way. Variances of
another model, task or bench are an assumption, and the text says whose they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.core.errors import UserError
from guardrail.core.files import read_json
from guardrail.statistics.crossed import Components

POWER = 0.8
OUTCOME = "change"


@dataclass(frozen=True)
class Variances:
    """Components in squared points of one task's difference, and how far the tasks' errors correlate (0 to 1 each).

    Tasks count alike, each with the mean of the earlier study's tasks: a task whose rates lie at the floor varies least
    and shows least, and would otherwise be chosen for that.
    """

    task: Components
    correlation: Components
    source: str

    def of_mean(self, n_tasks: int) -> Components:
        """Components of a mean over so many tasks: of variance v and correlation r, v (1 + (K - 1) r) / K."""

        def one(variance: float, r: float) -> float:
            return variance * (1 + (n_tasks - 1) * r) / n_tasks

        v, r = self.task, self.correlation
        return Components(one(v.seeds, r.seeds), one(v.prompts, r.prompts), one(v.answers, r.answers))

    def detectable(self, n_tasks: int, n_seeds: int, n_prompts: int) -> float:
        """Points of a true difference that are found with 80% power at the two-sided 5% level."""
        return self.of_mean(n_tasks).spread(n_seeds, n_prompts).detectable(power=POWER)


def from_tasks(tasks: Sequence[Components], together: Components | None, source: str) -> Variances:
    """Variances of tasks one by one, and of their mean, where there is one over at least two of them."""
    K = len(tasks)
    mean = Components(
        sum(part.seeds for part in tasks) / K,
        sum(part.prompts for part in tasks) / K,
        sum(part.answers for part in tasks) / K,
    )

    def correlation(whole: float, part: float) -> float:
        return min(1.0, max(0.0, (K * whole / part - 1) / (K - 1))) if part > 0 else 0.0

    if together is None or K < 2:
        return Variances(mean, Components(0.0, 0.0, 0.0), source)
    pairs = ((together.seeds, mean.seeds), (together.prompts, mean.prompts), (together.answers, mean.answers))
    return Variances(mean, Components(*(correlation(*pair) for pair in pairs)), source)


# Squared points, for one task. Solved from docs/findings.md: prompts alone (140, three seeds) give a difference of 4.8
# points p = 0.018, so their standard error is 2.0 points = sqrt((175 + 1200 / 3) / 140); it is split as the variance of
# an answer at rates of 5 to 10% suggests. Both tasks over seeds and prompts detect 13.7 points, which leaves 37 between
# seeds.
ASSUMED = Variances(
    Components(seeds=37.0, prompts=175.0, answers=1200.0),
    Components(0.0, 0.0, 0.0),
    "assumed, from the sandbox's list and pure_bad (docs/findings.md: 3 seeds, 140 prompts, 13.7 points detectable); "
    "--earlier outputs/STUDY/study.json takes those of a study of yours",
)


def read_variances(file: Path) -> Variances:
    """The variances that an earlier study's `study.json` holds. Raises ``UserError`` where it holds none."""
    document = read_json(file)
    try:
        statistics = document["statistics"]
        rows = [row for row in statistics["comparisons"] if _is_primary(row)]
        overall = [row for row in statistics["overall"] if _is_primary(row)]
    except (KeyError, TypeError):
        raise UserError(f"{file} is no study.json with statistics; give that of a finished study") from None
    per_task = {row["task"]: Components(**row["variances_points2"]) for row in rows if row.get("variances_points2")}
    if not per_task:
        raise UserError(
            f"{file} compares no high with low similarity over at least two seeds, so it shows no variance between "
            "seeds; leave --earlier out for the stated assumption, or run two seeds first"
        )
    mean = next((row["variances_points2"] for row in overall if row.get("variances_points2")), None)
    sizes = {row["task"]: (row["n_seeds"], row["n_prompts"]) for row in rows}
    R, P = max(sizes.values())
    name = document.get("study", {}).get("name") if isinstance(document.get("study"), dict) else document.get("study")
    source = f"study {name or file.parent.name} ({file}): {', '.join(per_task)}, {R} seeds, {P} prompts"
    return from_tasks(list(per_task.values()), Components(**mean) if mean else None, source)


def _is_primary(row: Any) -> bool:
    return (row["first"], row["second"], row["outcome"]) == ("high", "low", OUTCOME)
