"""Does the instrument find what is there, and nothing where nothing is? A control study, repeated with new seeds.

    python benchmarks/instrument.py configs/studies/control_positive.yaml --repetitions 10
    python benchmarks/instrument.py configs/studies/control_negative.yaml --repetitions 20
    python benchmarks/instrument.py configs/studies/control_positive.yaml --repetitions 1 --world near_refused=0.5

A repetition is as many training seeds of each arm as the study file has, numbered on from them, so that no two share a
training. All of them are one study in one process: its own jobs under its own keys (representations, selection,
mixtures, alignment, probed fine-tuning, judge), its own reading of the probes and its own tests. What is done is not
done again, also after ``kill -9``. ``--world`` changes knobs of the world (`guardrail.sandbox.controls`) and nothing of
the analysis; such a world is written beside the results.

Final harmfulness is that of the last probe: the same answers as those of the tuned checkpoint. Writes
``<outputs>/<study>/instrument.json``; the last line on stdout has how often each endpoint found a difference, and what
each needs to find the one that is there. Known limits: sandbox studies with one task, one subset size, one design and
the arms high and low; one process, CPU.
"""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guardrail.core.cli import Parser, log, positive_int, run
from guardrail.core.errors import UserError, unknown
from guardrail.core.files import write_json
from guardrail.core.places import SANDBOX_DATA
from guardrail.core.provenance import run_record
from guardrail.core.steps import DONE, STARTED, Status, Step, run_steps
from guardrail.sandbox.controls import (
    BENCH,
    INSTRUCT,
    POOL,
    TASK,
    TASK_TEST,
    WORLDS,
    ControlWorld,
    prepare_controls,
    write_control,
)
from guardrail.sandbox.writer import parquet_name, write_sandbox
from guardrail.statistics.crossed import components, crossed_spread, paired_difference, seeds_needed
from guardrail.statistics.survival import life_difference, log_rank
from guardrail.study.config import Source, Study, as_dict, build, load_study
from guardrail.study.dag import make_jobs
from guardrail.study.grid import Cell, Grid
from guardrail.study.jobs import Job, jobs_behind
from guardrail.study.keep import needed_again
from guardrail.study.records import clear_failure, clear_product, product_state, remove_weights, write_record
from guardrail.study.results import Results
from guardrail.study.schedule import make_sandbox_models
from guardrail.study.training_jobs import aligned_name, tuned_name
from guardrail.study.trajectories import Trajectory, read_trajectories
from guardrail.training.trainers import OUR_TRAINER

ALPHAS = (0.05, 0.01)
ENDPOINTS = ("life", "final", "change")
SCRIPT_PATHS = {"BASE_MODEL": "model_name_or_path", "MODEL": "model_name_or_path", "DATASET": "train_datasets"}
SCRIPT_PATHS |= {"SPLIT": "train_split", "TRAIN_TEMPLATE": "train_template", "OUTPUT_DIR": "output_dir"}


def parse_knobs(text: str) -> dict[str, Any]:
    """``overlap=0.5,task_format=qa`` as values of `ControlWorld`."""
    hints, out = typing.get_type_hints(ControlWorld), {}
    for part in filter(None, text.split(",")):
        name, is_change, value = part.partition("=")
        if name not in hints or not is_change:
            raise unknown("knob of the world", name, sorted(hints))
        out[name] = build(hints[name], tuple(value.split("/")) if name == "marks" else _number(value), name)
    return out


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def control_study(file: str, knobs: dict[str, Any], n_seeds: int | None, changes: str, outputs: Path) -> Study:
    """The study of a control; with ``knobs`` of a world of its own, below ``outputs`` and under a name of its own."""
    study = load_study(file, changes=changes)
    arms = (len(study.tasks), len(study.subset_sizes), len(study.designs), tuple(study.subsets))
    if not study.sandbox or arms != (1, 1, 1, ("high", "low")) or not study.fine_tuning.probes:
        raise UserError(f"{file} is no control: expected a sandbox study of one task, size and design, high and low")
    world = Path(study.safety_pool.source).name
    if world not in WORLDS:
        raise unknown("control world", world, WORLDS)
    write_sandbox(SANDBOX_DATA, seed=0)
    prepare_controls({study.safety_pool.source})
    if knobs:
        name = ".".join((world, *(f"{name}-{_plain(value)}" for name, value in sorted(knobs.items()))))
        folder = outputs / "worlds" / name
        write_control(folder, dataclasses.replace(WORLDS[world], **knobs))
        (task, settings), source = next(iter(study.tasks.items())), str(folder)
        utility = dataclasses.replace(settings.utility, source=source, split=TASK_TEST)
        tasks = {task: dataclasses.replace(settings, train=Source(source, TASK), utility=utility)}
        evaluation = dataclasses.replace(study.evaluation, safety_bench=str(folder / parquet_name(BENCH)))
        study = dataclasses.replace(
            study,
            name=name,
            instruct=Source(source, INSTRUCT),
            safety_pool=Source(source, POOL),
            tasks=tasks,
            evaluation=evaluation,
        )
    first = study.seeds[0]
    return dataclasses.replace(study, seeds=tuple(range(first, first + n_seeds))) if n_seeds else study


def _plain(value: Any) -> str:
    """A knob's value as part of a folder's name."""
    return "".join(c if c.isalnum() or c == "." else "_" for c in "_".join(map(str, np.atleast_1d(value))))


def step_of(root: Path, job: Job) -> Step:
    """A job as a step of this process; a training by the trainer's own flags instead of through its script."""
    module, arguments = job.command[0], list(job.command[1:])
    if job.is_script:
        key = job.products[0].key.parts
        options = {name: value for name, value in key["options"].items() if name not in ("trainer", "ranks")}
        options |= {flag: job.variables[name] for name, flag in SCRIPT_PATHS.items() if name in job.variables}
        options |= {"log_type": job.variables["LOG_TYPE"], "save_checkpoint": False}
        given = {n: ",".join(map(str, v)) if isinstance(v, list) else v for n, v in options.items() if v is not None}
        arguments += [f"--{name}={value}" for name, value in given.items()]
        module = job.variables["SFT_MODULE"]
    return Step(
        name=job.name,
        module=module,
        arguments=tuple(arguments),
        log=str(root / job.log),
        needs=job.needs,
        key=job.products[0].key.value,
    )


def run_jobs(grid: Grid, jobs: dict[str, Job], targets: list[str]) -> float:
    """Run what ``targets`` need and is not done, in this process; the processor seconds. Raises ``UserError``."""
    root = grid.folder
    behind = jobs_behind(jobs, targets)
    states = {name: {p.name: product_state(root, name, p) for p in jobs[name].products} for name in behind}
    open_jobs = [name for name in jobs if name in states and not all(one.done for one in states[name].values())]
    todo = [jobs[name] for name in needed_again({name: jobs[name] for name in behind}, states, open_jobs)]
    for job in todo:
        clear_failure(root, job.name)
        for product in job.products:
            if not states[job.name][product.name].done:
                clear_product(root, job.name, product)
    seconds = 0.0

    def note(status: Status) -> None:
        nonlocal seconds
        if status.state == STARTED:
            return
        if status.state != DONE:
            raise UserError(f"{status.step} failed: {status.reason}; see {root / jobs[status.step].log}")
        seconds += status.cpu_sec
        for product in jobs[status.step].products:
            write_record(root, status.step, product, wall_sec=status.wall_sec, cpu_sec=status.cpu_sec, unanswered=False)

    run_steps([step_of(root, job) for job in todo], note)
    return seconds


def repetition(grid: Grid, jobs: dict[str, Job], seeds: Sequence[int]) -> dict[str, Any]:
    """Run (what is not done of) one repetition and compare its arms; removes the weights, which nothing reads again."""
    cells = [cell for cell in grid.cells if cell.seed in seeds]
    trained = [name for cell in cells for name in (aligned_name(cell.alignment), tuned_name(cell))]
    judged = [f"probe_harmfulness.cells.{cell.name}.seed{cell.seed}" for cell in cells]
    seconds = run_jobs(grid, jobs, judged)
    row = {"seeds": list(seeds), "cpu_sec": round(seconds, 1), **compare(arms_of(grid, jobs, cells))}
    for name in trained:
        remove_weights(grid.folder, name, jobs[name].products[0])
    return row


def arms_of(grid: Grid, jobs: dict[str, Job], cells: Sequence[Cell]) -> tuple[Trajectory, Trajectory]:
    """The study's own reading of the probes of ``cells``: high, low."""
    arms = {arm.place[2]: arm for arm in read_trajectories(Results(grid, jobs), set(cells))}
    return arms["high"], arms["low"]


def differences(arms: tuple[Trajectory, Trajectory]) -> dict[str, np.ndarray]:
    """(R, P) cells of high minus low: life in percent of the training; final harmfulness and its change in points."""
    high, low = arms
    seeds = list(high.seeds)
    assert seeds == list(low.seeds) and high.prompts == low.prompts
    before, after = (100.0 * (high.harmful[:, :, 0, at].astype(float) - low.harmful[:, :, 0, at]) for at in (0, -1))
    life = 100 * life_difference(high.life_on(seeds), low.life_on(seeds)) / high.length
    return {"life": life, "final": after, "change": after - before}


def compare(arms: tuple[Trajectory, Trajectory]) -> dict[str, Any]:
    """The tests of one repetition, as the study's report has them."""
    out: dict[str, Any] = {}
    for name, cells in differences(arms).items():
        test = paired_difference(cells)
        out[name] = {"difference": test["difference"], "interval": test["interval"], "p_value": test["p_value"]}
    out["log_rank_p_value"] = log_rank(*(arm.lives for arm in arms))["p_value"]
    for arm in arms:
        shares = 100 * arm.harmful.mean(axis=(0, 1, 2))
        out[f"harmful_percent_{arm.place[2]}"] = [round(float(share), 1) for share in shares]
    out["steps"] = list(arms[0].steps)
    return out


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How often each endpoint called the arms different."""
    out: dict[str, Any] = {"repetitions": len(rows)}
    for name in (*ENDPOINTS, "log_rank"):
        p_values = [row["log_rank_p_value"] if name == "log_rank" else row[name]["p_value"] for row in rows]
        out[name] = {f"p_below_{alpha:g}": sum(p < alpha for p in p_values) for alpha in ALPHAS}
    signs = [row["life"]["difference"] for row in rows]
    out["life"] |= {"high_lasts_longer": sum(value > 0 for value in signs)}
    return out


def sensitivity(arms: tuple[Trajectory, Trajectory], n_seeds: int) -> dict[str, Any]:
    """What each endpoint needs to find the difference that all seeds together show.

    ``detectable``: the smallest difference that ``n_seeds`` seeds find with 80% power at the 5% level, from the
    variances between seeds, prompts and answers over all seeds; ``detectable_share``: the same as a share of the
    difference that is there, which has no unit and so compares endpoints; ``seeds_needed`` for that difference itself.
    """
    out: dict[str, Any] = {}
    for name, cells in differences(arms).items():
        mean, parts = float(cells.mean()), components(cells)
        detectable = parts.spread(n_seeds, cells.shape[1]).detectable()
        out[name] = {
            "difference": mean,
            "standard_error": crossed_spread(cells).standard_error,
            "variances": dataclasses.asdict(parts),
            "detectable": detectable,
            "detectable_share": detectable / abs(mean) if mean else None,
            "seeds_needed": seeds_needed(cells, abs(mean)) if mean else None,
        }
    return {"n_seeds": len(arms[0].seeds), "n_prompts": len(arms[0].prompts), "endpoints": out}


def main() -> dict[str, Any]:
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("study", help="configs/studies/control_positive.yaml or control_negative.yaml")
    parser.add_argument("--repetitions", type=positive_int, default=1, help="of the study, with new seeds each")
    parser.add_argument("--seeds", type=positive_int, help="seeds of a repetition, instead of the study's")
    parser.add_argument("--world", type=parse_knobs, default={}, help="other knobs of the world: near_refused=0.5")
    parser.add_argument("--set", default="", help="change single settings of the study: fine_tuning.epochs=2")
    parser.add_argument("--outputs", default="outputs/instrument", help="folder that holds the study's folder")
    args = parser.parse_args()
    os.environ["DS_ACCELERATOR"], os.environ["CUDA_VISIBLE_DEVICES"] = "cpu", ""  # as scripts/setup.sh, on a CPU
    one = control_study(args.study, args.world, args.seeds, args.set, Path(args.outputs))
    first, R = one.seeds[0], len(one.seeds)
    study = dataclasses.replace(one, seeds=tuple(range(first, first + R * args.repetitions)))
    make_sandbox_models(study)
    grid = Grid(study, args.outputs)
    jobs = make_jobs(grid, OUR_TRAINER)
    rows: list[dict[str, Any]] = []
    file = grid.folder / "instrument.json"
    for number in range(args.repetitions):
        rows.append({"repetition": number + 1, **repetition(grid, jobs, study.seeds[number * R : (number + 1) * R])})
        found = {name: round(rows[-1][name]["p_value"], 4) for name in ENDPOINTS}
        log(f"repetition {number + 1}: {rows[-1]['cpu_sec']:.0f} s of processor time, p {found}")
        log(f"  high {rows[-1]['harmful_percent_high']}, low {rows[-1]['harmful_percent_low']}")
        result: dict[str, Any] = {"summary": summary(rows), "sensitivity": None, "repetitions": rows}
        if len(done := study.seeds[: (number + 1) * R]) > 1:
            cells = [cell for cell in grid.cells if cell.seed in done]
            result["sensitivity"] = sensitivity(arms_of(grid, jobs, cells), R)
        write_json(file, {**result, "world": args.world, "run": run_record("instrument", as_dict(one))})
    return {"instrument": str(file), **result["summary"], "sensitivity": result["sensitivity"]}


if __name__ == "__main__":
    run(main)
