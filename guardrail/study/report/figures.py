"""Figures of a study (matplotlib, imported when drawn), each as PNG and PDF.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; markers, fills and line styles differ as well,
so that every figure can be read in grey.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from guardrail.core.files import atomic_path, read_jsonl
from guardrail.study.report.defences import pareto_figure, survival_by_defence, with_defences
from guardrail.study.report.doses import dose_figure, time_figure
from guardrail.study.report.survival import survival_figure
from guardrail.study.results import Results, of_design

INITIAL, FINAL = "#0072B2", "#D55E00"
STYLES = {  # subset -> colour, marker, line style
    "high": ("#D55E00", "^", "-"),
    "low": ("#0072B2", "v", "-"),
    "random": ("#555555", "o", "--"),
    "full": ("#000000", "s", ":"),
    "none": ("#000000", "x", "-."),
}
OTHER_COLOURS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#7F7F00")
OTHER_MARKERS = "DPX*<>hpd8"
SUFFIXES = (".png", ".pdf")
MAX_CURVE_POINTS = 120


def style(subset: str, subsets: list[str]) -> tuple[str, str, str]:
    """Colour, marker and line of ``subset`` among a study's ``subsets``; the paper's arms always look the same."""
    if subset in STYLES:
        return STYLES[subset]
    number = [name for name in subsets if name not in STYLES].index(subset)
    line = "-" if "high" in subset else "--"
    return OTHER_COLOURS[number % len(OTHER_COLOURS)], OTHER_MARKERS[number % len(OTHER_MARKERS)], line


def draw_figures(result: dict[str, Any], extra: dict[str, Any], folder: Path) -> dict[str, Path]:
    """Draw every figure that the results allow into ``folder``; returns name -> PNG path.

    ``extra`` may hold ``map`` (see `guardrail.study.properties.representation_map`) and ``curves`` (`loss_curves`).
    """
    designs = result["designs"]
    tests = result.get("statistics", {}).get("equivalence", {}).get("tests", [])
    levels = [row for row in result.get("defences", {}).get("levels", ()) if row["design"] == designs[0]]
    result = of_design(result, designs[0])
    statistics = result.get("statistics", {})
    arms = [arm for arm in statistics.get("arms", []) if arm["status"] == "done"]
    jobs: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {}
    ladders = result.get("doses", {}).get("ladders", [])
    on_ladder = {task for ladder in ladders for task in ladder["tasks"]}
    attacking = {arm["task"] for arm in result.get("attacks", {}).get("training", [])}
    lasting = [arm for arm in result.get("survival", {}).get("arms", []) if arm["task"] not in attacking]
    if len(own := with_defences(lasting, result.get("defences", {}).get("rows", []), designs[0])) > 1:
        jobs["survival_defences"] = (survival_by_defence, (own,))
    off = [arm for arm in lasting if arm["task"] not in on_ladder and arm["design"] == designs[0]]
    if off and ("survival_defences" not in jobs or len({arm["subset"] for arm in off}) > 1):  # else it is there already
        jobs["survival"] = (survival_figure, (off, style, _subset_legend))
    if dosed := [arm for arm in result.get("doses", {}).get("arms", []) if arm["design"] == designs[0]]:
        jobs["doses"] = (dose_figure, (dosed, style, _subset_legend))
    if along := [arm for arm in lasting if arm["task"] in on_ladder and arm["design"] == designs[0]]:
        jobs["dose_time"] = (time_figure, (along, ladders))
    if statistics.get("arms"):
        jobs["harmfulness"] = (harmfulness, (statistics["arms"], result["base"]))
    if len(statistics.get("observations", [])) > 2:
        jobs["similarity_durability"] = (similarity_durability, (statistics["observations"], arms))
    # a panel or column per dose, or per training of an attack, says little
    arms = [arm for arm in arms if arm["task"] not in on_ladder | attacking] or arms
    if any(len(arm["final_by_category_percent"]) > 1 for arm in arms):
        jobs["categories"] = (categories, (arms,))
    if extra.get("map"):
        jobs["representation_map"] = (representation_map, (extra["map"],))
    if any(arm["threshold_curve"] for arm in arms):
        jobs["threshold_curve"] = (threshold_curve, (arms,))
    if extra.get("curves"):
        jobs["learning_curves"] = (learning_curves, (extra["curves"],))
    if sum(row.get("utility") is not None for row in levels) > 1:
        jobs["defences"] = (pareto_figure, (levels,))
    if any(row["interval_90_points"] for row in tests):
        jobs["designs"] = (designs_forest, (tests,))
    paths = {}
    for name, (draw, arguments) in jobs.items():
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
            figure = draw(plt, *arguments)
            for suffix in SUFFIXES:
                with atomic_path(folder / f"{name}{suffix}") as temporary:
                    figure.savefig(temporary, dpi=170, format=suffix[1:], metadata=_no_date(suffix))
            plt.close(figure)
        paths[name] = folder / f"{name}.png"
    return paths


def _no_date(suffix: str) -> dict[str, None] | None:
    return {"CreationDate": None} if suffix == ".pdf" else None  # the same study gives the same bytes


def arm_label(arm: dict[str, Any]) -> str:
    return arm["subset"].replace("_", " ") + (f" {arm['subset_size']}" if arm["subset_size"] else "")


def harmfulness(plt: Any, arms: list[dict[str, Any]], base: dict[str, Any]) -> Any:
    """Initial and final harmfulness score per arm with 95% intervals, base model as a dashed line."""
    tasks = list(dict.fromkeys(arm["task"] for arm in arms))
    height = 1.3 + 0.34 * len(arms) + 0.35 * len(tasks)
    figure, axis = plt.subplots(figsize=(7.2, height))
    y, ticks, labels = 0.0, [], []
    for task in tasks:
        axis.text(0, y - 0.2, task, fontweight="bold", va="bottom", ha="left")
        y += 0.55
        for arm in (a for a in arms if a["task"] == task):
            ticks.append(y)
            labels.append(arm_label(arm))
            if arm["status"] != "done":
                axis.text(50, y, arm["status"], va="center", ha="center", style="italic", color="0.35")
            else:
                _dumbbell(axis, arm, y)
            y += 1.0
        y += 0.35
    if base["status"] == "done":
        value = base["harmfulness_score_percent"]
        axis.axvline(value, color="0.45", linestyle="--", linewidth=1, zorder=0)
        axis.text(value, -0.75, f"base model {value:.0f}%", ha="right", va="bottom", fontsize=8, color="0.35")
    axis.set(xlim=(-2, 104), ylim=(y, -0.8), xlabel="completions flagged harmful (%), 95% interval")
    axis.set_yticks(ticks, labels)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.grid(axis="x", color="0.9")
    axis.set_axisbelow(True)
    handles = [
        plt.Line2D([], [], marker="o", color=INITIAL, markerfacecolor="white", linestyle="", label="aligned"),
        plt.Line2D([], [], marker="o", color=FINAL, linestyle="", label="after fine-tuning"),
    ]
    figure.legend(handles=handles, loc="upper right", ncols=2, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.25 / height))
    return figure


def designs_forest(plt: Any, tests: list[dict[str, Any]]) -> Any:
    """Every design minus the reference with 90% intervals, one panel per outcome; the margin is shaded."""
    outcomes = list(dict.fromkeys(row["outcome"] for row in tests))
    designs = list(dict.fromkeys(row["design"] for row in tests))
    keys = list(dict.fromkeys(_scope_label(row) for row in tests))
    height = 1.6 + 0.24 * len(keys) * max(1.0, 0.6 * len(designs))
    figure, axes = plt.subplots(
        1, len(outcomes), figsize=(2.0 + 2.3 * len(outcomes), height), sharey=True, squeeze=False
    )
    for axis, outcome in zip(axes[0], outcomes, strict=True):
        rows = [row for row in tests if row["outcome"] == outcome]
        margin = rows[0]["margin_points"]
        axis.axvspan(-margin, margin, color="0.92", zorder=0)
        axis.axvline(0, color="0.7", linewidth=0.8, zorder=1)
        for row in rows:
            number = designs.index(row["design"])
            y = keys.index(_scope_label(row)) + 0.7 * ((number + 0.5) / len(designs) - 0.5)
            colour, marker = OTHER_COLOURS[number % len(OTHER_COLOURS)], OTHER_MARKERS[number % len(OTHER_MARKERS)]
            if row["interval_90_points"]:
                axis.plot(row["interval_90_points"], [y, y], color=colour, linewidth=1.2)
            filled = colour if row["verdict"] == "equivalent" else "white"
            axis.plot(row["difference_points"], y, marker, color=colour, markerfacecolor=filled, markersize=5)
        axis.set_title(outcome, fontsize=9, fontweight="bold")
        axis.set_xlabel("points")
    axes[0][0].set_yticks(range(len(keys)), keys, fontsize=8)
    axes[0][0].set_ylim(len(keys) - 0.4, -0.6)
    handles = [
        plt.Line2D([], [], marker=OTHER_MARKERS[i % 10], color=OTHER_COLOURS[i % 6], linestyle="", label=name)
        for i, name in enumerate(designs)
    ]
    figure.legend(handles=handles, loc="lower center", ncols=len(designs), frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.35 / height, 1, 1))
    return figure


def _scope_label(row: dict[str, Any]) -> str:
    if row["scope"] == "arm":
        return f"{row['task']}: {arm_label(row)}"
    return f"{row['task']}: {row['scope']}" if row["task"] else row["scope"]


def _dumbbell(axis: Any, arm: dict[str, Any], y: float) -> None:
    axis.plot([arm["initial_percent"], arm["final_percent"]], [y, y], color="0.75", linewidth=2, zorder=1)
    for moment, colour, offset, fill in (("initial", INITIAL, -0.13, "white"), ("final", FINAL, 0.13, FINAL)):
        axis.plot(arm[f"{moment}_interval_percent"], [y + offset] * 2, color=colour, linewidth=1.2, zorder=2)
        value = arm[f"{moment}_percent"]
        axis.plot(value, y + offset, "o", color=colour, markerfacecolor=fill, markersize=6, zorder=3)


def similarity_durability(plt: Any, observations: list[dict[str, Any]], arms: list[dict[str, Any]]) -> Any:
    """Similarity of each subset to the task against the change in harmfulness, one panel per task.

    Each task has its own scale: tasks differ far more than the subsets of one task, which are what is compared.
    """
    tasks = list(dict.fromkeys(row["task"] for row in observations))
    subsets = list(dict.fromkeys(row["subset"] for row in observations))
    known = {(arm["task"], arm["subset"], arm["subset_size"]): arm for arm in arms}
    width = max(4.2, 3.2 * len(tasks))
    figure, axes = plt.subplots(1, len(tasks), figsize=(width, 3.6), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        rows = [row for row in observations if row["task"] == task]
        intervals = [known[task, row["subset"], row["subset_size"]]["delta_interval_points"] for row in rows]
        for row, (low, high) in zip(rows, intervals, strict=True):
            colour, marker, _ = style(row["subset"], subsets)
            axis.plot([row["similarity"]] * 2, [low, high], color=colour, linewidth=1, alpha=0.6)
            axis.plot(row["similarity"], row["delta_points"], marker, color=colour, markersize=7)
        if min(low for low, _ in intervals) <= 0:
            axis.axhline(0, color="0.7", linewidth=0.8, zorder=0)
        axis.set_title(task, fontsize=9, fontweight="bold")
        axis.set_xlabel("mean largest cosine to the task")
    axes[0][0].set_ylabel("change in harmfulness (points)\n95% interval; scales differ")
    _subset_legend(plt, figure, subsets)
    return figure


def _subset_legend(plt: Any, figure: Any, subsets: list[str]) -> None:
    """A legend of subsets below the panels, and room for it."""
    handles = []
    for subset in subsets:
        colour, marker, _ = style(subset, subsets)
        handles.append(plt.Line2D([], [], marker=marker, color=colour, linestyle="", label=subset.replace("_", " ")))
    columns = max(1, min(len(handles), int(figure.get_figwidth() // 1.7)))
    rows = -(-len(handles) // columns)
    figure.legend(handles=handles, loc="lower center", ncols=columns, frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, (0.12 + 0.18 * rows) / figure.get_figheight(), 1, 1))


def categories(plt: Any, arms: list[dict[str, Any]]) -> Any:
    """Harmfulness after fine-tuning per category and arm; the numbers stand in the cells."""
    names = sorted({name for arm in arms for name in arm["final_by_category_percent"]})
    height, width = 2.6 + 0.27 * len(names), 3.4 + 0.46 * len(arms)
    figure, axis = plt.subplots(figsize=(width, height))
    values = [
        [arm["final_by_category_percent"].get(name, {}).get("percent", float("nan")) for arm in arms] for name in names
    ]
    image = axis.imshow(values, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            if value == value:
                colour = "white" if value < 55 else "black"
                axis.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    labels = [f"{arm['task'].replace('_', ' ')}: {arm_label(arm)}" for arm in arms]
    axis.set_xticks(range(len(arms)), labels, rotation=55, ha="right", rotation_mode="anchor", fontsize=8)
    axis.set_yticks(range(len(names)), [name.replace("_", " ").replace(",", ", ") for name in names], fontsize=8)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    figure.colorbar(image, ax=axis, label="flagged (%)", pad=0.02)
    figure.tight_layout()
    return figure


def threshold_curve(plt: Any, arms: list[dict[str, Any]]) -> Any:
    """Harmfulness after fine-tuning against the moderation threshold: do the arms keep their order?"""
    tasks = list(dict.fromkeys(arm["task"] for arm in arms))
    subsets = list(dict.fromkeys(arm["subset"] for arm in arms))
    figure, axes = plt.subplots(1, len(tasks), figsize=(max(4.2, 3.0 * len(tasks)), 3.4), sharey=True, squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        for arm in (a for a in arms if a["task"] == task and a["threshold_curve"]):
            colour, marker, line = style(arm["subset"], subsets)
            x, y = zip(*arm["threshold_curve"], strict=True)
            axis.plot(x, y, color=colour, marker=marker, linestyle=line, markevery=3, markersize=4, linewidth=1.3)
        axis.axvline(0.5, color="0.8", linewidth=0.8, zorder=0)
        axis.set(xlim=(0, 1), ylim=(0, 100), xlabel="threshold on the largest probability")
        axis.set_title(task, fontsize=9, fontweight="bold")
    axes[0][0].set_ylabel("flagged after fine-tuning (%)")
    _subset_legend(plt, figure, subsets)
    return figure


def learning_curves(plt: Any, curves: list[dict[str, Any]]) -> Any:
    """Training loss against optimizer steps of alignment (left) and fine-tuning (right), seeds as thin lines."""
    subsets = list(dict.fromkeys(curve["subset"] for curve in curves))
    stages = [stage for stage in ("alignment", "fine-tuning") if any(c["stage"] == stage for c in curves)]
    figure, axes = plt.subplots(1, len(stages), figsize=(3.6 * len(stages) + 0.6, 3.4), squeeze=False)
    for axis, stage in zip(axes[0], stages, strict=True):
        for curve in (c for c in curves if c["stage"] == stage):
            colour, _, line = style(curve["subset"], subsets)
            axis.plot(curve["step"], curve["loss"], color=colour, linestyle=line, linewidth=0.8, alpha=0.7)
        axis.set(xlabel="optimizer step", yscale="log")
        axis.set_title(stage, fontsize=9, fontweight="bold")
    axes[0][0].set_ylabel("training loss (nats per token)")
    _subset_legend(plt, figure, subsets)
    return figure


def loss_curves(results: Results, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Training losses of the finished ``cells`` (as in `study.json`) and their alignments, as means of up to 120 parts.

    Of the first design alone.

    A cell that is not done has no curve: its losses may belong to other settings.
    """
    grid = results.grid
    first = grid.study.all_designs[0]
    paired = zip(grid.cells, cells, strict=True)
    done = [cell for cell, row in paired if row["status"] == "done" and cell.design == first]
    alignments = dict.fromkeys(cell.alignment for cell in done)
    jobs = [("alignment", a.subset, a.task, a.seed, grid.aligned_folder(a)) for a in alignments]
    jobs += [("fine-tuning", c.subset, c.task, c.seed, grid.cell_folder(c)) for c in done]
    curves = []
    for stage, subset, task, seed, folder in jobs:
        path = folder / "losses.jsonl"
        rows = [row for _, row in read_jsonl(path)] if results.done(path) else []
        losses = [row["loss"] for row in rows if row.get("loss") is not None]
        if not losses:
            continue
        width = -(-len(losses) // MAX_CURVE_POINTS)
        parts = [losses[i : i + width] for i in range(0, len(losses), width)]
        curves.append(
            {
                "stage": stage,
                "subset": subset,
                "task": task,
                "seed": seed,
                "step": [min((i + 1) * width, len(losses)) for i in range(len(parts))],
                "loss": [round(sum(part) / len(part), 5) for part in parts],
            }
        )
    return curves


def representation_map(plt: Any, data: dict[str, Any]) -> Any:
    """Two principal components of the representations: pool, selected rows and the task, one panel per task."""
    tasks = data["tasks"]
    figure, axes = plt.subplots(1, len(tasks), figsize=(max(4.2, 3.2 * len(tasks)), 3.6), sharey=True, squeeze=False)
    points = data["points"]
    for axis, task in zip(axes[0], tasks, strict=True):
        pool = [p for p in points if p["set"] == "pool"]
        anchors = [p for p in points if p["set"] == task]
        axis.plot([p["x"] for p in pool], [p["y"] for p in pool], ".", color="0.8", markersize=3, label="pool")
        for subset in ("high", "low"):
            colour, marker, _ = STYLES[subset]
            chosen = [p for p in pool if f"{task}:{subset}" in p["selected"]]
            xs, ys = [p["x"] for p in chosen], [p["y"] for p in chosen]
            axis.plot(xs, ys, marker, color=colour, markersize=3, alpha=0.6, linestyle="", label=f"{subset} similarity")
        axis.plot([p["x"] for p in anchors], [p["y"] for p in anchors], "kx", markersize=5, label="task")
        axis.set_title(task, fontsize=9, fontweight="bold")
        axis.set_xlabel(f"component 1 ({data['explained_percent'][0]:.0f}% of variance)")
    axes[0][0].set_ylabel(f"component 2 ({data['explained_percent'][1]:.0f}%)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    return figure
