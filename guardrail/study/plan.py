"""What a study will cost, before anything runs: jobs to run and to reuse, wall time, GPU-hours, disk, judge calls.

    bash scripts/study.sh configs/studies/quickstart.yaml --plan
    PLAN_GPU=h100 PLAN_GPUS=4 bash scripts/study.sh configs/studies/paper_llama2_7b.yaml --plan

Seconds of a job come from finished jobs of the same study, else from this machine's calibration (`--calibrate`), else
from stated assumptions (`guardrail.study.planning`). The wall time is that of the jobs' graph on the machine's cores or
GPUs, not a sum. What is reused and what runs is what the schedule says. Loads no model.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from guardrail.bench.shapes import SHAPES, Shape, find_shape
from guardrail.core.errors import UserError
from guardrail.models.checkpoints import resolve_checkpoint
from guardrail.study.config import Study
from guardrail.study.dag import make_jobs
from guardrail.study.disk import batches, peak
from guardrail.study.grid import Grid
from guardrail.study.jobs import Job, job_states
from guardrail.study.keep import trains
from guardrail.study.planning.assumptions import Book, parse_changes
from guardrail.study.planning.costs import TRAINING_STAGES, Cost, Costs
from guardrail.study.planning.disk import checkpoint_bytes
from guardrail.study.planning.node import OTHERS, TRAINING_FIRST, Node, node_of
from guardrail.study.planning.rates import Calibration, find_calibration
from guardrail.study.planning.simulate import Schedule, Task, one_after_the_other, simulate
from guardrail.study.planning.times import read_times
from guardrail.study.planning.volumes import bench_prompts
from guardrail.study.processes import Process, make_processes
from guardrail.study.records import State
from guardrail.study.schedule import all_ranks, choose_trainer, recorded_setup, to_run

FALLBACK_SHAPE = "llama2-7b"


@dataclass
class Stage:
    """One kind of job: how many are done and will run, and what these cost together."""

    stage: str
    n_total: int
    n_reuse: int
    seconds_each: float
    seconds: float
    cpu_sec: float | None
    gpu_hours: float
    source: str
    basis: str
    gpus: str

    @property
    def n_run(self) -> int:
        return self.n_total - self.n_reuse


@dataclass
class Parts:
    """A plan before it is written down: the jobs to run with their costs, and when each runs."""

    grid: Grid
    node: Node
    book: Book
    shape: Shape
    jobs: dict[str, Job]
    waiting: list[str]
    processes: dict[str, Process]
    costs: dict[str, Cost]
    schedule: Schedule
    counter: Costs
    overhead_sec: float
    calibration: Calibration | None
    file: str = ""
    n_batches: int = 1

    def gpu_seconds(self, name: str) -> float:
        return self.costs[name].seconds * self.node.holds(self.processes[name].gpus).get("gpus", 0)


def shape_of(study: Study, book: Book) -> Shape:
    """The base model's shape: from its files or its name; an assumed one where neither says it."""
    if study.sandbox and not Path(study.models.base).is_dir():
        return SHAPES["sandbox"]
    try:
        return find_shape(_folder(study.models.base))
    except UserError:
        book.note("parameters", SHAPES[FALLBACK_SHAPE].n_parameters(), "", f"assumed: {study.models.base} is not here")
        return SHAPES[FALLBACK_SHAPE]


def _folder(name: str) -> str:
    try:
        return str(resolve_checkpoint(name))
    except UserError:
        return name


def parameters(study: Study) -> int:
    """Parameters of the base model."""
    return shape_of(study, Book()).n_parameters()


def plan_parts(
    grid: Grid,
    node: Node | None = None,
    ranks: int | None = None,
    assume: str | None = None,
    file: str = "",
    whole: bool = False,
) -> Parts:
    """Processes, costs and schedule of what would run now.

    Args:
        ranks: processes of a training job here; what the last schedule says, or the node's GPUs, for another machine.
        assume: changes of assumptions, as `PLAN_ASSUME` has them.
        file: the study file, for commands that are printed.
        whole: as if nothing had run yet.
    """
    study = grid.study
    node = node or node_of(study.sandbox, os.environ)
    book = Book(parse_changes(os.environ.get("PLAN_ASSUME", "") if assume is None else assume))
    if node.here and ranks is not None:
        trainer, ranks = choose_trainer(study, import_it=False), all_ranks(ranks)
    else:
        trainer, recorded = recorded_setup(grid)
        ranks = max(recorded, node.n_gpus if node.gpu else 1)
    jobs = make_jobs(grid, trainer, ranks, missing_ok=True)
    states = job_states(grid, jobs)
    waiting = list(jobs) if whole else to_run(jobs, states)
    in_batches = processes_of_batches(study, jobs, states, waiting, node)
    processes = {name: process for batch in in_batches for name, process in batch.items()}
    calibration = find_calibration(study, node) if node.here else None
    shapes = shape_of(study, book), SHAPES["sandbox"] if study.sandbox else SHAPES[FALLBACK_SHAPE]
    counter = Costs(grid, jobs, *shapes, book, node.gpu, ranks, calibration.rates if calibration else {})
    ratios = counter.ratios(read_times(grid.folder))
    costs = {name: counter.cost(process, ratios) for name, process in processes.items()}
    book.purpose("every process")
    kind = "" if node.gpu else "core_"
    per_process = calibration.process.wall_sec if calibration else book[f"{kind}process_sec"]
    book.purpose("the study")
    overhead = calibration.study.wall_sec if calibration else book[f"{kind}study_sec"]
    book.check()
    between = calibration.study.wall_sec / 2 if calibration else book[f"{kind}batch_sec"]
    schedule = one_after_the_other(
        [simulate(tasks_of(batch, costs, node, per_process), node.limits) for batch in in_batches], between
    )
    return Parts(
        *(grid, node, book, shapes[0], jobs, waiting, processes, costs, schedule, counter, overhead, calibration, file),
        n_batches=len(in_batches),
    )


def processes_of_batches(
    study: Study, jobs: dict[str, Job], states: dict[str, dict[str, State]], names: list[str], node: Node
) -> list[dict[str, Process]]:
    """The processes of every batch in which ``names`` run (`guardrail.study.disk`: weights that are not kept go between
    two batches). Names are those of the schedule; in later batches they have its number."""
    out: list[dict[str, Process]] = []
    for number, (batch, _) in enumerate(batches(study, jobs, states, names), 1):
        mark = f"#{number}" if number > 1 else ""
        made = make_processes(jobs, batch, node.machine).values()
        renamed = [
            dataclasses.replace(one, name=one.name + mark, needs=tuple(f"{need}{mark}" for need in one.needs))
            for one in made
        ]
        if renamed:
            out.append({one.name: one for one in renamed})
    return out


def tasks_of(processes: Mapping[str, Process], costs: Mapping[str, Cost], node: Node, per_process: float) -> list[Task]:
    """The processes as the scheduler sees them: training goes first (workflow/Snakefile)."""
    return [
        Task(
            name,
            costs[name].seconds + per_process,
            process.needs,
            node.holds(process.gpus),
            TRAINING_FIRST if process.stage in TRAINING_STAGES else OTHERS,
        )
        for name, process in processes.items()
    ]


def stages_of(parts: Parts) -> list[Stage]:
    """Every kind of process of the study, in the order in which they begin."""
    whole = make_processes(parts.jobs, list(parts.jobs), parts.node.machine)
    kinds = dict.fromkeys(process.stage for process in (*whole.values(), *parts.processes.values()))
    stages = []
    for kind in kinds:
        run = [name for name, process in parts.processes.items() if process.stage == kind]
        n_total = max(sum(process.stage == kind for process in whole.values()), len(run))
        shown = [parts.costs[name] for name in run]
        if not run:
            ratios = parts.counter.ratios(read_times(parts.grid.folder))
            shown = [parts.counter.cost(process, ratios) for process in whole.values() if process.stage == kind]
        longest = max(shown, key=lambda cost: cost.seconds)
        cpu = [parts.costs[name].cpu_sec for name in run]
        stages.append(
            Stage(
                kind,
                n_total,
                n_total - len(run),
                sum(cost.seconds for cost in shown) / len(shown),
                sum(parts.costs[name].seconds for name in run),
                None if None in cpu else sum(value for value in cpu if value is not None),
                sum(map(parts.gpu_seconds, run)) / 3600,
                longest.source,
                ("up to " if len({cost.basis for cost in shown}) > 1 else "") + longest.basis,
                next(process.gpus for process in (*parts.processes.values(), *whole.values()) if process.stage == kind),
            )
        )
    return stages


def plan_stages(grid: Grid, node: Node | None = None) -> list[Stage]:
    """Every kind of process of the study."""
    return stages_of(plan_parts(grid, node))


def make_plan(
    grid: Grid, node: Node | None = None, ranks: int | None = None, assume: str | None = None
) -> dict[str, Any]:
    """The plan as one JSON-able object."""
    return describe(plan_parts(grid, node, ranks, assume))


def describe(parts: Parts) -> dict[str, Any]:
    """The plan as one JSON-able object: every number with its source, every assumption with what rests on it."""
    study, schedule, node = parts.grid.study, parts.schedule, parts.node
    stages = stages_of(parts)
    evaluation = study.evaluation
    prompts = bench_prompts(evaluation.safety_bench, evaluation.safety_bench_data, evaluation.limit)
    judged = sum(parts.jobs[name].stage == "harmfulness" for name in parts.waiting)
    answers = round(judged * prompts * evaluation.samples_per_prompt)
    wall = schedule.wall_sec + (parts.overhead_sec if parts.waiting else 0.0)
    cpu = [stage.cpu_sec for stage in stages]
    if parts.waiting and parts.calibration:
        cpu += [len(parts.processes) * parts.calibration.process.cpu_sec, parts.calibration.study.cpu_sec]
    gpu_hours = sum(stage.gpu_hours for stage in stages)
    disk = disk_of(parts)
    return {
        "study": study.name,
        "cells": len(parts.grid.cells),
        "alignments": len(parts.grid.alignments),
        "node": node.name,
        "node_from": node.why,
        "n_gpus": node.n_gpus,
        "stages": [{**asdict(s), "n_run": s.n_run} for s in stages],
        "jobs_to_run": parts.waiting,
        "run": list(make_processes(parts.jobs, parts.waiting, node.machine)),
        "batches": parts.n_batches,
        "stages_to_run": sum(stage.n_run for stage in stages),
        "stages_to_reuse": sum(stage.n_reuse for stage in stages),
        "gpu_hours": round(gpu_hours, 2),
        "gpu_hours_booked": round(wall * node.n_gpus / 3600, 2),
        "cpu_sec": None if None in cpu else round(sum(value for value in cpu if value is not None), 1),
        "wall_sec": round(wall, 1),
        "wall_hours": round(wall / 3600, 3),
        "critical_path_sec": round(schedule.critical_sec, 1),
        "critical_path": list(schedule.critical),
        **disk,
        "judge_calls": answers * (1 + len(evaluation.judges)),
        "judge_tokens": answers * (1 + len(evaluation.judges)) * (evaluation.max_new_tokens + 100),
        "assumptions": parts.book.for_json(),
        "calibration": parts.calibration.described if parts.calibration else None,
        "parameters": parts.shape.n_parameters(),
    }


def disk_of(parts: Parts) -> dict[str, int]:
    """Bytes of weights, at the most and at the end, and of representations."""
    study, counter = parts.grid.study, parts.counter
    parts.book.purpose("disk")
    float32 = study.dtype == "float32"
    sizes = {name: checkpoint_bytes(counter, job, float32) for name, job in parts.jobs.items() if trains(job)}
    weights = peak(study, parts.jobs, job_states(parts.grid, parts.jobs), parts.waiting, sizes)
    rows = sum(counter.rows_of(job).rows for job in parts.jobs.values() if job.stage == "representations")
    representations = int(rows * parts.shape.hidden * (4 if float32 else 2))
    return {
        "peak_disk_bytes": weights["peak_bytes"] + representations,
        "checkpoint_bytes": weights["end_bytes"],
        "representation_bytes": representations,
    }


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 7200 else f"{seconds / 60:.1f} min"


def plan_text(plan: Mapping[str, Any]) -> str:
    """The plan for people."""
    lines = [f"{plan['study']}: {plan['cells']} cells, {plan['alignments']} alignments on {plan['node']}"]
    lines += [f"({plan['node_from']})", ""]
    on_gpu = plan["n_gpus"] > 0
    unit = "GPU-h" if on_gpu else "core-sec"
    lines.append(f"{'stage':<16}{'total':>6}{'reuse':>6}{'run':>6}{'sec each':>10}{unit:>10}  from         the longest")
    for row in plan["stages"]:
        used = row["gpu_hours"] if on_gpu else row["cpu_sec"] if row["cpu_sec"] is not None else float("nan")
        lines.append(
            f"{row['stage']:<16}{row['n_total']:>6}{row['n_reuse']:>6}{row['n_run']:>6}{row['seconds_each']:>10,.0f}"
            f"{used:>10,.1f}  {row['source']:<13}{row['basis']}"
        )
    path = Counter(name.partition("#")[0].partition(".")[0] for name in plan["critical_path"])
    chain = ", ".join(f"{stage} x {n}" if n > 1 else stage for stage, n in path.items())
    in_batches = f" in {plan['batches']} batches" if plan["batches"] > 1 else ""
    lines += ["", f"to run {plan['stages_to_run']}, to reuse {plan['stages_to_reuse']}{in_batches}"]
    lines.append(
        f"wall time {_duration(plan['wall_sec'])}; no machine is faster than {_duration(plan['critical_path_sec'])} "
        f"({chain or 'nothing to run'})"
    )
    if on_gpu:
        lines.append(f"GPU-hours {plan['gpu_hours']:,.1f} held by jobs, {plan['gpu_hours_booked']:,.1f} booked")
    elif plan["cpu_sec"] is not None:
        lines.append(f"processor time {plan['cpu_sec']:,.0f} s")
    lines += [
        f"disk: {plan['peak_disk_bytes'] / 2**30:,.1f} GiB at the most, {plan['checkpoint_bytes'] / 2**30:,.1f} GiB of "
        f"weights in the end, {plan['representation_bytes'] / 2**30:,.2f} GiB of representations",
        f"judge: {plan['judge_calls']} calls, about {plan['judge_tokens'] / 1e6:.1f} M tokens",
    ]
    if plan["calibration"]:
        lines.append(f"calibrated: {plan['calibration']}")
    if plan["assumptions"]:
        lines += ["", "assumptions, and what rests on each (PLAN_ASSUME=name=value,... replaces them):"]
        for name, row in plan["assumptions"].items():
            value = f"{row['value']:,.6g} {row['unit']}".strip()
            lines.append(f"  {name:<28}{value:<34}{', '.join(row['used_for'])}: {row['source']}")
    return "\n".join(lines)
