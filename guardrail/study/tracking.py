"""The study's summary in Weights & Biases or TensorBoard: one run per study, in the group of its training runs.

Which one is the study's ``log_type``. Without WANDB_API_KEY the run stays offline (`wandb sync` sends it later).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from guardrail.study.config import Study

ARM_NUMBERS = ("initial_percent", "final_percent", "delta_points", "utility_final")


def scalars(result: dict[str, Any]) -> dict[str, float]:
    """`task/subset_size/number` -> value, for every finished arm and every overall comparison.

    With several designs each name begins with its own.
    """
    out: dict[str, float] = {}
    statistics = result.get("statistics", {})
    several = len(result["designs"]) > 1

    def of(row: dict[str, Any], name: str) -> str:
        return f"{row['design']}/{name}" if several else name

    for arm in statistics.get("arms", []):
        size = f"_{arm['subset_size']}" if arm["subset_size"] else ""
        name = of(arm, f"{arm['task']}/{arm['subset']}{size}")
        out |= {f"{name}/{key}": arm[key] for key in ARM_NUMBERS if arm.get(key) is not None}
    for entry in statistics.get("overall", []):
        if "difference_points" in entry:
            name = f"overall_{entry['subset_size']}/{entry['first']}_minus_{entry['second']}_{entry['outcome']}_points"
            out[of(entry, name)] = entry["difference_points"]
    return out


def log_summary(study: Study, result: dict[str, Any], figures: dict[str, Path], folder: Path) -> None:
    """Log numbers and figures; nothing for ``log_type: none``."""
    if study.log_type == "wandb":
        _log_wandb(study, result, figures, folder)
    elif study.log_type == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(folder / "tensorboard")) as writer:
            for name, value in scalars(result).items():
                writer.add_scalar(name, value, global_step=0)


def _log_wandb(study: Study, result: dict[str, Any], figures: dict[str, Path], folder: Path) -> None:
    if not os.environ.get("WANDB_API_KEY"):
        os.environ.setdefault("WANDB_MODE", "offline")
    import wandb

    settings = wandb.Settings(silent=True, console="off")
    run = wandb.init(
        project="guardrail-durability",
        group=study.name,
        name=f"{study.name}-summary",
        job_type="study",
        dir=str(folder),
        config=result["run"]["config"],
        settings=settings,
    )
    try:
        run.summary.update({**scalars(result), "n_failed": result["n_failed"]})
        run.log({name: wandb.Image(str(path)) for name, path in figures.items()})
    finally:
        run.finish()
