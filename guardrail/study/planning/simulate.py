"""When each job of a study runs: the jobs' graph on the cores of a CPU machine, or on the leased GPUs of a node.

List scheduling, as the workflow does it: whenever something is free, ready jobs are started in the order of the study,
each if it fits. A training job takes all GPUs and so waits until the others have ended; while it waits, smaller jobs
that fit go ahead of it (Snakemake fills its resources). Durations are given; nothing is run.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One job: how long it takes, what it needs first, and what it holds meanwhile. Smaller ``rank`` starts first."""

    name: str
    seconds: float
    needs: tuple[str, ...] = ()
    holds: Mapping[str, int] | None = None
    rank: int = 0

    @property
    def resources(self) -> Mapping[str, int]:
        return {"jobs": 1} if self.holds is None else self.holds


@dataclass(frozen=True)
class Schedule:
    """Start and end of every task in seconds from the first start; ``critical`` is the longest chain of needs."""

    starts: dict[str, float]
    ends: dict[str, float]
    critical: tuple[str, ...]
    critical_sec: float

    @property
    def wall_sec(self) -> float:
        return max(self.ends.values(), default=0.0)

    def order_of_ends(self) -> list[str]:
        return sorted(self.ends, key=lambda name: (self.ends[name], self.starts[name]))


def simulate(tasks: Sequence[Task], limits: Mapping[str, int]) -> Schedule:
    """The schedule of ``tasks`` under ``limits`` (resource -> how much there is). Needs that are no task are done.

    Raises ``ValueError`` for a task that can never start: it holds more than there is, or waits for itself.
    """
    by_name = {task.name: task for task in tasks}
    order = {task.name: (task.rank, place) for place, task in enumerate(tasks)}
    for task in tasks:
        for resource, amount in task.resources.items():
            if amount > limits.get(resource, 0):
                raise ValueError(f"{task.name} holds {amount} of {resource}; there are {limits.get(resource, 0)}")
    waits = {task.name: {need for need in task.needs if need in by_name} for task in tasks}
    after: dict[str, list[str]] = {name: [] for name in by_name}
    for name, needs in waits.items():
        for need in needs:
            after[need].append(name)
    ready = sorted((name for name, needs in waits.items() if not needs), key=order.__getitem__)
    free, now = dict(limits), 0.0
    running: list[tuple[float, tuple[int, int], str]] = []
    starts: dict[str, float] = {}
    ends: dict[str, float] = {}
    while ready or running:
        left = []
        for name in ready:
            task = by_name[name]
            if all(free[resource] >= amount for resource, amount in task.resources.items()):
                for resource, amount in task.resources.items():
                    free[resource] -= amount
                starts[name], ends[name] = now, now + task.seconds
                heapq.heappush(running, (ends[name], order[name], name))
            else:
                left.append(name)
        ready = left
        now = running[0][0]  # never empty here: whatever is ready fits an empty machine
        while running and running[0][0] <= now:
            _, _, name = heapq.heappop(running)
            for resource, amount in by_name[name].resources.items():
                free[resource] += amount
            for later in after[name]:
                waits[later].discard(name)
                if not waits[later]:
                    ready.append(later)
        ready.sort(key=order.__getitem__)
    if len(ends) != len(by_name):
        raise ValueError(f"jobs wait for each other: {', '.join(sorted(set(by_name) - set(ends)))}")
    path, length = longest_chain(tasks)
    return Schedule(starts, ends, path, length)


def one_after_the_other(schedules: Sequence[Schedule], between_sec: float) -> Schedule:
    """Schedules of batches as one: each begins ``between_sec`` after the one before has ended. Their longest chains are
    added: what one batch leaves free the next cannot use."""
    starts: dict[str, float] = {}
    ends: dict[str, float] = {}
    now = 0.0
    for schedule in schedules:
        now = now + between_sec if ends else 0.0
        starts |= {name: now + start for name, start in schedule.starts.items()}
        ends |= {name: now + end for name, end in schedule.ends.items()}
        now += schedule.wall_sec
    chain = tuple(name for schedule in schedules for name in schedule.critical)
    pauses = between_sec * max(len(schedules) - 1, 0)
    return Schedule(starts, ends, chain, sum(schedule.critical_sec for schedule in schedules) + pauses)


def longest_chain(tasks: Sequence[Task]) -> tuple[tuple[str, ...], float]:
    """The chain of needs that takes longest, first job first, and its seconds: no machine is faster than that.

    ``tasks`` come each after those that it needs, in any order otherwise; needs that are no task count nothing.
    """
    by_name = {task.name: task for task in tasks}
    length: dict[str, float] = {}
    before: dict[str, str | None] = {}

    def visit(start: str) -> None:
        stack = [start]
        while stack:
            name = stack[-1]
            open_needs = [need for need in by_name[name].needs if need in by_name and need not in length]
            if open_needs:
                stack.extend(open_needs)
                continue
            stack.pop()
            known = [need for need in by_name[name].needs if need in by_name]
            last = max(known, key=length.__getitem__, default=None)
            before[name] = last
            length[name] = by_name[name].seconds + (length[last] if last else 0.0)

    for task in tasks:
        if task.name not in length:
            visit(task.name)
    if not length:
        return (), 0.0
    end: str | None = max(length, key=length.__getitem__)
    total, chain = length[str(end)], []
    while end is not None:
        chain.append(end)
        end = before[end]
    return tuple(reversed(chain)), total
