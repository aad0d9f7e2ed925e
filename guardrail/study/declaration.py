"""The primary comparison of a study, declared before anything is run, and its digest.

    primary:
      outcome: restricted_mean_life       # or change, harmful_after
      comparison: [high, low]             # the difference is the first arm minus the second
      smallest_difference: 5              # that matters; of the outcome's unit, see `OUTCOMES`
      alpha: 0.05
      tasks: [list, pure_bad]             # averaged; default: all of the study
      subset_size: 1000                   # default: the first of subset_sizes

When it was declared: `guardrail.study.registration`; its analysis: `guardrail.study.primary`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from guardrail.core.errors import UserError, unknown
from guardrail.core.files import hash_json

OUTCOMES = {  # name -> (in words, unit of its difference)
    "restricted_mean_life": ("restricted mean life", "percent of the training"),
    "change": ("rise of harmfulness", "points"),
    "harmful_after": ("harmfulness after fine-tuning", "points"),
}
MEANING = 1  # raise when a declaration comes to mean something else


@dataclass(frozen=True)
class Primary:
    """The one comparison that a study was made for (`guardrail.study.primary` analyses it)."""

    outcome: str
    comparison: tuple[str, ...]
    smallest_difference: float
    alpha: float = 0.05
    tasks: tuple[str, ...] = ()
    subset_size: int | None = None

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise unknown("primary.outcome", self.outcome, OUTCOMES)
        if len(self.comparison) != 2 or len(set(self.comparison)) != 2:
            arms = list(self.comparison)
            raise UserError(f"primary.comparison is {arms}; expected two different arms, such as [high, low]")
        if not 0 < self.smallest_difference <= 100:
            given = f"{self.smallest_difference:g}"
            raise UserError(f"primary.smallest_difference must be above 0 and at most 100, got {given}")
        if not 0 < self.alpha <= 0.5:
            raise UserError(f"primary.alpha must be above 0 and at most 0.5, such as 0.05; got {self.alpha:g}")
        if len(set(self.tasks)) != len(self.tasks):
            raise UserError(f"primary.tasks holds a task twice: {list(self.tasks)}")

    @property
    def unit(self) -> str:
        return OUTCOMES[self.outcome][1]

    def resolved(self, subsets: Iterable[str], tasks: Iterable[str], sizes: tuple[int, ...], probes: int) -> Primary:
        """With the study's tasks and size written out. Raises ``UserError`` for what the study file does not have."""
        subsets, tasks = tuple(subsets), tuple(tasks)
        for name in self.comparison:
            if name not in subsets:
                raise unknown("primary.comparison: subset", name, subsets)
        for name in self.tasks:
            if name not in tasks:
                raise unknown("primary.tasks: task", name, tasks)
        size = sizes[0] if self.subset_size is None else self.subset_size
        if size not in sizes:
            raise unknown("primary.subset_size", size, list(map(str, sizes)))
        if self.outcome == "restricted_mean_life" and not probes:
            raise UserError(
                "primary.outcome restricted_mean_life is measured at probes; set fine_tuning.probes, such as 14, or "
                "take the outcome change or harmful_after"
            )
        return dataclasses.replace(self, tasks=self.tasks or tasks, subset_size=size)


def digest_of(primary: Primary | None) -> str | None:
    """16 characters that change with anything that was declared; None where nothing is."""
    return None if primary is None else hash_json({"meaning": MEANING, **dataclasses.asdict(primary)})


def in_words(primary: Primary) -> str:
    """One sentence: what is compared, and what counts as a difference that matters."""
    first, second = (name.replace("_", " ") for name in primary.comparison)
    tasks = " and ".join(primary.tasks) if len(primary.tasks) < 3 else f"{len(primary.tasks)} tasks"
    return (
        f"{OUTCOMES[primary.outcome][0]}, {first} minus {second}, over {tasks or 'all tasks'}; smallest difference "
        f"that matters: {primary.smallest_difference:g} {primary.unit}; alpha {primary.alpha:g}"
    )
