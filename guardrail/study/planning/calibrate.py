"""Measure this machine with two tiny copies of the study: start and rate of every kind of process.

    bash scripts/study.sh configs/studies/quickstart.yaml --plan --calibrate

The copies are run by scripts/study.sh itself, with the study's models, dtype, batch sizes and number of jobs side by
side, on a few rows and on some more, in a temporary folder. Two sizes give two equations per kind of process: what it
takes to start, and what a counted second of work takes (`guardrail.study.planning.costs`). What the whole run takes
beyond its processes is the study's own overhead. The result lies in the user's cache under the machine's description,
and every later plan of a study with the same models and settings uses it.

Known limits: every stage is started a few times, so that a model of billions of parameters takes far longer than the
two minutes of a small one. A machine that is busier while the study runs is slower than calibrated.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guardrail.core.cli import log
from guardrail.core.errors import UserError
from guardrail.core.files import write_json, write_jsonl, write_text
from guardrail.core.places import RESOURCES
from guardrail.study.config import TASK_SUBSETS, Study, as_dict, build
from guardrail.study.grid import Grid
from guardrail.study.plan import plan_parts, tasks_of
from guardrail.study.planning.answers import answered
from guardrail.study.planning.node import Node
from guardrail.study.planning.rates import Calibration, Sample, Span, cache_file, fit, in_words, machine_facts
from guardrail.study.planning.simulate import simulate
from guardrail.study.planning.times import read_times

STUDY_VARIABLES = (
    "SIZE",
    "SEEDS",
    "SUBSETS",
    "TASKS",
    "PROMPTS",
    "DESIGNS",
    "DEFENCES",
    "SET",
    "PLAN_ASSUME",
)  # of scripts/study.sh
# rows of the small and of the large copy: instructions, subset, pool, task, held out, prompts
SIZES = (
    {"instruct": 64, "subset": 32, "pool": 96, "task": 12, "held_out": 8, "prompts": 16},
    {"instruct": 480, "subset": 240, "pool": 720, "task": 80, "held_out": 64, "prompts": 96},
)


def tiny(study: Study, folder: Path, size: Mapping[str, int], name: str) -> dict[str, Any]:
    """A copy of the study with few rows, as the content of a study file: one task, one selected subset, one seed.

    Without its defences and attacks, each of which would be trained or evaluated twice to learn the same rates. Writes
    its rows to ``folder``.
    """
    from guardrail.data.rows import load_rows

    def rows(what: str, source: str, split: str | None, n: int) -> dict[str, Any]:
        file = folder / f"{name}_{what}.jsonl"
        write_jsonl(file, load_rows(source, split, limit=n))
        return {"source": str(file)}

    task_name, task = next(iter(study.tasks.items()))
    subset = next((name for name in study.subsets if name in TASK_SUBSETS), study.subsets[0])
    content = as_dict(study)
    utility = content["tasks"][task_name]["utility"]
    held_out = rows("held_out", task.utility.source, task.utility.split, size["held_out"])
    pool = rows("pool", study.safety_pool.source, study.safety_pool.split, size["pool"])
    content |= {
        "name": name,
        "instruct": rows("instruct", study.instruct.source, study.instruct.split, size["instruct"]),
        "instruct_size": None,
        "safety_pool": pool,
        "tasks": {
            task_name: {
                "train": rows("task", task.train.source, task.train.split, size["task"]),
                "utility": {**utility, **held_out, "split": "test"},
            }
        },
        "subsets": [subset],
        "subset_sizes": [min(size["subset"], len(load_rows(pool["source"])))],
        "seeds": [study.seeds[0]],
        "primary": None,  # of subsets that are not in a copy
        "defences": None,
        "attacks": None,
        "expanded": None,
        "evaluation": {**content["evaluation"], "limit": size["prompts"]},
        "log_type": "none",
    }
    return {key: value for key, value in json.loads(json.dumps(content)).items() if value is not None}


def timed(command: Sequence[str], environment: Mapping[str, str]) -> tuple[Span, subprocess.CompletedProcess[str]]:
    """Run a command to its end: its seconds with those of everything that it started, and how it ended."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    done = subprocess.run(command, env=dict(environment), capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Span(time.time() - started, cpu), done


def run_tiny(content: Mapping[str, Any], folder: Path) -> Span:
    """Run one copy with the real script. Raises ``UserError`` when it fails."""
    import yaml

    file = folder / f"{content['name']}.yaml"
    write_text(file, yaml.safe_dump(dict(content)))
    environment = {name: value for name, value in os.environ.items() if name not in STUDY_VARIABLES}
    command = ["bash", str(RESOURCES / "scripts" / "study.sh"), str(file)]
    span, done = timed(command, {**environment, "OUTPUTS": str(folder / "outputs")})
    if done.returncode != 0 or "some stages failed" in done.stderr:
        told = [row for row in done.stderr.splitlines() if row.startswith("error: ") or " failed: " in row]
        last = (told or done.stderr.splitlines()[-1:] or ["no output"])[0]
        raise UserError(f"a tiny copy of the study failed: {last[:300]}")
    return span


def calibrate(study: Study, node: Node) -> Calibration:
    """Measure, keep and return. Raises ``UserError`` when a copy cannot be run on this machine."""

    if not node.here:
        raise UserError(f"--calibrate measures this machine, which is not {node.name}; leave PLAN_GPU out")
    samples: list[Sample] = []
    started = time.time()
    # what the scheduler needs for a process besides the process itself
    process, _ = timed([sys.executable, "-m", "guardrail.study.run_job", "--help"], os.environ)
    with tempfile.TemporaryDirectory(prefix="guardrail-calibration-") as place:
        folder = Path(place)
        for number, size in enumerate(SIZES, 1):
            log(f"calibrating, copy {number} of {len(SIZES)}: {size['instruct']} instructions")
            content = tiny(study, folder, size, f"calibration{number}")
            whole = run_tiny(content, folder)
            grid = Grid(build(Study, content, ""), folder / "outputs")
            parts = plan_parts(grid, node, whole=True)  # everything is done: these are the processes that ran
            times = {entry.name: entry for entry in read_times(grid.folder)}
            known = answered(grid.folder, parts.jobs) if node.gpu is None else {}
            counter = dataclasses.replace(parts.counter, answered=known, counted={})
            for entry in times.values():
                _, work, _ = counter.work(entry)
                samples.append(Sample(entry.stage, work, entry.wall_sec, entry.cpu_sec or 0.0))
            costs = {
                name: dataclasses.replace(cost, seconds=times[name].wall_sec if name in times else 0.0)
                for name, cost in parts.costs.items()
            }
            schedule = simulate(tasks_of(parts.processes, costs, node, process.wall_sec), node.limits)
            inside = sum((entry.cpu_sec or 0.0) + process.cpu_sec for entry in times.values())
            around = Span(max(whole.wall_sec - schedule.wall_sec, 0.0), max(whole.cpu_sec - inside, 0.0))
    stretch = sum(sample.wall_sec for sample in samples) / max(sum(sample.cpu_sec for sample in samples), 0.01)
    facts = machine_facts(node)
    found = Calibration(fit(samples, node.gpu is None), process, around, in_words(facts, stretch))
    write_json(
        cache_file(study, node),
        {
            **dataclasses.asdict(found),
            "machine": facts,
            "seconds": round(time.time() - started, 1),
            "samples": [dataclasses.asdict(sample) for sample in samples],
        },
    )
    log(f"calibrated in {time.time() - started:.0f} s: {cache_file(study, node)}")
    return found
