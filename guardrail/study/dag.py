"""Every job of a study with its key, known before anything runs.

    jobs = make_jobs(grid, trainer="guardrail.training.sft", ranks=4)

Nothing is run or loaded here: contents of sources and models are hashed, everything else is arithmetic.
"""

from __future__ import annotations

from guardrail.study.config import TASK_SUBSETS, Study
from guardrail.study.defence_jobs import eval_template_of
from guardrail.study.evaluation_jobs import EVAL_TEMPLATE, evaluate
from guardrail.study.grid import Cell, Grid
from guardrail.study.jobs import Job, JobMaker
from guardrail.study.probe_jobs import judge_probes
from guardrail.study.training_jobs import (
    align,
    aligned_name,
    dose,
    dosed_name,
    fine_tune,
    mix,
    mixed_name,
    representations,
    select,
    tuned_name,
)


def make_jobs(grid: Grid, trainer: str, ranks: int = 1, missing_ok: bool = False) -> dict[str, Job]:
    """Every job of the study by name, each after the jobs that it needs.

    Args:
        trainer: the SFT module that training jobs launch; its numbers are its own, so it is part of their keys.
        ranks: processes of a training job.
        missing_ok: sources may be missing (for a plan); what reads them is not done then.

    Raises ``UserError`` for a missing source or split.
    """
    study, maker = grid.study, JobMaker(grid, trainer, ranks, missing_ok)
    for name in ("safety_pool", *study.anchors) if maker.selected else ():
        representations(maker, name)
    for task, size in sorted({(c.anchor, c.size) for c in grid.cells if needs_selection(study, c)}):
        select(maker, task, size)
    for alignment in grid.alignments:
        if mixed_name(alignment) not in maker.jobs:
            mix(maker, alignment)
        align(maker, alignment)
    for cell in grid.cells:
        if study.tasks[cell.task].rung and dosed_name(study, cell) not in maker.jobs:
            dose(maker, cell)
        fine_tune(maker, cell)
    evaluate(maker, "base", None, sorted(study.utilities))
    for alignment in grid.alignments:
        tasks = sorted({study.utility_of(cell.task) for cell in grid.cells if cell.alignment == alignment})
        evaluate(maker, f"aligned/{alignment.name}/seed{alignment.seed}", aligned_name(alignment), tasks)
    for cell in grid.cells:
        # an adapter that was trained on an aligned model of full weights is read together with them
        both = cell.trained.method == "lora" and cell.design.alignment != "adapter"
        below = [aligned_name(cell.alignment)] if both else []
        asked = eval_template_of(study, cell, EVAL_TEMPLATE)
        evaluate(
            maker, f"cells/{cell.name}/seed{cell.seed}", tuned_name(cell), [study.utility_of(cell.task)], below, asked
        )
        if study.fine_tuning.probes:
            judge_probes(maker, cell, tuned_name(cell))
    return maker.jobs


def needs_selection(study: Study, cell: Cell) -> bool:
    """Are rows selected for the cell's task, for its alignment or for its defence?"""
    setting = study.defence_settings.get(cell.design.defence)
    return cell.subset in TASK_SUBSETS or (setting is not None and setting.rows in TASK_SUBSETS)
