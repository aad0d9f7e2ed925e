"""Which arms, seeds and prompts: the best choice within a budget.

A choice keeps some tasks, some subset sizes, the first seeds, the first prompts, and the two arms of the primary
comparison with the first of the control arms. Better is, in this order: a smaller detectable difference, down to the
smallest that matters; then more tasks, more controls, more sizes; then again the detectable difference, then the cost.
Costs grow with every part, so that controls are found by bisection; everything else is tried.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

T = TypeVar("T")
DIGITS = 2  # of a detectable difference in points: what differs less is equal


@dataclass(frozen=True)
class Choice:
    """A part of a study. ``controls``: how many units of control arms stay."""

    tasks: tuple[str, ...]
    sizes: tuple[int, ...]
    seeds: int
    prompts: int
    controls: int


@dataclass(frozen=True)
class Found:
    """A choice with its hours and its detectable difference in points."""

    choice: Choice
    hours: float
    points: float


@dataclass(frozen=True)
class Space:
    """What can be chosen from, and what a choice costs and detects. ``enough``: points below which less is no gain."""

    tasks: tuple[str, ...]
    sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    prompts: tuple[int, ...]
    n_controls: int
    enough: float
    hours: Callable[[Choice], float]
    points: Callable[[Choice], float]

    def rank(self, found: Found) -> tuple[float, ...]:
        """Smaller is better."""
        choice = found.choice
        return (
            max(round(found.points, DIGITS), self.enough),
            -len(choice.tasks),
            -choice.controls,
            -len(choice.sizes),
            round(found.points, DIGITS),
            found.hours,
        )


def parts_of(items: Sequence[T]) -> Iterator[tuple[T, ...]]:
    """Every non-empty part of ``items``, in their order."""
    for n in range(1, len(items) + 1):
        yield from itertools.combinations(items, n)


def with_most_controls(space: Space, budget: float, least: Choice) -> Found | None:
    """``least`` with as many units of controls as the budget has room for; None where it has none for itself."""
    low, high = -1, space.n_controls  # `low` fits (-1: nothing does), above `high` nothing does
    while low < high:
        middle = (low + high + 1) // 2
        if space.hours(replace(least, controls=middle)) <= budget:
            low = middle
        else:
            high = middle - 1
    if low < 0:
        return None
    found = replace(least, controls=low)
    return Found(found, space.hours(found), space.points(found))


def within(space: Space, budget: float) -> list[Found]:
    """For every choice of tasks, sizes, seeds and prompts that fits the budget, the one with most controls."""
    parts = itertools.product(parts_of(space.tasks), parts_of(space.sizes), space.seeds, space.prompts)
    found = (with_most_controls(space, budget, Choice(*part, 0)) for part in parts)
    return [one for one in found if one is not None]


def best(space: Space, budget: float) -> Found | None:
    """The best choice within ``budget``; None where not even the smallest fits."""
    return min(within(space, budget), key=space.rank, default=None)


def cheapest(space: Space) -> Found:
    """The least that can be asked: one task, one size, fewest seeds and prompts, no controls."""
    choices = (
        Choice((task,), (size,), min(space.seeds), min(space.prompts), 0)
        for task, size in itertools.product(space.tasks, space.sizes)
    )
    return min((Found(c, space.hours(c), space.points(c)) for c in choices), key=lambda found: found.hours)


def alternatives(space: Space, budget: float, proposal: Found, limit: int = 4) -> list[tuple[str, Found]]:
    """Other choices within the budget, each with what it is better at than the proposal."""
    every = within(space, budget)
    wishes: list[tuple[str, Callable[[Found], tuple[float, ...]]]] = [
        ("smallest detectable difference", lambda f: (round(f.points, DIGITS), f.hours)),
        ("all tasks that fit", lambda f: (-len(f.choice.tasks), *space.rank(f))),
        ("most control arms", lambda f: (-f.choice.controls, *space.rank(f))),
        ("most subset sizes", lambda f: (-len(f.choice.sizes), *space.rank(f))),
    ]
    out: list[tuple[str, Found]] = []
    taken = {proposal.choice}
    for what, wish in wishes:
        found = min(every, key=wish)
        if found.choice not in taken:
            taken.add(found.choice)
            out.append((what, found))
    half = best(space, budget / 2)
    if half is not None and half.choice not in taken:
        out.append(("half the budget", half))
    return out[:limit]
