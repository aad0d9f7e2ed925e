"""Collect a study's result files into `study.json`: what was measured, and what is missing, never a made-up zero.

Reads `beaver-dam.json` (harmfulness), `key-word.json` of the over-refusal bench and `utility/*.json` of every
checkpoint, and of these only what was made from the study as it is set now: see `Results`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from guardrail.core.errors import UserError
from guardrail.core.files import hash_json, read_json
from guardrail.core.provenance import run_record
from guardrail.study.config import as_dict
from guardrail.study.grid import OVER_REFUSAL_FILE, SAFETY_FILE, Cell, Grid, judge_file, sizeless, utility_file
from guardrail.study.jobs import Job, job_states, jobs_behind
from guardrail.study.records import State


class Results:
    """The results of a study that are done: nothing else is ever read.

    A file is handed out only if the job that made it is done under its expected key (`guardrail.study.records`).
    """

    def __init__(self, grid: Grid, jobs: dict[str, Job]) -> None:
        self.grid, self.jobs = grid, jobs
        self.states = job_states(grid, jobs)
        self._maker = {
            name: (job.name, product.name)
            for job in jobs.values()
            for product in job.products
            for name in product.files
        }

    def state(self, path: Path) -> State:
        """The state of the product that ``path`` (below the study's folder) belongs to."""
        place = path.relative_to(self.grid.folder)
        for name in (place, *place.parents):
            if str(name) in self._maker:
                job, product = self._maker[str(name)]
                return self.states[job][product]
        return State("missing", f"{place} belongs to no job of this study")

    def done(self, path: Path) -> bool:
        """Is ``path`` a result of this study as it is set now?"""
        return self.state(path).done

    def read(self, path: Path) -> Any:
        """The JSON of a result. Raises ``UserError`` unless it is done."""
        state = self.state(path)
        if not state.done:
            raise UserError(f"{path.relative_to(self.grid.folder)} is {state.status}: {state.reason}")
        return read_json(path)

    def status(self, targets: list[str]) -> State:
        """One state for the jobs ``targets``: done, else the first failure behind them, else stale or missing."""
        own = [state for name in targets for state in self.states[name].values()]
        if all(state.done for state in own):
            return State("done")
        behind = jobs_behind(self.jobs, targets)
        failed = [state for name in behind for state in self.states[name].values() if state.status == "failed"]
        order = [*failed, *(state for state in own if state.status == "stale"), *own]
        return next(state for state in order if not state.done)

    def key(self) -> str:
        """Changes when any number that may be shown does, or what is missing."""
        products = {
            f"{job.name}/{product.name}": [
                product.key.value,  # and the state, but for whether its weights are still there: no number hangs on it
                *dataclasses.astuple(dataclasses.replace(self.states[job.name][product.name], absent=False))[:-1],
            ]
            for job in self.jobs.values()
            for product in job.products
        }
        return hash_json(products)


def evaluation_jobs(grid: Grid, folder: Path, tasks: Iterable[str]) -> list[str]:
    """The jobs whose numbers a row of the table needs, of one checkpoint; further judges are extra."""
    short = ".".join(folder.relative_to(grid.folder).parts)
    names = [f"harmfulness.{short}", *(f"utility.{short}.{task}" for task in tasks)]
    return names + ([f"over_refusal.{short}"] if grid.study.evaluation.over_refusal_bench else [])


def read_judges(results: Results, folder: Path, judges: Iterable[str]) -> dict[str, Any]:
    """Harmfulness by each further judge. One that has not answered is a missing number, never a failed checkpoint."""
    out: dict[str, Any] = {}
    for judge in judges:
        try:
            summary = results.read(folder / judge_file(judge))["summary"]
            names = ("harmfulness_score_percent", "harmfulness_score_interval_percent", "n", "judge_error_percent")
            out[judge] = {name: summary[name] for name in names}
        except UserError as error:
            out[judge] = {"missing": str(error)}
    return out


def read_safety(results: Results, folder: Path) -> dict[str, Any]:
    """Harmfulness and refusals of one checkpoint; rates in percent with 95% Wilson intervals.

    Raises ``UserError`` when a file is not done or unreadable.
    """
    evaluation = results.grid.study.evaluation
    summary = results.read(folder / SAFETY_FILE)["summary"]
    out = {
        "harmfulness_score_percent": summary["harmfulness_score_percent"],
        "harmfulness_score_interval_percent": summary["harmfulness_score_interval_percent"],
        "refusal_percent": summary["refusal_percent"],
        "n": summary["n"],
        "outcomes_percent": {name: rate["percent"] for name, rate in summary["outcomes"].items()},
        "data_hash": summary["data_hash"],
    }
    if evaluation.over_refusal_bench is not None:
        summary = results.read(folder / OVER_REFUSAL_FILE)["summary"]
        out["benign_refusal_percent"] = summary["refusal_percent"]
        out["benign_n"] = summary["n"]
    if further := read_judges(results, folder, evaluation.judges):
        out["judges"] = further
    return out


def read_utility(results: Results, folder: Path, task: str) -> dict[str, Any]:
    """The headline utility number of one checkpoint on ``task``'s held-out rows."""
    utility = results.read(folder / utility_file(task))["utility"]
    loss = utility.get("heldout_loss") or {}
    return {
        "metric": utility["metric"],
        "value": utility["value"],
        "interval": utility["interval"],
        "n": utility["n"],
        "heldout_loss_nats_per_token": loss.get("loss_nats_per_token"),
    }


def collect(results: Results) -> dict[str, Any]:
    """The content of `study.json`: ``base``, ``cells`` in table order, and the ``run`` record.

    A row whose status is not ``done`` (`failed`, `stale`, `missing`) has a reason and no numbers.
    """
    grid = results.grid
    study = grid.study
    base = _row(results, evaluation_jobs(grid, grid.base_folder, study.utilities), lambda: _base(results))
    cells = [_cell(results, cell) for cell in grid.cells]
    statuses = [row["status"] for row in (base, *cells)]
    return {
        "study": study.name,
        "description": study.description,
        "designs": [design.name for design in study.all_designs],
        "base": base,
        "cells": cells,
        "n_failed": sum(status != "done" for status in statuses),
        "run": run_record("study", as_dict(study), seeds=list(study.seeds)),
    }


def of_design(result: dict[str, Any], name: str) -> dict[str, Any]:
    """``result`` (the content of `study.json`) with the cells and statistics of one design alone."""
    statistics = {
        block: [row for row in rows if row.get("design", name) == name] if isinstance(rows, list) else rows
        for block, rows in result.get("statistics", {}).items()
    }
    return {
        **result,
        "cells": [row for row in result["cells"] if row.get("design", name) == name],
        "statistics": statistics,
    }


def _base(results: Results) -> dict[str, Any]:
    folder, tasks = results.grid.base_folder, results.grid.study.utilities
    return {
        **read_safety(results, folder),
        "utility": {task: read_utility(results, folder, task) for task in tasks},
    }


def _row(results: Results, targets: list[str], read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The numbers of ``read`` if all ``targets`` are done; else status, reason and log, and no number."""
    state = results.status(targets)
    if not state.done:
        return {"status": state.status, "reason": state.reason, "log": state.log}
    try:
        return {"status": "done", **read()}
    except UserError as error:
        return {"status": "failed", "reason": str(error), "log": None}
    except (KeyError, TypeError) as error:
        return {"status": "failed", "reason": f"unexpected content: {type(error).__name__} {error}", "log": None}


def _cell(results: Results, cell: Cell) -> dict[str, Any]:
    grid = results.grid
    aligned, tuned = grid.aligned_folder(cell.alignment), grid.cell_folder(cell)
    utility = grid.study.utility_of(cell.task)

    def read() -> dict[str, Any]:
        initial, final = (read_safety(results, folder) for folder in (aligned, tuned))
        before, after = (read_utility(results, folder, utility) for folder in (aligned, tuned))
        return {
            "initial": initial,
            "final": final,
            "delta_points": round(final["harmfulness_score_percent"] - initial["harmfulness_score_percent"], 4),
            "utility": {
                "metric": after["metric"],
                "initial": before["value"],
                "final": after["value"],
                "n": after["n"],
                "heldout_loss_nats_per_token": {
                    "initial": before["heldout_loss_nats_per_token"],
                    "final": after["heldout_loss_nats_per_token"],
                },
            },
            "checkpoint": str(tuned),
        }

    head = {
        "task": cell.task,
        "subset": cell.subset,
        "subset_size": None if sizeless(cell.subset) else cell.size,
        "seed": cell.seed,
        "design": cell.design.name,
        "alignment": cell.alignment.name,
    }
    targets = [name for folder in (aligned, tuned) for name in evaluation_jobs(grid, folder, [utility])]
    return {**head, **_row(results, targets, read)}
