"""Which jobs of a study have to run, and why: written down once, for the scheduler and for the tables.

    python -m guardrail.study.schedule outputs/quickstart/study_config.json

Writes `outputs/<study>/jobs.json`: every job with its keys, and the processes that run those that have to run
(`guardrail.study.processes`). A job runs if and only if one of its products is not done (`guardrail.study.records`).
With ``--failed_since``, what failed in this run is left out, and what needs it: the rest goes on. The sandbox's models
are made first where they are missing: what a study reads from outside is part of its keys, so it has to be there.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from guardrail.core.cli import Parser, log, positive_int, run
from guardrail.core.errors import UserError
from guardrail.core.files import read_json, write_json
from guardrail.core.gpus import SLURM_JOB, split_names
from guardrail.core.nodes import read_hostfile
from guardrail.core.places import SANDBOX_DATA
from guardrail.study.config import Study, Training, build
from guardrail.study.dag import make_jobs
from guardrail.study.disk import bytes_per_checkpoint, next_batch, weight_bytes
from guardrail.study.grid import Grid
from guardrail.study.hub_names import refresh_hub_names
from guardrail.study.jobs import Job, job_states
from guardrail.study.keep import KEEP_ALL, Weights, clear_training_state, needed_again, remove_used, trains
from guardrail.study.keys import Key, trainer_content
from guardrail.study.leases import CPU_MACHINE, Machine
from guardrail.study.processes import Process, make_processes
from guardrail.study.records import Product, State, failed_at
from guardrail.study.training_jobs import training_config
from guardrail.training import trainers
from guardrail.training.config import SFTConfig
from guardrail.training.trainers import OUR_TRAINER

JOBS_FILE = "jobs.json"
MARKERS = ".run"
N_REASONS = 12


def choose_trainer(study: Study, import_it: bool = True) -> str:
    """The trainer of every training of the study: `SFT_MODULE`, align-anything's where it is there and can, else ours.

    Without ``import_it`` (a plan) nothing is imported, and the trainer that `SFT_MODULE` names need not be here.

    Raises ``UserError`` where `SFT_MODULE` names one that cannot do what the study asks for.
    """
    designs = study.all_designs  # adapters are trained by ours whatever is chosen
    blocks: list[tuple[Training, int | None]] = []
    if any(design.alignment != "adapter" for design in designs):
        blocks.append((study.alignment, None))
    for name, task in study.tasks.items():
        if any((task.method or design.method) == "full" for design in designs):
            blocks.append((study.tuning(name), task.max_steps))
    defended = [setting.method for setting in study.defence_settings.values() if setting.in_trainer]
    asked = [
        (
            training_config(study, block, seed, max_steps=steps),
            settings_of(block) | ({"max_steps"} if steps else set()),
        )
        for block, steps in dict.fromkeys(blocks)
        for seed in study.seeds
    ]
    asked += [
        (dataclasses.replace(config, defence=method), {"defence"}) for config, _ in asked[:1] for method in defended
    ]
    module, reason = trainers.choose_trainer(asked, import_it)
    if module != OUR_TRAINER and asked:
        if import_it:
            trainers.check_package(module)
        for config, given in asked:
            trainers.refuse(module, config, given)
        for name, values in trainers.not_honoured(module, asked[0][0]).items():
            log(f"{module.split('.')[0]}: {name} is {values['done']!r} in every training")
    if module != OUR_TRAINER or "not installed" not in reason:
        log(f"trainer: {module} ({reason})")
    return module


def settings_of(training: Training) -> set[str]:
    """What a study file sets in a training block: everything that is not the trainer's own default."""
    defaults = {item.name: item.default for item in dataclasses.fields(SFTConfig)}
    return {name for name, value in dataclasses.asdict(training).items() if value != defaults.get(name, value)}


def to_run(jobs: dict[str, Job], states: dict[str, dict[str, State]]) -> list[str]:
    """Jobs with a product that is not done, or with answers that a judge's server left open, in order; and the jobs
    whose weights these need and which were removed after use."""
    names = [name for name in jobs if any(not state.done or state.unanswered for state in states[name].values())]
    return needed_again(jobs, states, names)


def without_failed(grid: Grid, jobs: dict[str, Job], names: list[str], since: float) -> list[str]:
    """Of ``names`` those that have not failed since the time ``since`` and need nothing that has."""
    out: set[str] = {name for name in names if failed_at(grid.folder, name) < since}
    for name in names:  # each after those that it needs
        if any(need in names and need not in out for need in jobs[name].needs):
            out.discard(name)
    return [name for name in names if name in out]


def all_ranks(ranks: int, nodes: int = 1) -> int:
    """Processes of a training job: ``ranks`` on each of ``nodes``, or the slots of all nodes in ``HOSTFILE``.

    Raises ``UserError`` for a hostfile that cannot be read, and where both say how many nodes there are.
    """
    hostfile = os.environ.get("HOSTFILE")
    if hostfile and nodes > 1:
        raise UserError(f"NODES={nodes} and HOSTFILE={hostfile} both say how many nodes a training takes; unset one")
    return sum(node.slots for node in read_hostfile(Path(hostfile))) if hostfile else ranks * nodes


def recorded_setup(grid: Grid) -> tuple[str, int]:
    """Trainer and ranks of the last schedule of this study; this machine's without one."""
    path = grid.folder / JOBS_FILE
    if not path.is_file():
        return choose_trainer(grid.study, import_it=False), 1
    content = read_json(path)
    return content["trainer"], content["ranks"]


def write_schedule(
    grid: Grid,
    jobs: dict[str, Job],
    run_names: list[str],
    trainer: str = OUR_TRAINER,
    ranks: int = 1,
    machine: Machine = CPU_MACHINE,
    weights: Weights = KEEP_ALL,
) -> Path:
    """Write `jobs.json` with the processes that run ``run_names``; clear the scheduler's markers of an earlier run."""
    shutil.rmtree(grid.folder / MARKERS, ignore_errors=True)
    content = {
        "study": grid.study.name,
        "root": str(grid.folder),
        "trainer": trainer,
        "trainer_content": trainer_content(trainer, grid.folder),
        "ranks": ranks,
        "machine": dataclasses.asdict(machine),
        "weights": dataclasses.asdict(weights),
        "jobs": [dataclasses.asdict(job) for job in jobs.values()],
        "processes": [dataclasses.asdict(one) for one in make_processes(jobs, run_names, machine).values()],
    }
    path = grid.folder / JOBS_FILE
    if not path.is_file() or read_json(path) != _plain(content):
        write_json(path, content)
    return path


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def read_schedule(path: Path) -> tuple[Path, dict[str, Job], dict[str, Process]]:
    """The study's folder, its jobs and the processes that run."""
    content = read_json(path)
    jobs = {}
    for raw in content["jobs"]:
        products = tuple(
            Product(p["name"], Key(p["key"]["value"], p["key"]["parts"]), tuple(p["files"])) for p in raw["products"]
        )
        parts = {"command": tuple(raw["command"]), "products": products, "needs": tuple(raw["needs"])}
        jobs[raw["name"]] = Job(**{**raw, **parts})
    processes = [
        Process(**{**raw, "jobs": tuple(raw["jobs"]), "needs": tuple(raw["needs"])}) for raw in content["processes"]
    ]
    return Path(content["root"]), jobs, {process.name: process for process in processes}


def read_machine(path: Path) -> tuple[Machine, int]:
    """The machine that the schedule counts on, and the processes of a training job."""
    content = read_json(path)
    machine = content["machine"]
    return Machine(**{**machine, "gpus": tuple(machine["gpus"])}), content["ranks"]


def read_weights(path: Path) -> Weights:
    """What becomes of the weights of this schedule's jobs."""
    return Weights(**read_json(path)["weights"])


def this_machine(gpus: str, per_job: int, nodes: int = 1) -> Machine:
    """The GPUs ``gpus`` (`0,1,2,3`; empty on a CPU machine) of every node.

    Raises ``UserError`` where a job wants more.
    """
    names = split_names(gpus, "--gpus")
    if names and per_job > len(names):
        raise UserError(f"TENSOR_PARALLEL={per_job} is more than the {len(names)} GPUs of GPUS={gpus}")
    return Machine(tuple(names), per_job, os.environ.get(SLURM_JOB), nodes)


def reasons(jobs: dict[str, Job], states: dict[str, dict[str, State]], names: list[str]) -> list[str]:
    """One line per job that runs: its stage, its name and why. Follow-ups of a changed job are only counted."""
    lines = []
    for name in names:
        state = next((state for state in states[name].values() if not state.done), None)
        if state is None and any(state.absent for state in states[name].values()):
            lines.append(f"{jobs[name].title}  (its weights were removed after use and are needed again)")
            continue
        if state is None:
            lines.append(f"{jobs[name].title}  (some answers have no judgement yet)")
            continue
        upstream = {f"needs.{need}" for need in _needs(jobs[name])}
        if state.status == "stale" and set(state.reason.split("; ")) <= upstream:
            continue
        lines.append(f"{jobs[name].title}  ({state.status}: {state.reason})")
    return lines


def _needs(job: Job) -> list[str]:
    return [need for product in job.products for need in product.key.parts["needs"]]


def show(
    jobs: dict[str, Job],
    states: dict[str, dict[str, State]],
    names: list[str],
    processes: dict[str, Process],
    limit: int | None,
    n_later: int = 0,
) -> None:
    """The plan on stderr: how many of each stage, and the reasons. ``n_later`` jobs come in the next batches."""
    stages = Counter(jobs[name].stage for name in names)
    n_open, n = len(to_run(jobs, states)), len(processes)
    n_held = n_open - n_later - len(names)
    held = f", {n_held} failed or wait for what failed" if n_held > 0 else ""
    how = f" in {n} process{'es' if n > 1 else ''}" if names else ""
    log(f"{len(jobs) - n_open} of {len(jobs)} jobs are done{held}, {len(names)} to run{how}")
    for stage, count in stages.items():
        log(f"  {count:>5}  {stage}")
    statuses = {state.status for name in names for state in states[name].values()}
    if statuses - {"missing"}:
        lines = reasons(jobs, states, names)
        for line in lines[:limit]:
            log(f"  {line}")
        if limit is not None and len(lines) > limit:
            log(f"  ... and {len(lines) - limit} more")


def dry_run(grid: Grid, ranks: int, machine: Machine = CPU_MACHINE) -> dict[str, Any]:
    """Print the jobs that would run and why; nothing is written, made or loaded.

    ``n_run`` and ``run``: the processes that would be started.
    """
    refresh_hub_names(grid.study)
    jobs = make_jobs(grid, choose_trainer(grid.study), all_ranks(ranks, machine.nodes))
    states = job_states(grid, jobs)
    names = to_run(jobs, states)
    processes = make_processes(jobs, names, machine)
    show(jobs, states, names, processes, None)
    return {**counts(jobs, names, processes), "jobs_to_run": names, "run": list(processes)}


def counts(jobs: dict[str, Job], names: list[str], processes: dict[str, Process]) -> dict[str, Any]:
    """Jobs of the study, jobs to run, and the processes that are started for them."""
    return {"n_jobs": len(jobs), "n_jobs_to_run": len(names), "n_run": len(processes)}


def make_sandbox_models(study: Study) -> None:
    """Train the sandbox's models where they are missing or older than their data; seconds when nothing is to do."""
    from guardrail.sandbox.models import train_models

    train_models(Path(study.models.base).parent, SANDBOX_DATA, 0, None)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = Parser(prog="guardrail.study.schedule", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("study_config", help="the resolved study written by guardrail.study.check")
    parser.add_argument("--outputs", default="outputs", help="folder that holds the study's folder")
    parser.add_argument("--ranks", type=positive_int, default=1, help="processes of a training job, on each node")
    parser.add_argument("--nodes", type=positive_int, default=1, help="of a training job; a scheduler gives them")
    parser.add_argument("--gpus", default="", help="GPUs that the jobs share, as 0,1,2,3; empty on a CPU machine")
    parser.add_argument("--gpus_per_job", type=positive_int, default=1, help="GPUs of a job that does not train")
    parser.add_argument("--failed_since", type=float, help="go on without what failed since then (seconds since 1970)")
    args = parser.parse_args(argv)
    machine = this_machine(args.gpus, args.gpus_per_job, args.nodes)
    grid = Grid(build(Study, read_json(args.study_config), ""), args.outputs)
    if grid.study.sandbox:
        make_sandbox_models(grid.study)
    if args.failed_since is None:  # a run reads one state of the hub, and has one trainer
        refresh_hub_names(grid.study)
    trainer = choose_trainer(grid.study) if args.failed_since is None else recorded_setup(grid)[0]
    ranks = all_ranks(args.ranks, args.nodes)
    jobs = make_jobs(grid, trainer, ranks)
    keep = grid.study.keep
    for job in filter(trains, jobs.values()):  # no job runs now
        clear_training_state(grid.folder, job)
    remove_used(grid.folder, jobs, list(jobs), keep)
    states = job_states(grid, jobs)
    names = to_run(jobs, states)
    if args.failed_since is not None:
        names = without_failed(grid, jobs, names, args.failed_since)
    batch = next_batch(grid.study, jobs, states, names)
    processes = make_processes(jobs, batch, machine)
    later = len(names) - len(batch)
    show(jobs, states, batch, processes, N_REASONS, later)
    if later:
        log(f"{later} more jobs follow when the weights of these have been used")
    weights = Weights(keep, weight_bytes(grid, bytes_per_checkpoint(grid.study)))
    path = write_schedule(grid, jobs, batch, trainer, ranks, machine, weights)
    return {"jobs": str(path), **counts(jobs, batch, processes), "n_later": later, "run": list(processes)}


if __name__ == "__main__":
    run(main)
