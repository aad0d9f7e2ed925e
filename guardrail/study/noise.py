"""What a result would vary by if one thing alone were changed: the training seeds, the prompts, or the machine.

    rows = noise(results, arms, trajectories)       # the ``noise`` block of study.json

One run of an arm has one value per outcome. Three standard deviations of that value, in its own unit:

* ``sd_seeds``: other training seeds, on the same prompts and machine; as observed, so it holds whatever a seed moves.
* ``sd_prompts``: other prompts of the same kind, for the same checkpoints: the standard error over prompts.
* ``sd_machine``: another instruction set or number of threads, with the same seed and prompts, from the same aligned
  model. `benchmarks/machine_noise.py` measures it and leaves `machine_noise.json` in the study's folder; None without.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from guardrail.core.files import read_json
from guardrail.statistics.survival import life_cells
from guardrail.study.arms import Arm, stack
from guardrail.study.grid import MACHINE_FILE, Cell, sizeless
from guardrail.study.results import Results
from guardrail.study.training_jobs import tuned_name
from guardrail.study.trajectories import Trajectory

UNITS = {"change": "points", "harmful_after": "points", "life_percent": "% of training"}
DIGITS = 4


def noise(results: Results, arms: list[Arm], trajectories: list[Trajectory]) -> list[dict[str, Any]]:
    """One row per arm and outcome that has a finished seed."""
    machine = machine_values(results)
    out = []
    for arm in arms:
        if arm.seeds:
            values, _ = stack([*arm.initial, *arm.final])
            cells = 100 * values.mean(axis=2)
            before, after = cells[: len(arm.seeds)], cells[len(arm.seeds) :]
            head = _head(arm.design, arm.task, arm.subset, arm.size)
            out += [_row(head, "change", after - before, machine), _row(head, "harmful_after", after, machine)]
    for lasting in trajectories:
        cells = 100 * life_cells(lasting.lives) / lasting.length
        out.append(_row(_head(*lasting.place), "life_percent", cells, machine))
    return out


def _head(design: str, task: str, subset: str, size: int) -> dict[str, Any]:
    return {"design": design, "task": task, "subset": subset, "subset_size": None if sizeless(subset) else size}


def _row(
    head: dict[str, Any], outcome: str, cells: np.ndarray, machine: dict[tuple[Any, ...], dict[str, list[list[float]]]]
) -> dict[str, Any]:
    """``cells`` (R, P) values of one arm."""
    R, P = cells.shape
    found = machine.get(tuple(head.values()), {}).get(outcome, [])
    return {
        **head,
        "outcome": outcome,
        "unit": UNITS[outcome],
        "sd_seeds": round(float(cells.mean(axis=1).std(ddof=1)), DIGITS) if R > 1 else None,
        "sd_prompts": round(float(np.sqrt(cells.var(axis=1, ddof=1).mean() / P)), DIGITS),
        "sd_machine": round(pooled(found), DIGITS) if found else None,
        "n_seeds": R,
        "n_prompts": P,
        "n_machines": len(found[0]) if found else None,
    }


def pooled(values: list[list[float]]) -> float:
    """The standard deviation within each list, pooled over the lists."""
    return float(np.sqrt(np.mean([np.var(one, ddof=1) for one in values])))


def machine_values(results: Results) -> dict[tuple[Any, ...], dict[str, list[list[float]]]]:
    """Per arm and outcome, a list per cell of its values on every machine; only of cells as the study has them now."""
    path = results.grid.folder / MACHINE_FILE
    if not path.is_file():
        return {}
    keys = {
        (*_head(c.design.name, c.task, c.subset, c.size).values(), c.seed): key_of(results, c)
        for c in results.grid.cells
    }
    out: dict[tuple[Any, ...], dict[str, list[list[float]]]] = {}
    for row in read_json(path)["cells"]:
        place = tuple(row[name] for name in ("design", "task", "subset", "subset_size"))
        if keys.get((*place, row["seed"])) != row["key"]:
            continue  # measured under other settings
        for outcome, values in row["values"].items():
            out.setdefault(place, {}).setdefault(outcome, []).append(values)
    return out


def key_of(results: Results, cell: Cell) -> str:
    """The key of a cell's training."""
    return next(p.key.value for p in results.jobs[tuned_name(cell)].products if p.name == "checkpoint")
