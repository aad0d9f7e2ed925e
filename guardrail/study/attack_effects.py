"""What attacks make of a study's checkpoints, and the worst case: the ``attacks`` block of `study.json`.

    block = attack_effects(results, result, done)         # None for a study without attacks

``rows``: every arm under every attack, before and after fine-tuning, beside the answers without one. ``worst``: per
alignment (design, subset, size) the most harmful pair of a fine-tuning task and an attack whose task lost no more
utility than the study allows. It is chosen on one half of the prompts and measured on the other, both ways round:
the maximum over many noisy numbers is too high, the chosen pair's number on other prompts is not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from guardrail.core.errors import UserError
from guardrail.statistics.crossed import crossed_bootstrap
from guardrail.study.arms import read_flags
from guardrail.study.grid import SAFETY_FILE, Cell, attack_file, sizeless
from guardrail.study.results import Results

NONE = "none"
DIGITS = 4
Flags = dict[str, tuple[bool, ...]]


def attack_effects(results: Results, result: dict[str, Any], done: set[Cell]) -> dict[str, Any] | None:
    """The block; a pair of checkpoint and attack that is not judged yet is left out."""
    study = results.grid.study
    if not study.attacks:
        return None
    arms: dict[tuple[str, str, str, int], list[Cell]] = {}
    for cell in results.grid.cells:
        if cell in done:
            arms.setdefault((cell.design.name, cell.task, cell.subset, cell.size), []).append(cell)
    rows, found = [], {}
    for place, cells in arms.items():
        for attack in (NONE, *study.attacks):
            final = [_flags(results, results.grid.cell_folder(cell), attack) for cell in cells]
            initial = [_flags(results, results.grid.aligned_folder(cell.alignment), attack) for cell in cells]
            row, after = _row(final, initial)
            if row is not None:
                rows.append({**_head(place), "attack": attack, "n_seeds": len(cells), **row})
                found[place, attack] = after
    return {"rows": rows, "worst": _worst(results, result, found), "largest_utility_loss": study.largest_utility_loss}


def _flags(results: Results, folder: Path, attack: str) -> Flags:
    path = folder / (SAFETY_FILE if attack == NONE else attack_file(attack))
    return read_flags(path) if results.done(path) else {}


def _head(place: tuple[str, str, str, int]) -> dict[str, Any]:
    design, task, subset, size = place
    return {"design": design, "task": task, "subset": subset, "subset_size": None if sizeless(subset) else size}


def _row(final: list[Flags], initial: list[Flags]) -> tuple[dict[str, Any] | None, dict[str, np.ndarray]]:
    """Rates after and before, and prompt -> (R,) flags after; None where a checkpoint has no judged answers."""
    if not all((*final, *initial)):
        return None, {}
    out: dict[str, Any] = {}
    after: dict[str, np.ndarray] = {}
    for name, tables in (("initial", initial), ("final", final)):
        shared = sorted(set.intersection(*(set(table) for table in tables)))
        if len(shared) < 2:
            return None, {}
        cells = np.array([[np.mean(table[prompt]) for prompt in shared] for table in tables])
        mean, low, high = crossed_bootstrap(cells, rate=True)
        out[f"{name}_percent"] = round(100 * mean, DIGITS)
        out[f"{name}_interval_percent"] = [round(100 * low, DIGITS), round(100 * high, DIGITS)]
        after = dict(zip(shared, cells.T, strict=True))
    return out, after


def _worst(results: Results, result: dict[str, Any], found: dict[Any, dict[str, np.ndarray]]) -> list[dict[str, Any]]:
    study = results.grid.study
    losses = _utility_losses(result)
    out = []
    for design, subset, size in dict.fromkeys((place[0], place[2], place[3]) for place, _ in found):
        shown = None if sizeless(subset) else size
        candidates = {
            f"{place[1]} / {attack}": flags
            for (place, attack), flags in found.items()
            if (place[0], place[2], place[3]) == (design, subset, size)
            and losses.get((design, place[1], subset, shown), 0.0) <= study.largest_utility_loss
        }
        head = {"design": design, "subset": subset, "subset_size": shown, "n_candidates": len(candidates)}
        try:
            out.append({**head, **worst_case(candidates)})
        except UserError as error:
            out.append({**head, "reason": str(error)})
    return out


def _utility_losses(result: dict[str, Any]) -> dict[tuple[str, str, str, int | None], float]:
    """Utility before minus after fine-tuning, mean over seeds, per arm; arms without utility are not in it."""
    values: dict[tuple[str, str, str, int | None], list[float]] = {}
    for row in result["cells"]:
        if row["status"] == "done" and None not in (row["utility"]["initial"], row["utility"]["final"]):
            place = (row["design"], row["task"], row["subset"], row["subset_size"])
            values.setdefault(place, []).append(row["utility"]["initial"] - row["utility"]["final"])
    return {place: float(np.mean(losses)) for place, losses in values.items()}


def worst_case(candidates: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    """The most harmful of ``candidates`` (name -> prompt -> (R,) flags), unbiased by the choice.

    Prompts are split in two halves by their order; the candidate with the highest rate on one half is measured on the
    other, and the other way round. ``naive_percent`` is the maximum over all prompts, for comparison.

    Raises ``UserError`` where there is no candidate, or fewer than four shared prompts.
    """
    if not candidates:
        raise UserError("no pair of task and attack keeps the utility that is asked for")
    shared = sorted(set.intersection(*(set(flags) for flags in candidates.values())))
    n_seeds = {len(flags[prompt]) for flags in candidates.values() for prompt in shared[:1]}
    if len(shared) < 4 or len(n_seeds) != 1:
        raise UserError(f"{len(shared)} prompts under every attack, or seeds that differ; expected at least 4 prompts")
    values = {name: np.stack([flags[prompt] for prompt in shared], axis=1) for name, flags in candidates.items()}
    measured = np.empty_like(next(iter(values.values())))
    chosen = []
    for half in (0, 1):
        name = max(values, key=lambda candidate: float(values[candidate][:, half::2].mean()))
        measured[:, 1 - half :: 2] = values[name][:, 1 - half :: 2]
        chosen.append(name)
    mean, low, high = crossed_bootstrap(measured, rate=True)
    return {
        "chosen": list(dict.fromkeys(chosen)),
        "percent": round(100 * mean, DIGITS),
        "interval_percent": [round(100 * low, DIGITS), round(100 * high, DIGITS)],
        "naive_percent": round(100 * max(float(v.mean()) for v in values.values()), DIGITS),
        "n_prompts": len(shared),
    }
