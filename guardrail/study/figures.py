"""Figures of a study (matplotlib, imported when drawn). Readable in grey and by colour-blind readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from guardrail.files import atomic_path

INITIAL, FINAL = "#0072B2", "#D55E00"  # Okabe-Ito blue and vermillion: they also differ in lightness


def harmfulness_figure(result: dict[str, Any], path: str | Path) -> Path:
    """Initial and final harmfulness score per cell with 95% intervals, base model as a dashed line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cells = result["cells"]
    tasks = list(dict.fromkeys(cell["task"] for cell in cells))
    height = 1.3 + 0.42 * len(cells) + 0.35 * len(tasks)
    figure, axis = plt.subplots(figsize=(7.2, height))
    y, ticks, labels = 0.0, [], []
    several_seeds = len({cell["seed"] for cell in cells}) > 1
    for task in tasks:
        axis.text(0, y - 0.2, task, fontweight="bold", va="bottom", ha="left", fontsize=9)
        y += 0.55
        for cell in (c for c in cells if c["task"] == task):
            ticks.append(y)
            size = f" {cell['subset_size']}" if cell["subset_size"] else ""
            labels.append(f"{cell['subset']}{size}" + (f", seed {cell['seed']}" if several_seeds else ""))
            if cell["status"] == "failed":
                axis.text(50, y, "failed", va="center", ha="center", style="italic", color="0.35", fontsize=9)
            else:
                _dumbbell(axis, cell, y)
            y += 1.0
        y += 0.35
    base = result["base"]
    if base["status"] == "done":
        value = base["harmfulness_score_percent"]
        axis.axvline(value, color="0.45", linestyle="--", linewidth=1, zorder=0)
        axis.text(value, -0.75, f"base model {value:.0f}%", ha="right", va="bottom", fontsize=8, color="0.35")
    axis.set(xlim=(-2, 104), ylim=(y, -0.8), xlabel="completions flagged harmful (%), 95% interval")
    axis.set_yticks(ticks, labels)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.grid(axis="x", color="0.9")
    axis.set_axisbelow(True)
    handles = [
        plt.Line2D([], [], marker="o", color=INITIAL, markerfacecolor="white", linestyle="", label="aligned"),
        plt.Line2D([], [], marker="o", color=FINAL, linestyle="", label="after fine-tuning"),
    ]
    figure.legend(handles=handles, loc="upper right", ncols=2, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.25 / height))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=160, format=Path(path).suffix[1:])
    plt.close(figure)
    return Path(path)


def _dumbbell(axis: Any, cell: dict[str, Any], y: float) -> None:
    start = cell["initial"]["harmfulness_score_percent"]
    end = cell["final"]["harmfulness_score_percent"]
    axis.plot([start, end], [y, y], color="0.75", linewidth=2, zorder=1)
    for arm, colour, offset, fill in (("initial", INITIAL, -0.13, "white"), ("final", FINAL, 0.13, FINAL)):
        value = cell[arm]["harmfulness_score_percent"]
        low, high = cell[arm]["harmfulness_score_interval_percent"]
        axis.plot([low, high], [y + offset] * 2, color=colour, linewidth=1.2, zorder=2)
        axis.plot(value, y + offset, "o", color=colour, markerfacecolor=fill, markersize=6, zorder=3)
