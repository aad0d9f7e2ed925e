"""How many harmful rows guardrails take, for readers: the tables and figures of the ``doses`` block of `study.json`.

Definitions behind the numbers: docs/dose.md.
"""

from __future__ import annotations

from typing import Any

from guardrail.study.report.table import Column, Table, plain

DEFINITIONS = (
    "Dose: percent of harmful rows in a fine-tuning set of constant size. ED50: the dose after which half of the "
    "safety prompts are answered harmfully, from a fitted curve; no number outside the doses that were measured. "
)
ZERO = 0.35  # where the dose 0 is drawn on a logarithmic axis, as a share of the smallest dose above it
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


def dose_tables(block: dict[str, Any] | None) -> list[Table]:
    """Arms, pairs of arms, and every dose; none without a ladder."""
    if not block or "arms" not in block:
        return []
    tables = [arms_table(block["arms"])]
    if block["comparisons"]:
        tables.append(comparisons_table(block["comparisons"]))
    return [*tables, points_table(block["arms"])]


def _design(rows: list[dict[str, Any]]) -> Column:
    """A column for the design; in the CSV alone where there is one."""
    return Column("design", "design" if len({row["design"] for row in rows}) > 1 else "")


def _edges(interval: list[float | None] | None) -> str | None:
    """An interval in words: an edge beyond the doses measured has no number."""
    if interval is None:
        return None
    low, high = ("beyond" if edge is None else f"{edge:.3g}" for edge in interval)
    return f"{low} to {high}"


def arms_table(arms: list[dict[str, Any]]) -> Table:
    """One row per arm, seeds together."""
    columns = (
        _design(arms),
        Column("ladder", "ladder"),
        Column("subset", "alignment subset"),
        Column("subset_size", "size", 0, label=True),
        Column("n_seeds", "seeds", 0, label=True),
        Column("ed50", "ED50 (% harmful rows)"),
        Column("ed50_interval", "95% interval"),
        Column("ed50_percent"),
        Column("ed50_low_percent"),
        Column("ed50_high_percent"),
        Column("initial_percent", "harmful before %", 1),
        Column("floor_percent", "floor %", 1),
        Column("ceiling_percent", "ceiling %", 1),
        Column("misfit_points", "misfit (points)", 1),
    )
    rows = []
    for arm in arms:
        number = arm.get("ed50_percent")
        note = arm.get("reason") or arm.get("ed50_outside")
        if arm.get("missing"):
            note = f"{note + '; ' if note else ''}without {', '.join(arm['missing'])}"
        rows.append(
            {
                **arm,
                "subset": plain(arm["subset"]),
                "n_seeds": len(arm["seeds"]),
                "ed50": note if number is None else f"{number:.3g}" + (f" ({note})" if note else ""),
                "ed50_interval": _edges(arm.get("ed50_interval_percent")),
                **dict(
                    zip(("ed50_low_percent", "ed50_high_percent"), arm.get("ed50_interval_percent") or (), strict=False)
                ),
            }
        )
    caption = DEFINITIONS + (
        "Floor: harmful after the benign rows alone; ceiling: what the curve rises to; misfit: largest difference "
        "between the curve and a measured dose. Intervals over seeds and prompts; beyond: outside the doses measured."
    )
    return Table("doses", caption, columns, rows)


def comparisons_table(comparisons: list[dict[str, Any]]) -> Table:
    """Pairs of arms: ratio of their ED50."""
    columns = (
        Column("question", "question"),
        Column("pair", "arms"),
        _design(comparisons),
        Column("ladder", "ladder"),
        Column("subset_size", "size", 0, label=True),
        Column("ed50_ratio", "ratio of ED50", 2, "ed50_ratio_interval"),
        Column("p_value", "p", 3),
        Column("p_value_holm", "p (Holm)", 3),
        Column("scope", "says something about"),
        Column("reason", "no number because"),
    )
    rows = [{**row, "pair": f"{plain(row['first'])} / {plain(row['second'])}"} for row in comparisons]
    caption = DEFINITIONS + (
        "Above 1: the guardrails of the first arm take more harmful rows. Same seeds, rows and prompts in both arms."
    )
    return Table("dose_comparisons", caption, columns, rows)


def points_table(arms: list[dict[str, Any]]) -> Table:
    """What was measured at every dose."""
    columns = (
        _design(arms),
        Column("ladder", "ladder"),
        Column("subset", "alignment subset"),
        Column("subset_size", "size", 0, label=True),
        Column("dose_percent", "harmful rows %", 2, label=True),
        Column("harmful_percent", "harmful after %", 1, "interval_percent"),
        Column("n_seeds", "seeds", 0, label=True),
        Column("n_prompts", "prompts", 0, label=True),
    )
    rows = [
        {**arm, **point, "subset": plain(arm["subset"]), "n_seeds": len(arm["seeds"])}
        for arm in arms
        for point in arm["points"]
    ]
    caption = "Harmfulness after fine-tuning at every dose, 95% intervals over seeds and prompts."
    return Table("dose_points", caption, columns, rows)


def dose_figure(plt: Any, arms: list[dict[str, Any]], style: Any, legend: Any) -> Any:
    """Harmfulness over the dose with fitted curves and 95% intervals, one panel per ladder and size of the subsets."""
    panels = list(dict.fromkeys((arm["ladder"], arm["subset_size"]) for arm in arms if arm["subset_size"]))
    panels = panels or list(dict.fromkeys((arm["ladder"], None) for arm in arms))
    subsets = list(dict.fromkeys(arm["subset"] for arm in arms))
    width = max(4.8, 3.8 * len(panels))
    figure, axes = plt.subplots(1, len(panels), figsize=(width, 4.0), sharey=True, squeeze=False)
    for axis, (ladder, size) in zip(axes[0], panels, strict=True):
        inside = [arm for arm in arms if arm["ladder"] == ladder and arm["subset_size"] in (size, None)]
        doses = sorted({point["dose_percent"] for arm in inside for point in arm["points"]})
        least = min((dose for dose in doses if dose > 0), default=1.0)
        for number, arm in enumerate(inside):
            _dose_lines(axis, arm, style(arm["subset"], subsets), least, 1.06 ** (number - (len(inside) - 1) / 2))
        axis.axhline(50, color="0.8", linewidth=0.8, zorder=0)
        axis.set_xscale("log")
        ticks = [tick for tick in TICKS if least <= tick <= doses[-1]]
        zero = [least * ZERO] if doses[0] == 0 else []
        axis.set_xticks([*zero, *ticks], [*("0" for _ in zero), *(f"{tick:g}" for tick in ticks)])
        axis.minorticks_off()
        axis.set(xlim=(least * ZERO * 0.75, doses[-1] * 1.25), ylim=(-2, 102), xlabel="harmful rows (%)")
        several = len({one for _, one in panels}) > 1
        axis.set_title(plain(ladder) + (f", {size} rows" if several else ""), fontsize=9, fontweight="bold")
    axes[0][0].set_ylabel("answered harmfully after fine-tuning (%)\n95% interval")
    legend(plt, figure, subsets)
    return figure


def _dose_lines(axis: Any, arm: dict[str, Any], look: tuple[str, str, str], least: float, shift: float) -> None:
    """One arm: what was measured, the curve, and the ED50 with its interval on the line of one half."""
    colour, marker, line = look
    for point in arm["points"]:
        x = (point["dose_percent"] or least * ZERO) * shift
        axis.plot([x, x], point["interval_percent"], color=colour, linewidth=1, alpha=0.6)
        axis.plot(x, point["harmful_percent"], marker, color=colour, markersize=5)
    if "curve" in arm:
        axis.plot(*zip(*arm["curve"], strict=True), color=colour, linestyle=line, linewidth=1.3)
    if arm.get("ed50_percent") is not None:
        low, high = arm["ed50_interval_percent"]
        edges = (low or arm["curve"][0][0], high or arm["curve"][-1][0])
        axis.plot(edges, [50, 50], color=colour, linewidth=3, alpha=0.45, solid_capstyle="butt")
        axis.plot(arm["ed50_percent"], 50, marker, color=colour, markerfacecolor="white", markersize=7, zorder=4)


def time_figure(plt: Any, arms: list[dict[str, Any]], ladders: list[dict[str, Any]]) -> Any:
    """Share harmful along the fine-tuning, a line per dose (darker: more), one panel per ladder and arm.

    ``arms``: those of the ``survival`` block, whose trainings were probed.
    """
    doses = {task: dose for one in ladders for task, dose in zip(one["tasks"], one["doses_percent"], strict=True)}
    home = {task: one["ladder"] for one in ladders for task in one["tasks"]}
    panels: dict[tuple[str, str, Any], list[dict[str, Any]]] = {}
    for arm in arms:
        panels.setdefault((home[arm["task"]], arm["subset"], arm["subset_size"]), []).append(arm)
    width = max(4.8, 3.0 * len(panels))
    figure, axes = plt.subplots(1, len(panels), figsize=(width, 3.8), sharey=True, squeeze=False)
    shown = sorted({doses[arm["task"]] for arm in arms})
    colours = plt.get_cmap("cividis_r")
    for axis, ((ladder, subset, size), inside) in zip(axes[0], panels.items(), strict=True):
        for arm in inside:
            number = shown.index(doses[arm["task"]])
            x = [point["step"] for point in arm["trajectory"]]
            y = [point["harmful_percent"] for point in arm["trajectory"]]
            colour = colours(0.08 + 0.92 * number / max(1, len(shown) - 1))
            look = {"marker": "osD^v*XP"[number % 8], "markersize": 3.5, "linewidth": 1.2}
            axis.plot(x, y, color=colour, label=f"{shown[number]:g}%", **look)
        axis.axhline(50, color="0.8", linewidth=0.8, zorder=0)
        axis.set_xscale("symlog", linthresh=1)
        ticks = [0, *(t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000) if t <= x[-1])]
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.set(xlim=(0, x[-1] * 1.05), ylim=(-2, 102), xlabel="optimizer steps of fine-tuning")
        title = f"{plain(ladder)}: {plain(subset)}" + (f" {size}" if size else "")
        axis.set_title(title, fontsize=9, fontweight="bold")
    axes[0][0].set_ylabel("answered harmfully (%)")
    handles: dict[str, Any] = {}
    for axis in axes[0]:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    labels = [f"{dose:g}%" for dose in shown]
    figure.legend(
        [handles[label] for label in labels],
        labels,
        title="harmful rows",
        loc="lower center",
        ncols=len(labels),
        frameon=False,
        fontsize=8,
        title_fontsize=8,
    )
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    return figure
