"""Check a study before anything runs, and write it down resolved.

    python -m guardrail.study.check configs/studies/quickstart.yaml [--sizes 500] [--seeds 1,2] [--subsets high,low]
    python -m guardrail.study.check configs/studies/paper_llama2_7b.yaml --plan
    python -m guardrail.study.check configs/studies/quickstart.yaml --dry_run

Everything a user can get wrong is found here, in about a second: misspelt keys, missing data, a subset larger than
the pool, a model folder that is none, too little disk. Writes `outputs/<study>/study_config.json`, which later steps
read; `--plan` and `--dry_run` write nothing. For sandbox studies the data are generated first (seconds) and the models
may still be missing.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from guardrail.core.cli import Parser, log, positive_int, run
from guardrail.core.errors import UserError, unknown
from guardrail.core.files import read_json, require_free_space, write_json
from guardrail.core.places import SANDBOX_DATA
from guardrail.data.dose import check_doses, rounding
from guardrail.models.checkpoints import resolve_checkpoint
from guardrail.study.config import Study, as_dict, load_study
from guardrail.study.declaration import digest_of, in_words
from guardrail.study.disk import bytes_per_checkpoint, space_to_start
from guardrail.study.grid import Grid
from guardrail.study.registration import declare
from guardrail.study.score_jobs import check_anchors
from guardrail.study.sources import count_rows, pool_rows
from guardrail.study.tasks import attack_members, ladder_members


def numbers(text: str) -> list[int]:
    """`1,2,3` as integers."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{text!r} is not a comma-separated list of whole numbers") from None


def positive_hours(text: str) -> float:
    """A positive number of hours."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(f"--budget {text!r} is not a number of hours above 0, such as 50")
    return value


def keep_tasks(study: Study, names: list[str]) -> Study:
    """The study with only the tasks ``names``, in the file's order; the name of a ladder stands for all of
    its doses, that of an attack for all of its trainings."""
    kept: set[str] = set()
    for name in names:
        members = ladder_members(study.tasks, name) or attack_members(study.tasks, name)
        found = [name] if name in study.tasks else members
        if not found:
            raise unknown("task", name, dict.fromkeys((*study.utilities, *study.expanded, *study.tasks)))
        kept |= set(found)
    return dataclasses.replace(study, tasks={name: task for name, task in study.tasks.items() if name in kept})


def keep_defences(study: Study, names: list[str]) -> Study:
    """The study with only the defences ``names``, in the file's order, beside the arms without one."""
    for name in names:
        if name not in study.defences:
            raise unknown("defence", name, study.defences)
    kept = {name: raw for name, raw in study.defences.items() if name in names}
    return dataclasses.replace(study, defences=kept)


def check_study(study: Study, outputs: str | Path) -> dict[str, Any]:
    """Raise ``UserError`` for what would fail later; return the plan's headline numbers."""
    pool = pool_rows(study)
    instruct = count_rows(study.instruct)
    if study.instruct_size and instruct is not None and study.instruct_size > instruct:
        raise UserError(f"instruct_size {study.instruct_size} is larger than the instruct split ({instruct} rows)")
    for name, task in study.tasks.items():
        count_rows(task.train)
        where = f"attacks.{task.arm.attack}" if task.arm else f"tasks.{name}"
        if task.rung:
            there = count_rows(task.train), count_rows(task.rung.harmful)
            try:
                check_doses([task.rung.percent], task.rung.rows, *there)
            except UserError as error:
                raise UserError(f"{where}: {error}") from error
            if said := rounding([task.rung.percent], task.rung.rows):
                log(f"{where}: {said}")
        if not study.sandbox and not Path(task.utility.source).exists() and task.utility.source.count("/") != 1:
            raise UserError(f"tasks.{name}.utility: no such file or folder: {task.utility.source}")
    check_anchors(study)
    if not study.sandbox:
        for model in (study.models.base, study.models.extraction, study.models.moderation):
            resolve_checkpoint(model)
    guard = study.evaluation.judges.get("guard")
    if guard is not None and guard.backend != "openai":
        resolve_checkpoint(guard.model)
    grid = Grid(study, outputs)
    checkpoints = [grid.aligned_folder(alignment) for alignment in grid.alignments]
    checkpoints += [grid.cell_folder(cell) for cell in grid.cells]
    require_free_space(grid.folder, space_to_start(grid, bytes_per_checkpoint(study)))
    return {
        "cells": len(grid.cells),
        "alignments": len(grid.alignments),
        "fine_tunings": len(grid.cells),
        "evaluated_checkpoints": len(checkpoints) + 1,
        "pool_rows": pool,
    }


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = Parser(prog="guardrail.study.check", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("study", help="a file of configs/studies/")
    parser.add_argument("--sizes", type=numbers, help="replace subset_sizes: 500,1000")
    parser.add_argument("--seeds", type=numbers, help="replace seeds: 1,2,3")
    parser.add_argument("--subsets", type=lambda text: text.split(","), help="replace subsets: high,low")
    parser.add_argument("--tasks", type=lambda text: text.split(","), help="keep only these tasks: list,pure_bad")
    parser.add_argument("--prompts", type=positive_int, help="only the first so many safety prompts (evaluation.limit)")
    parser.add_argument("--designs", type=lambda text: text.split(","), help="replace designs: continued,adapter+lora")
    parser.add_argument("--defences", type=lambda text: text.split(","), help="keep only these: filter_10,soup_30")
    parser.add_argument("--set", default="", help="change single settings: keep=none,alignment.batching=length_grouped")
    parser.add_argument("--outputs", default="outputs", help="folder that holds the study's folder")
    parser.add_argument("--plan", action="store_true", help="only print what it costs; data and models may be missing")
    parser.add_argument("--calibrate", action="store_true", help="measure this machine first, for --plan")
    parser.add_argument("--budget", type=positive_hours, help="propose the best part within so many hours, for --plan")
    parser.add_argument("--earlier", help="study.json whose variances --budget and the power of the primary count on")
    parser.add_argument("--dry_run", action="store_true", help="print the jobs that would run and why; write nothing")
    parser.add_argument("--ranks", type=positive_int, default=1, help="processes of a training job per node, for both")
    parser.add_argument("--nodes", type=positive_int, default=1, help="nodes of a training job, likewise")
    parser.add_argument("--gpu_names", default="", help="GPUs that the jobs share, as 0,1,2,3, for both")
    parser.add_argument("--gpus_per_job", type=positive_int, default=1, help="of a job that does not train, likewise")
    args = parser.parse_args(argv)
    overrides = {"subset_sizes": args.sizes, "seeds": args.seeds, "subsets": args.subsets, "designs": args.designs}
    study = load_study(args.study, {key: value for key, value in overrides.items() if value}, args.set)
    if args.tasks:
        study = keep_tasks(study, args.tasks)
    if args.defences:
        study = keep_defences(study, args.defences)
    if args.prompts:
        study = dataclasses.replace(study, evaluation=dataclasses.replace(study.evaluation, limit=args.prompts))
    if study.sandbox:
        from guardrail.sandbox.controls import prepare_controls
        from guardrail.sandbox.writer import write_sandbox

        write_sandbox(SANDBOX_DATA, seed=0)  # a second; nothing when it is there
        prepare_controls({study.safety_pool.source})
    grid = Grid(study, args.outputs)
    if args.plan or args.dry_run:
        from guardrail.study.schedule import this_machine
    if args.plan:
        from guardrail.study.planning.command import plan_command

        if Path(study.safety_pool.source).exists():
            pool_rows(study)
        machine, ranks = this_machine(args.gpu_names, args.gpus_per_job, args.nodes), args.ranks * args.nodes
        return plan_command(grid, args.study, machine, ranks, args.calibrate, args.budget, args.earlier)
    if args.calibrate or args.budget or args.earlier:
        raise UserError("--calibrate, --budget and --earlier belong to --plan; add --plan")
    plan = check_study(study, args.outputs)
    if args.dry_run:
        from guardrail.study.schedule import dry_run

        return {**plan, **dry_run(grid, args.ranks, this_machine(args.gpu_names, args.gpus_per_job, args.nodes))}
    path = grid.folder / "study_config.json"
    resolved = as_dict(study)
    if not path.is_file() or read_json(path) != _plain(resolved):
        write_json(path, resolved)
    declare(grid.folder, study.primary, study.seeds)
    digest = digest_of(study.primary)
    if study.primary is not None:
        log(f"primary ({digest}): {in_words(study.primary)}")
    return {"study_config": str(path), **plan, "primary": digest}


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON gives them back."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


if __name__ == "__main__":
    run(main)
