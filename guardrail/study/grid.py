"""Names and places of a study's parts: which alignments exist, which cells share them, where files lie.

outputs/<study>/
  similarity/<set>/reps/extraction/      representations of the pool and of each task
  similarity/<task>/<subset>_<size>/     selections
  data/                                  training splits (instruct + subset), hub layout
  doses/<ladder>/seed<k>/                fine-tuning sets with harmful rows at several doses, or of a backdoor
  aligned/<alignment>/seed<k>/           aligned checkpoint and its evaluation/
  scores/<task>/<defence>/...            scores of a task's rows, for a row filter (`guardrail.study.score_jobs`)
  cells/<task>__<alignment>/seed<k>/     fine-tuned checkpoint, its evaluation/ and probes/ (`_lora`: by adapters;
                                         `_with_<defence>`)
  base/                                  evaluation of the base model
  study.json  tables/  figures/
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from guardrail.evaluation import judges
from guardrail.study.config import TASK_SUBSETS, Design, Study

SAFETY_FILE = "evaluation/safety/beaver-dam.json"
OVER_REFUSAL_FILE = "evaluation/over_refusal/key-word.json"
PROBE_SAFETY_FILE = "probes/safety/beaver-dam.json"
PROBE_REFUSALS_FILE = "probes/over_refusal/key-word.json"
MACHINE_FILE = "machine_noise.json"  # of `benchmarks/machine_noise.py`: `guardrail.study.noise`
SIZELESS = ("full", "none")
MIXED = Design()


def sizeless(subset: str) -> bool:
    """Arms that have no subset size: one arm per study, not one per size."""
    return subset in SIZELESS


@dataclass(frozen=True)
class Alignment:
    """One upstream alignment: ``task`` is None where the subset does not depend on the downstream task."""

    task: str | None
    subset: str
    size: int
    seed: int
    design: str = "mixed"
    defence: str = "none"

    @property
    def rows(self) -> str:
        """The safety rows: `list_high_sim_1000`, `random_sim_1000`, `full`, `none`."""
        if sizeless(self.subset):
            return self.subset
        return f"{self.task}_{self.subset}_sim_{self.size}" if self.task else f"{self.subset}_sim_{self.size}"

    @property
    def replays(self) -> bool:
        """Whether the training split holds a share of the instructions instead of all."""
        return self.design != "mixed"

    @property
    def split(self) -> str:
        """The training split; designs that replay share it."""
        return f"train_{self.rows}_replay" if self.replays else f"train_{self.rows}"

    @property
    def name(self) -> str:
        """`list_high_sim_1000`; with the design behind it where that is not `mixed`: `none_continued`; and with the
        defence of the alignment: `list_high_sim_1000_with_vaccine`."""
        made = f"{self.rows}_{self.design}" if self.replays else self.rows
        return made + tail_of(self.defence)


@dataclass(frozen=True)
class Cell:
    """One fine-tuning run: an alignment, then a downstream task. ``own_method``: an attack's, not the design's."""

    task: str
    subset: str
    size: int
    seed: int
    design: Design = MIXED
    aligned_as: str | None = None
    own_method: str | None = None

    @property
    def trained(self) -> Design:
        """The design with the method that the cell is really fine-tuned with."""
        return dataclasses.replace(self.design, method=self.own_method) if self.own_method else self.design

    @property
    def anchor(self) -> str:
        """The task (or ladder of doses) whose subset it was aligned on; its own unless the study says otherwise."""
        return self.aligned_as or self.task

    @property
    def alignment(self) -> Alignment:
        task = self.anchor if self.subset in TASK_SUBSETS else None
        defence = self.design.defence if self.design.aligned_with else "none"
        return Alignment(task, self.subset, self.size, self.seed, self.design.alignment, defence)

    @property
    def defence(self) -> str:
        """The defence of the fine-tuning."""
        return "none" if self.design.aligned_with else self.design.defence

    @property
    def name(self) -> str:
        tail = "" if self.design.method == "full" else f"_{self.design.method}"
        return f"{self.task}__{self.alignment.name}{tail}{tail_of(self.defence)}"


def tail_of(defence: str) -> str:
    """What a defence adds to the name of a folder."""
    return "" if defence == "none" else f"_with_{defence}"


def judge_file(judge: str) -> str:
    """Where a further judge's judgements of a checkpoint lie, below the checkpoint's folder."""
    return f"evaluation/safety/{judges.file_name(judge)}"


def attack_file(attack: str) -> str:
    """Where the judged answers under an attack lie, below the checkpoint's folder."""
    return f"evaluation/attacks/{attack}/{Path(SAFETY_FILE).name}"


def utility_file(task: str) -> str:
    """Where a checkpoint's utility on ``task``'s held-out rows lies, below the checkpoint's folder."""
    return f"evaluation/utility/{task}.json"


class Grid:
    """All cells of a study in table order, the alignments they need, and their folders."""

    def __init__(self, study: Study, root: str | Path = "outputs") -> None:
        self.study = study
        self.folder = Path(root) / study.name

    @property
    def cells(self) -> list[Cell]:
        study = self.study
        out = []
        for design in study.all_designs:
            for name, task in study.tasks.items():
                for size in study.subset_sizes:
                    for subset in study.subsets:
                        if sizeless(subset) and size != study.subset_sizes[0]:
                            continue
                        place = (design, task.aligned_as, task.method)
                        out += [Cell(name, subset, size, seed, *place) for seed in study.seeds]
        return out

    @property
    def alignments(self) -> list[Alignment]:
        return list(dict.fromkeys(cell.alignment for cell in self.cells))

    def aligned_folder(self, alignment: Alignment) -> Path:
        return self.folder / "aligned" / alignment.name / f"seed{alignment.seed}"

    def cell_folder(self, cell: Cell) -> Path:
        return self.folder / "cells" / cell.name / f"seed{cell.seed}"

    @property
    def base_folder(self) -> Path:
        return self.folder / "base"
