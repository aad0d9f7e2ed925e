"""Collect a study's result files into `study.json`: what was measured, and what is missing, never a made-up zero.

Reads only files that later stages are allowed to read: `beaver-dam.json` (harmfulness), `results.json` of the
over-refusal bench, `utility.json`. A cell whose files are absent or belong to a failed stage has
``status: "failed"`` and names what is missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from guardrail.core.errors import UserError
from guardrail.core.files import read_json
from guardrail.core.provenance import run_record
from guardrail.evaluation import judges
from guardrail.study.config import Study, as_dict
from guardrail.study.grid import Cell, Grid, sizeless

SAFETY_FILE = "evaluation/safety/beaver-dam.json"
OVER_REFUSAL_FILE = "evaluation/over_refusal/key-word.json"


def judge_file(judge: str) -> str:
    """Where a further judge's judgements of a checkpoint lie, below the checkpoint's folder."""
    return f"evaluation/safety/{judges.file_name(judge)}"


def utility_file(task: str) -> str:
    """Where a checkpoint's utility on ``task``'s held-out rows lies, below the checkpoint's folder."""
    return f"evaluation/utility/{task}.json"


def result_files(grid: Grid) -> list[Path]:
    """Every file that decides `study.json`, tables, figures and report, whether it is there or not."""
    study = grid.study
    names = [SAFETY_FILE, *map(judge_file, study.evaluation.judges)]
    names += [OVER_REFUSAL_FILE] if study.evaluation.over_refusal_bench else []
    files = [grid.base_folder / name for name in (*names, *(utility_file(task) for task in study.tasks))]
    for cell in grid.cells:
        for folder in (grid.aligned_folder(cell.alignment), grid.cell_folder(cell)):
            files += [folder / name for name in (*names, utility_file(cell.task), "losses.jsonl")]
        files.append(grid.folder / "data" / f"seed{cell.seed}" / "manifests" / f"train_{cell.alignment.name}.json")
    files += [
        grid.folder / "similarity" / name / "reps/extraction/manifest.json" for name in ("safety_pool", *study.tasks)
    ]
    return list(dict.fromkeys(files))


def blame(grid: Grid, cell: Cell, over_refusal: bool) -> Path | None:
    """The log of the first stage of ``cell`` whose result is missing; ``None`` when that stage never started."""
    alignment, logs = cell.alignment, grid.folder / "logs"
    aligned, tuned = grid.aligned_folder(alignment), grid.cell_folder(cell)
    stages = [
        (
            grid.folder / "data" / f"seed{cell.seed}" / "data" / f"train_{alignment.name}-00000-of-00001.parquet",
            logs / f"mix_{alignment.name}_seed{cell.seed}.log",
        ),
        (aligned / "run.json", logs / f"align_{alignment.name}_seed{cell.seed}.log"),
        (tuned / "run.json", logs / f"fine_tune_{cell.name}_seed{cell.seed}.log"),
    ]
    for folder in (aligned, tuned):
        safety = folder / "evaluation/safety"
        stages += [(safety / "results.json", safety / "generate.log"), (folder / SAFETY_FILE, safety / "moderate.log")]
        if over_refusal:
            stages.append((folder / OVER_REFUSAL_FILE, (folder / OVER_REFUSAL_FILE).parent / "generate.log"))
        stages.append((folder / utility_file(cell.task), folder / f"evaluation/utility/{cell.task}.log"))
    log = next((log for result, log in stages if not result.is_file()), None)
    return log if log is not None and log.is_file() else None


def read_judges(folder: Path, judges: Iterable[str]) -> dict[str, Any]:
    """Harmfulness by each further judge. One that has not answered is a missing number, never a failed checkpoint."""
    out: dict[str, Any] = {}
    for judge in judges:
        try:
            summary = read_json(folder / judge_file(judge))["summary"]
            names = ("harmfulness_score_percent", "harmfulness_score_interval_percent", "n", "judge_error_percent")
            out[judge] = {name: summary[name] for name in names}
        except UserError as error:
            out[judge] = {"missing": str(error)}
    return out


def read_safety(folder: Path, over_refusal: bool, judges: Iterable[str] = ()) -> dict[str, Any]:
    """Harmfulness and refusals of one checkpoint; rates in percent with 95% Wilson intervals.

    Raises ``UserError`` when a file is missing or unreadable.
    """
    summary = read_json(folder / SAFETY_FILE)["summary"]
    out = {
        "harmfulness_score_percent": summary["harmfulness_score_percent"],
        "harmfulness_score_interval_percent": summary["harmfulness_score_interval_percent"],
        "refusal_percent": summary["refusal_percent"],
        "n": summary["n"],
        "outcomes_percent": {name: rate["percent"] for name, rate in summary["outcomes"].items()},
        "data_hash": summary["data_hash"],
    }
    if over_refusal:
        summary = read_json(folder / OVER_REFUSAL_FILE)["summary"]
        out["benign_refusal_percent"] = summary["refusal_percent"]
        out["benign_n"] = summary["n"]
    if further := read_judges(folder, judges):
        out["judges"] = further
    return out


def read_utility(folder: Path, task: str) -> dict[str, Any]:
    """The headline utility number of one checkpoint on ``task``'s held-out rows."""
    utility = read_json(folder / utility_file(task))["utility"]
    loss = utility.get("heldout_loss") or {}
    return {
        "metric": utility["metric"],
        "value": utility["value"],
        "interval": utility["interval"],
        "n": utility["n"],
        "heldout_loss_nats_per_token": loss.get("loss_nats_per_token"),
    }


def collect(grid: Grid) -> dict[str, Any]:
    """The content of `study.json`: ``base``, ``cells`` in table order, and the ``run`` record."""
    study = grid.study
    over_refusal = study.evaluation.over_refusal_bench is not None
    base = _guarded(lambda: _arm(grid.base_folder, study, over_refusal))
    cells = [_cell(grid, cell, over_refusal) for cell in grid.cells]
    return {
        "study": study.name,
        "description": study.description,
        "base": base,
        "cells": cells,
        "n_failed": sum(cell["status"] == "failed" for cell in cells) + (base["status"] == "failed"),
        "run": run_record("study", _settings(study), seeds=list(study.seeds)),
    }


def _settings(study: Study) -> dict[str, Any]:
    return as_dict(study)


def _arm(folder: Path, study: Study, over_refusal: bool) -> dict[str, Any]:
    return {
        **read_safety(folder, over_refusal, study.evaluation.judges),
        "utility": {task: read_utility(folder, task) for task in study.tasks},
    }


def _guarded(read: Any) -> dict[str, Any]:
    try:
        return {"status": "done", **read()}
    except UserError as error:
        return {"status": "failed", "reason": str(error)}
    except (KeyError, TypeError) as error:
        return {"status": "failed", "reason": f"unexpected content: {type(error).__name__} {error}"}


def _cell(grid: Grid, cell: Cell, over_refusal: bool) -> dict[str, Any]:
    head = {
        "task": cell.task,
        "subset": cell.subset,
        "subset_size": None if sizeless(cell.subset) else cell.size,
        "seed": cell.seed,
        "alignment": cell.alignment.name,
    }

    def read() -> dict[str, Any]:
        aligned, tuned = grid.aligned_folder(cell.alignment), grid.cell_folder(cell)
        judges = grid.study.evaluation.judges
        initial, final = (read_safety(folder, over_refusal, judges) for folder in (aligned, tuned))
        before, after = read_utility(aligned, cell.task), read_utility(tuned, cell.task)
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

    out = {**head, **_guarded(read)}
    if out["status"] == "failed":
        log = blame(grid, cell, over_refusal)
        out["log"] = None if log is None else str(log)
    return out
