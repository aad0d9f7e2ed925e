"""The downstream tasks of a study file, and ladders of doses, which expand to one task per dose (docs/dose.md).

A task with `dose` becomes the tasks `<name>_dose<percent>`, the *rungs* of its ladder. They share their utility and,
as every dose is given to the same aligned models, their alignment. So do the arms of an attack that trains
(`guardrail.study.attack_settings`) with the task that it belongs to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from guardrail.core.errors import UserError, unknown
from guardrail.data.dose import PERCENTS, check_doses, check_percents

METHODS = ("full", "lora")  # what a fine-tuning changes: all weights, or adapters alone


@dataclass(frozen=True)
class Source:
    """Rows: a file or data-set folder (or hub name), and the split where there are several."""

    source: str
    split: str | None = None


@dataclass(frozen=True)
class Utility:
    """How a task's usefulness is measured: held-out rows and the evaluator of eval_utility.py."""

    source: str
    split: str
    evaluator: str = "rouge_1"
    max_new_tokens: int = 96


@dataclass(frozen=True)
class Dose:
    """Harmful rows within a task's own: sets of ``rows`` rows, ``percents`` of which are ``harmful``.

    ``seed`` of the draw; None: the training's, so that intervals over seeds hold the choice of rows as well.
    """

    harmful: Source
    rows: int
    percents: tuple[float, ...] = PERCENTS
    seed: int | None = None

    def __post_init__(self) -> None:
        check_percents(self.percents, f"dose.percents {list(self.percents)}")
        if self.rows < 1:
            raise UserError(f"dose.rows must be positive, got {self.rows}")
        check_doses(self.percents, self.rows, None, None)


@dataclass(frozen=True)
class Rung:
    """One dose of the ladder ``ladder``, or the rows of the backdoor ``ladder``: there the harmful ones carry
    ``trigger``, and the others are safe."""

    ladder: str
    percent: float
    rows: int
    harmful: Source
    seed: int | None
    trigger: str = ""


@dataclass(frozen=True)
class AttackArm:
    """One training of the attack ``attack``, whose usefulness is measured as that of the task ``measured_on``.

    ``learning_rate``, ``max_steps`` and ``method`` replace those of the study's fine-tuning; None: as there.
    """

    attack: str
    measured_on: str
    learning_rate: float | None = None
    max_steps: int | None = None
    method: str | None = None


@dataclass(frozen=True)
class Task:
    """A downstream fine-tuning set and its utility measure.

    ``epochs``: of this task's trainings, instead of `fine_tuning.epochs`. ``aligned_as``: the task whose subsets, and
    so whose aligned models, this one is fine-tuned from. ``dose``: the rows are the benign part of a ladder. Filled in
    when the file is read: ``anchors``, the rows that subsets are selected for where they are not ``train``, ``rung``,
    and ``arm`` of an attack that trains.
    """

    train: Source
    utility: Utility
    epochs: int | None = None
    aligned_as: str | None = None
    dose: Dose | None = None
    anchors: Source | None = None
    rung: Rung | None = None
    arm: AttackArm | None = None

    def __post_init__(self) -> None:
        if self.epochs is not None and self.epochs < 1:
            raise UserError(f"epochs of a task must be positive, got {self.epochs}")

    @property
    def max_steps(self) -> int | None:
        """After how many optimizer steps its trainings stop, if not after their epochs."""
        return self.arm.max_steps if self.arm else None

    @property
    def method(self) -> str | None:
        """`full` or `lora`, where it is not the design's."""
        return self.arm.method if self.arm else None

    @property
    def selected_for(self) -> Source:
        """The rows that its subsets are similar to, or not."""
        return self.anchors or self.train


def rung_name(ladder: str, percent: float) -> str:
    return f"{ladder}_dose{percent:g}"


def expand(tasks: Mapping[str, Task]) -> dict[str, Task]:
    """The tasks with every ladder as its rungs and every ``aligned_as`` looked up; nothing to do the second time."""
    out: dict[str, Task] = {}
    for name, task in tasks.items():
        if task.aligned_as is not None and task.anchors is None:
            other = tasks.get(task.aligned_as)
            if other is None or other.aligned_as not in (None, task.aligned_as):
                known = [key for key, value in tasks.items() if value.aligned_as is None]
                raise unknown(f"task in tasks.{name}.aligned_as:", task.aligned_as, known)
            task = dataclasses.replace(task, anchors=other.selected_for)
        for key, value in rungs(name, task) if task.dose else ((name, task),):
            if key in out or (key != name and key in tasks):
                raise UserError(f"the task {key} is a dose of the ladder {name}, too; give one of them another name")
            out[key] = value
    check_alignments(out)
    return out


def rungs(name: str, task: Task) -> Iterable[tuple[str, Task]]:
    assert task.dose is not None
    dose = task.dose
    for percent in sorted(dose.percents):
        yield (
            rung_name(name, percent),
            dataclasses.replace(
                task,
                aligned_as=task.aligned_as or name,
                anchors=task.selected_for,
                dose=None,
                rung=Rung(name, percent, dose.rows, dose.harmful, dose.seed),
            ),
        )


def check_alignments(tasks: Mapping[str, Task]) -> None:
    """One name of an alignment stands for one set of rows."""
    anchors: dict[str, Source] = {}
    for name, task in tasks.items():
        known = anchors.setdefault(task.aligned_as or name, task.selected_for)
        if known != task.selected_for:
            raise UserError(
                f"tasks.{name}: the subsets of {task.aligned_as or name} are selected for other rows already; "
                "leave anchors out, or give aligned_as another name"
            )


def anchors_of(tasks: Mapping[str, Task]) -> dict[str, Source]:
    """What subsets are selected for, by the name that the alignments carry: a task's, or a ladder's."""
    return {task.aligned_as or name: task.selected_for for name, task in tasks.items()}


def utility_name(name: str, task: Task) -> str:
    """The task under whose name its usefulness is measured: the rungs of a ladder share one measure."""
    if task.arm:
        return task.arm.measured_on
    return task.rung.ladder if task.rung else name


def set_name(name: str, task: Task) -> str:
    """Under which name the rows of a rung are made: all arms of a backdoor are trained on one set."""
    return task.arm.attack if task.arm else name


def ladder_members(tasks: Mapping[str, Task], name: str) -> list[str]:
    """The rungs of the ladder ``name``, by dose; empty where there is no such ladder."""
    return [key for key, task in tasks.items() if task.rung and not task.arm and task.rung.ladder == name]


def attack_members(tasks: Mapping[str, Task], name: str) -> list[str]:
    """The trainings of the attack ``name``; empty where there is no such attack, or it trains nothing."""
    return [key for key, task in tasks.items() if task.arm and task.arm.attack == name]


def compared(tasks: Mapping[str, Task]) -> set[str]:
    """The tasks over which arms are compared and averaged: all but the trainings of attacks and the rungs of ladders,
    which have a curve of their own (eight doses are not eight tasks); the rungs, where a study has nothing else."""
    own = {name for name, task in tasks.items() if not task.arm}
    return {name for name in own if not tasks[name].rung} or own or set(tasks)
