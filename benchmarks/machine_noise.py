"""How much of a result is the machine? Fine-tunings of a finished study again, on other instructions and threads.

    python benchmarks/machine_noise.py outputs/sandbox_survival/study_config.json --tasks list --subsets high,low
    python benchmarks/machine_noise.py outputs/quickstart/study_config.json --whole      # the alignments again, too

The same seed, prompts and aligned model give other weights where sums are rounded in another order. Every cell of one
seed is fine-tuned, answered and judged on each machine of `MACHINES`: plain and AVX2 kernels (``ATEN_CPU_CAPABILITY``),
one and two threads. The runs are studies of their own below ``outputs/machines/``, made by scripts/study.sh, so that
they continue after any interruption; what lies before the fine-tuning is copied from the study, not made again.

Leaves `machine_noise.json` in the study's folder, from which its tables and report show the machine beside seeds and
prompts (`guardrail.study.noise`). Last stdout line: JSON with the values on every machine. Known limits: one seed, CPUs
only; a GPU's own noise has to be measured by running a study twice.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from guardrail.core.cli import Parser, log, run
from guardrail.core.errors import UserError
from guardrail.core.files import read_json, write_json
from guardrail.core.provenance import utc_now
from guardrail.study.config import Study, build
from guardrail.study.dag import make_jobs
from guardrail.study.grid import MACHINE_FILE, Grid, sizeless
from guardrail.study.noise import key_of, pooled
from guardrail.study.results import Results
from guardrail.study.schedule import recorded_setup

REPOSITORY = Path(__file__).resolve().parents[1]
MACHINES = tuple((kernels, threads) for kernels in ("default", "avx2") for threads in (1, 2))
UPSTREAM = ("similarity", "data", "aligned", "base")
DIGITS = 4


def name_of(machine: tuple[str, int]) -> str:
    return f"{machine[0]}_{machine[1]}"


def copy_upstream(source: Path, target: Path) -> None:
    """What lies before the fine-tunings, with its records; nothing where the copy is whole already."""
    if (target / "copied").is_file():
        return
    shutil.rmtree(target, ignore_errors=True)
    for folder in UPSTREAM:
        if (source / folder).is_dir():
            shutil.copytree(source / folder, target / folder, symlinks=True)
    for record in (source / "records").iterdir():
        if ".cells." not in record.name and not record.name.startswith("fine_tune."):
            shutil.copytree(record, target / "records" / record.name)
    (target / "copied").touch()


def run_machine(config: Path, outputs: Path, machine: tuple[str, int], options: dict[str, str]) -> Path:
    """One study on one machine; returns its study.json. Raises ``UserError`` where a cell of it failed."""
    kernels, threads = machine
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": kernels, "OMP_NUM_THREADS": str(threads), **options}
    environment |= {"OUTPUTS": str(outputs), "CUDA_VISIBLE_DEVICES": ""}
    command = ["bash", str(REPOSITORY / "scripts" / "study.sh"), str(config)]
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise UserError(f"the study on {name_of(machine)} ended with exit code {done.returncode}; see {outputs}")
    return outputs / read_json(config)["name"] / "study.json"


def values_of(result: dict[str, Any]) -> dict[tuple[Any, ...], dict[str, float]]:
    """Cell (design, task, subset, size, seed) -> outcome -> value; of a study with one seed."""
    out: dict[tuple[Any, ...], dict[str, float]] = {}
    names = ("design", "task", "subset", "subset_size")
    for cell in result["cells"]:
        place = (*(cell[name] for name in names), cell["seed"])
        out[place] = {"change": cell["delta_points"], "harmful_after": cell["final"]["harmfulness_score_percent"]}
    for arm in (result.get("survival") or {}).get("arms", ()):
        (seed,) = arm["seeds"]
        life = 100 * arm["life_steps"] / arm["training_steps"]
        out[(*(arm[name] for name in names), seed)]["life_percent"] = round(life, DIGITS)
    return out


def collect(results: Results, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The content of `machine_noise.json`: per cell its values on every machine, in the order of ``found``."""
    values = {name: values_of(result) for name, result in found.items()}
    cells = []
    for cell in results.grid.cells:
        size = None if sizeless(cell.subset) else cell.size
        place = (cell.design.name, cell.task, cell.subset, size, cell.seed)
        seen = [one[place] for one in values.values() if place in one]
        if len(seen) == len(values):
            cells.append(
                {
                    **dict(zip(("design", "task", "subset", "subset_size", "seed"), place, strict=True)),
                    "key": key_of(results, cell),
                    "values": {outcome: [one[outcome] for one in seen] for outcome in seen[0]},
                }
            )
    return {"machines": list(found), "cells": cells, "time_utc": utc_now()}


def main() -> dict[str, Any]:
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("study_config", help="outputs/STUDY/study_config.json of a finished study")
    parser.add_argument("--seed", type=int, help="the training seed (default: the study's first)")
    parser.add_argument("--tasks", help="only these tasks: list,pure_bad")
    parser.add_argument("--subsets", help="only these subsets: high,low")
    parser.add_argument("--whole", action="store_true", help="repeat the alignments, too")
    args = parser.parse_args()
    path = Path(args.study_config)
    if not path.is_file():
        raise UserError(f"no such file: {path}; expected outputs/STUDY/study_config.json")
    study = build(Study, read_json(path), "")
    seed = study.seeds[0] if args.seed is None else args.seed
    if seed not in study.seeds:
        raise UserError(f"--seed {seed} is none of the study's seeds: {', '.join(map(str, study.seeds))}")
    grid = Grid(study, path.resolve().parent.parent)
    results = Results(grid, make_jobs(grid, *recorded_setup(grid)))
    options = {"SEEDS": str(seed), "TASKS": args.tasks or "", "SUBSETS": args.subsets or ""}
    machines = grid.folder.parent / "machines" / ("whole" if args.whole else "fine_tuning")
    found = {}
    for machine in MACHINES:
        outputs = machines / name_of(machine)
        if not args.whole:
            copy_upstream(grid.folder, outputs / study.name)
        log(f"{study.name} on {name_of(machine)} ...")
        found[name_of(machine)] = read_json(run_machine(path.resolve(), outputs, machine, options))
    record = collect(results, found)
    write_json(grid.folder / MACHINE_FILE, record)
    subprocess.run(
        ["python", "-m", "guardrail.study.write", str(path), "--outputs", str(grid.folder.parent)],
        stdout=subprocess.DEVNULL,
        check=False,  # it ends with 1 where a cell of the study has failed
    )
    outcomes = dict.fromkeys(name for cell in record["cells"] for name in cell["values"])
    spread = {
        name: round(pooled([cell["values"][name] for cell in record["cells"] if name in cell["values"]]), DIGITS)
        for name in outcomes
    }
    largest = {
        name: round(float(max(np.ptp(c["values"][name]) for c in record["cells"] if name in c["values"])), DIGITS)
        for name in outcomes
    }
    return {"file": str(grid.folder / MACHINE_FILE), "sd": spread, "largest_range": largest, **record}


if __name__ == "__main__":
    run(main)
