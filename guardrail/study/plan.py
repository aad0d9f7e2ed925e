"""What a study will cost, before anything runs: stages to run and to reuse, hours, disk, judge calls.

    bash scripts/study.sh configs/studies/quickstart.yaml --plan

Seconds per stage come from earlier runs of the same study where there are any (the records of its jobs), from stated
assumptions otherwise; every estimate says which. What is reused and what runs is what the
schedule says. Loads no model.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from guardrail.core.errors import UserError
from guardrail.core.files import read_json
from guardrail.models.checkpoints import resolve_checkpoint
from guardrail.study.config import Study
from guardrail.study.dag import make_jobs
from guardrail.study.grid import Grid
from guardrail.study.jobs import job_states
from guardrail.study.records import FAILED
from guardrail.study.records import FOLDER as RECORDS
from guardrail.study.schedule import recorded_setup, to_run
from guardrail.study.sources import count_rows

# A model name that says its size, or its files, give N parameters. A training token costs 6 N operations (8 N with
# gradient checkpointing), a generated or read one 2 N (Kaplan et al. 2020, section 2.1).
ASSUMPTIONS: dict[str, float] = {
    "gpu_operations_per_sec": 312e12,  # A100 bf16 dense
    "training_utilisation": 0.40,
    "reading_utilisation": 0.50,
    "generation_tokens_per_sec_7b": 1500.0,  # Hugging Face backend, batch of some tens, per GPU
    "start_sec": 60.0,  # process, weights, compilation: per stage
    "tokens_per_row": 300.0,
    "sandbox_training_rows_per_sec": 60.0,  # CPU, 1M parameters
    "sandbox_evaluation_sec": 8.0,  # one process beside another on two cores
    "sandbox_training_start_sec": 12.0,
    "bytes_per_parameter": 2.0,  # saved in bf16
}
HUB_PARAMETERS = {"7b": 6.7e9, "2b": 2.6e9, "9b": 9.2e9, "8b": 8.0e9, "13b": 13.0e9}
SANDBOX_PARAMETERS = 0.9e6


@dataclass
class Stage:
    """One kind of stage: how many are done, how many will run, and what one of them costs."""

    stage: str
    n_total: int
    n_reuse: int
    seconds_each: float
    source: str
    gpus: str = "one"

    @property
    def n_run(self) -> int:
        return self.n_total - self.n_reuse

    def seconds(self, n_gpus: int) -> float:
        """Wall-clock of what will run, GPUs side by side. Assumed seconds are of one GPU, measured ones of a whole job,
        which has all GPUs if it trains."""
        seconds = self.n_run * self.seconds_each
        shared = self.gpus == "one" or (self.gpus == "all" and self.source == "assumed")
        return seconds / n_gpus if shared else seconds


def parameters(study: Study) -> float:
    """Parameters of the base model: from its files, its name, or the sandbox's known size."""
    if study.sandbox:
        return SANDBOX_PARAMETERS
    try:
        folder = Path(resolve_checkpoint(study.models.base))
        if folder.is_dir():
            return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 2
    except UserError:
        pass  # a hub model that is not here: its name says its size
    name = study.models.base.lower()
    return next((value for key, value in HUB_PARAMETERS.items() if key in name), 7e9)


def rows_or(source: Any, otherwise: int) -> int:
    """Rows of a local source; ``otherwise`` for one on the hub or not prepared yet."""
    try:
        return count_rows(source) or otherwise
    except UserError:
        return otherwise


def measured(grid: Grid, names: list[str]) -> tuple[float, int] | None:
    """Median seconds that finished jobs took, and how many there are; from their records, whatever their keys."""
    files = [file for name in names for file in (grid.folder / RECORDS / name).glob("*.json") if file.name != FAILED]
    seconds = [float(read_json(file)["wall_sec"]) for file in files]
    return (median(seconds), len(seconds)) if seconds else None


def plan_stages(grid: Grid) -> list[Stage]:
    """Every kind of stage of the study."""
    study = grid.study
    a = ASSUMPTIONS
    N = parameters(study)
    pool = rows_or(study.safety_pool, 30_000)
    instruct = study.instruct_size or rows_or(study.instruct, 200_000)
    prompts = study.evaluation.limit or (140 if study.sandbox else 330)
    answers = prompts * study.evaluation.samples_per_prompt

    def training(rows: float, block: Any) -> float:
        if study.sandbox:
            return a["sandbox_training_start_sec"] + rows * block.epochs / a["sandbox_training_rows_per_sec"]
        operations = (8 if block.gradient_checkpointing else 6) * N * rows * block.epochs * a["tokens_per_row"]
        return a["start_sec"] + operations / (a["gpu_operations_per_sec"] * a["training_utilisation"])

    def reading(rows: float) -> float:
        if study.sandbox:
            return a["sandbox_evaluation_sec"]
        operations = 2 * N * rows * a["tokens_per_row"]
        return a["start_sec"] + operations / (a["gpu_operations_per_sec"] * a["reading_utilisation"])

    def generating(rows: float, new_tokens: int) -> float:
        if study.sandbox:
            return a["sandbox_evaluation_sec"]
        return a["start_sec"] + rows * new_tokens / (a["generation_tokens_per_sec_7b"] * 6.7e9 / N)

    jobs = make_jobs(grid, *recorded_setup(grid), missing_ok=True)
    states = job_states(grid, jobs)
    waiting = set(to_run(jobs, states))

    mean_alignment = sum(
        instruct + (pool if x.subset == "full" else 0 if x.subset == "none" else x.size) for x in grid.alignments
    ) / len(grid.alignments)
    task_rows = sum(rows_or(task.train, 1000) for task in study.tasks.values()) / len(study.tasks)
    guesses = {
        "representations": reading(pool),
        "select": 10.0,
        "mix": 5.0,
        "align": training(mean_alignment, study.alignment),
        "fine_tune": training(task_rows, study.fine_tuning),
        "safety_answers": generating(answers, study.evaluation.max_new_tokens),
        "harmfulness": reading(answers),
        "over_refusal": generating(250, study.evaluation.max_new_tokens),
        "utility": generating(400, max(task.utility.max_new_tokens for task in study.tasks.values())),
    }
    stages = []
    for name in dict.fromkeys(job.stage for job in jobs.values()):
        members = [job.name for job in jobs.values() if job.stage == name]
        gpus = jobs[members[0]].gpus
        found = measured(grid, members)
        source = "assumed" if found is None else f"measured on {found[1]}"
        seconds = guesses.get(name, reading(answers)) if found is None else found[0]
        n_done = len(members) - len(waiting.intersection(members))
        stages.append(Stage(name, len(members), n_done, seconds, source, gpus))
    return stages


def make_plan(grid: Grid, n_gpus: int = 4) -> dict[str, Any]:
    """The plan as one JSON-able object; hours are wall-clock with all GPUs busy (on a CPU one job after the other)."""
    study = grid.study
    stages = plan_stages(grid)
    N = parameters(study)
    n_checkpoints = len(grid.alignments) + len(grid.cells)
    todo = {stage.stage: stage.n_run for stage in stages}
    prompts = study.evaluation.limit or (140 if study.sandbox else 330)
    answers = todo["harmfulness"] * prompts * study.evaluation.samples_per_prompt
    pool = rows_or(study.safety_pool, 30_000)
    width = 128 if study.sandbox else 4096
    n_jobs = 1 if study.sandbox else n_gpus
    wall = {stage.stage: stage.seconds(n_jobs) for stage in stages}
    gpu_seconds = sum(wall[stage.stage] * n_jobs for stage in stages if stage.gpus != "none")
    return {
        "study": study.name,
        "cells": len(grid.cells),
        "alignments": len(grid.alignments),
        "stages": [{**asdict(s), "n_run": s.n_run, "wall_sec": round(wall[s.stage], 1)} for s in stages],
        "stages_to_run": sum(stage.n_run for stage in stages),
        "stages_to_reuse": sum(stage.n_reuse for stage in stages),
        "gpu_hours": 0.0 if study.sandbox else round(gpu_seconds / 3600, 2),
        "wall_hours_one_job_at_a_time": round(sum(wall.values()) / 3600, 2),
        "checkpoint_bytes": int(n_checkpoints * N * (4 if study.sandbox else ASSUMPTIONS["bytes_per_parameter"])),
        "representation_bytes": int((pool + 1000 * len(study.tasks)) * width * (4 if study.dtype == "float32" else 2)),
        "judge_calls": answers * (1 + len(study.evaluation.judges)),
        "judge_tokens": answers * (1 + len(study.evaluation.judges)) * (study.evaluation.max_new_tokens + 100),
        "assumptions": ASSUMPTIONS,
        "parameters": N,
    }


def plan_text(plan: dict[str, Any], n_gpus: int) -> str:
    """The plan for people."""
    head = f"{plan['study']}: {plan['cells']} cells, {plan['alignments']} alignments"
    lines = [head, "", f"{'stage':<18}{'total':>7}{'reuse':>7}{'run':>7}{'sec each':>10}  from"]
    for row in plan["stages"]:
        lines.append(
            f"{row['stage']:<18}{row['n_total']:>7}{row['n_reuse']:>7}{row['n_run']:>7}"
            f"{row['seconds_each']:>10.0f}  {row['source']}"
        )
    wall = plan["wall_hours_one_job_at_a_time"]
    lines += [
        "",
        f"to run {plan['stages_to_run']}, to reuse {plan['stages_to_reuse']}",
        f"GPU-hours {plan['gpu_hours']:.1f}; about {wall:.1f} h of wall time"
        + (f" on {n_gpus} GPUs" if plan["gpu_hours"] else " on one core"),
        f"disk: checkpoints {plan['checkpoint_bytes'] / 2**30:.1f} GiB, "
        f"representations {plan['representation_bytes'] / 2**30:.2f} GiB",
        f"judge: {plan['judge_calls']} calls, about {plan['judge_tokens'] / 1e6:.1f} M tokens",
    ]
    if any(row["source"] == "assumed" for row in plan["stages"]):
        lines.append("assumptions: " + ", ".join(f"{name} {value:g}" for name, value in plan["assumptions"].items()))
    return "\n".join(lines)
