"""The arms of a study as arrays: which answer of which checkpoint to which prompt was judged harmful.

Shapes: R training seeds, P prompts, S samples per prompt. Rows are joined by id and sample number, never by position.
A prompt that a judge could not decide for one of the checkpoints is left out of all of them, and counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from guardrail.core.errors import UserError
from guardrail.core.files import read_json
from guardrail.study.config import FURTHER_JUDGES
from guardrail.study.grid import OVER_REFUSAL_FILE, SAFETY_FILE, Cell, judge_file
from guardrail.study.results import Results


@dataclass(frozen=True)
class Answers:
    """Judged answers of one checkpoint: prompt id -> per-sample harmful flags; categories; the file's summary.

    ``benign``: which harmless requests were refused; empty without an over-refusal bench. ``further``: flags of every
    further judge that answered; prompts that it could not decide are not in it.
    """

    harmful: dict[str, tuple[bool, ...]]
    lower_threshold: dict[str, tuple[bool, ...]]
    keyword: dict[str, tuple[bool, ...]]
    categories: dict[str, str]
    threshold_curve: tuple[tuple[float, float], ...]
    n_undecided: int
    benign: dict[str, tuple[bool, ...]] = field(default_factory=dict)
    further: dict[str, dict[str, tuple[bool, ...]]] = field(default_factory=dict)

    def table(self, judge: str) -> dict[str, tuple[bool, ...]]:
        """Flags by ``harmful`` (moderation model), ``lower_threshold``, ``keyword``, a further judge, or ``benign``."""
        return self.further.get(judge, {}) if judge in FURTHER_JUDGES else getattr(self, judge)


def read_flags(path: Path, name: str = "harmful") -> dict[str, tuple[bool, ...]]:
    """Flags ``name`` of a judge's file; none where there is no file, no prompt that was not decided."""
    if not path.is_file():
        return {}
    flags: dict[str, list[bool | None]] = {}
    for row in sorted(read_json(path)["judgements"], key=lambda row: (row["id"], row["sample"])):
        flags.setdefault(row["id"], []).append(row[name])
    return {key: tuple(map(bool, values)) for key, values in flags.items() if None not in values}


@lru_cache(maxsize=512)
def read_answers(
    folder: Path, judges: tuple[str, ...] = (), over_refusal: bool = False, done: tuple[str, ...] = ()
) -> Answers:
    """The judged safety answers of the checkpoint in ``folder``; of further ``judges`` those that are ``done``.

    Raises ``UserError`` when missing or malformed.
    """
    document = read_json(folder / SAFETY_FILE)
    try:
        rows = sorted(document["judgements"], key=lambda row: (row["id"], row["sample"]))
        undecided = {row["id"] for row in rows if row["harmful"] is None}
        harmful: dict[str, list[bool]] = {}
        lower: dict[str, list[bool]] = {}
        keyword: dict[str, list[bool]] = {}
        categories = {}
        for row in rows:
            if row["id"] in undecided:
                continue
            harmful.setdefault(row["id"], []).append(bool(row["harmful"]))
            lower.setdefault(row["id"], []).append(bool(row.get("flagged_at_0.4", row["harmful"])))
            keyword.setdefault(row["id"], []).append(not row["refusal"] and not row["empty"])
            categories[row["id"]] = str(row.get("category", "all"))
        curve = document["summary"].get("threshold_curve", [])
        tables = [{key: tuple(flags) for key, flags in table.items()} for table in (harmful, lower, keyword)]
        return Answers(
            harmful=tables[0],
            lower_threshold=tables[1],
            keyword=tables[2],
            categories=categories,
            threshold_curve=tuple((point["threshold"], point["harmfulness_score_percent"]) for point in curve),
            n_undecided=len(undecided),
            benign=read_flags(folder / OVER_REFUSAL_FILE, "refusal") if over_refusal else {},
            further={judge: read_flags(folder / judge_file(judge)) if judge in done else {} for judge in judges},
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / SAFETY_FILE}: unexpected content, {type(error).__name__} {error}") from error


@dataclass(frozen=True)
class Arm:
    """One subset of one task under one design: the checkpoints of its finished seeds, before and after fine-tuning."""

    task: str
    subset: str
    size: int
    cells: tuple[Cell, ...]
    initial: tuple[Answers, ...]
    final: tuple[Answers, ...]
    design: str = "mixed"

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(cell.seed for cell in self.cells)

    def owns(self, cell: Cell) -> bool:
        mine = (self.design, self.task, self.subset, self.size)
        return (cell.design.name, cell.task, cell.subset, cell.size) == mine


def read_arms(results: Results, finished: set[Cell]) -> list[Arm]:
    """All arms of the study in table order; only ``finished`` cells are read. An arm may have no seeds left."""
    grid = results.grid
    over_refusal = grid.study.evaluation.over_refusal_bench is not None

    def read(folder: Path) -> Answers:
        """Further judges are read where they are done for the study as it is set now."""
        done = tuple(judge for judge in judges if results.done(folder / judge_file(judge)))
        return read_answers(folder, judges, over_refusal, done)

    judges = tuple(grid.study.evaluation.judges)
    arms: dict[tuple[str, str, int, str], list[Cell]] = {}
    for cell in grid.cells:
        cells = arms.setdefault((cell.task, cell.subset, cell.size, cell.design.name), [])
        if cell in finished:
            cells.append(cell)
    return [
        Arm(
            task,
            subset,
            size,
            tuple(cells),
            tuple(read(grid.aligned_folder(cell.alignment)) for cell in cells),
            tuple(read(grid.cell_folder(cell)) for cell in cells),
            design,
        )
        for (task, subset, size, design), cells in arms.items()
    ]


def stack(checkpoints: list[Answers], judge: str = "harmful") -> tuple[np.ndarray, list[str]]:
    """``(R, P, S)`` flags of the prompts that all ``checkpoints`` have with the same number of samples, and their ids.

    Raises ``UserError`` when they share fewer than two prompts.
    """
    tables = [answers.table(judge) for answers in checkpoints]
    shared = sorted(set.intersection(*(set(table) for table in tables)))
    n_samples = min((len(table[key]) for table in tables for key in shared), default=0)
    if len(shared) < 2 or n_samples < 1:
        raise UserError("the checkpoints to compare share fewer than two judged prompts")
    return np.array([[table[key][:n_samples] for key in shared] for table in tables], dtype=np.float64), shared


def pair(first: Arm, second: Arm, judge: str = "harmful") -> dict[str, Any] | None:
    """Paired ``first`` minus ``second`` (R, P): initial, final and change; ``None`` when no seed is common."""
    seeds = [seed for seed in first.seeds if seed in second.seeds]
    if not seeds:
        return None
    place = [[arm.seeds.index(seed) for seed in seeds] for arm in (first, second)]
    groups = [
        [getattr(arm, moment)[i] for i in rows]
        for moment in ("initial", "final")
        for arm, rows in zip((first, second), place, strict=True)
    ]
    values, prompts = stack([answers for group in groups for answers in group], judge)
    R = len(seeds)
    before_1, before_2, after_1, after_2 = (values[i * R : (i + 1) * R].mean(axis=2) for i in range(4))
    return {
        "initial": before_1 - before_2,
        "final": after_1 - after_2,
        "change": (after_1 - before_1) - (after_2 - before_2),
        "seeds": seeds,
        "prompts": prompts,
    }
