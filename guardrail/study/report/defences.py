"""What defences change and cost, for readers: the tables and the figure of the ``defences`` block of `study.json`."""

from __future__ import annotations

import itertools
from typing import Any

from guardrail.study.defence_settings import NONE
from guardrail.study.report.survival import steps_axis
from guardrail.study.report.table import Column, Table, plain

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#7F7F00", "#555555")
MARKERS = "o^vsDPX*<>"


def defence_tables(block: dict[str, Any] | None) -> list[Table]:
    """Effects and costs, which safety rows, and where each arm ends; none without defences."""
    if not block:
        return []
    compared = [choices_table(block["choices"])] if block.get("choices") else []
    return [effects_table(block["rows"]), *compared, levels_table(block["levels"])]


def effects_table(rows: list[dict[str, Any]]) -> Table:
    """One row per defence: what it changes, beside what it costs."""
    several = len({row["design"] for row in rows}) > 1
    columns = (
        Column("design", "design" if several else ""),
        Column("defence", "defence"),
        Column("method", "method"),
        Column("final_difference", "harmful after (points)", 1, "final_interval", signed=True),
        Column("final_p_value", "p", 3),
        Column("final_p_value_holm", "p (Holm)", 3),
        Column("life_difference", "mean life gained (% of training)", 1, "life_interval", signed=True),
        Column("initial_difference", "harmful before (points)", 1, signed=True),
        Column("benign_refused_difference", "harmless refused (points)", 1, "benign_refused_interval", signed=True),
        Column("utility_difference", "utility", 1, "utility_interval", signed=True),
        Column("time_ratio", "time ×", 2),
        Column("memory_ratio", "memory ×", 2),
        Column("rows_ratio", "rows ×", 2),
        Column("steps_ratio", "steps ×", 2),
        Column("judges", "judges"),
        Column("n_seeds", "seeds", 0, label=True),
    )
    shown = [{**row, "defence": plain(row["defence"]), "judges": _judges(row)} for row in rows]
    shown.sort(key=lambda row: (row["design"], row.get("final_difference", float("inf"))))
    caption = (
        "Each defence minus the same arms without it, same seeds and prompts, arms averaged; best first. Negative "
        "harmfulness and positive life are good. 95% intervals over seeds and prompts (utility: over seeds). Ratios "
        "are of alignment and fine-tuning together; time holds that of scoring rows for a filter. Early stopping is "
        "read off the probes of the arm without defence, chosen on one half of the prompts and measured on the other. "
        "p (Holm): corrected for the number of defences; intervals are not."
    )
    return Table("defences", caption, columns, shown)


def choices_table(rows: list[dict[str, Any]]) -> Table:
    """Pairs of defences that differ in their safety rows alone."""
    several = len({row["design"] for row in rows}) > 1
    columns = (
        Column("design", "design" if several else ""),
        Column("pair", "safety rows"),
        Column("final_difference", "harmful after (points)", 1, "final_interval", signed=True),
        Column("final_p_value", "p", 3),
        Column("final_p_value_holm", "p (Holm)", 3),
        Column("life_difference", "longer life (% of training)", 1, "life_interval", signed=True),
        Column("life_p_value_holm", "p of life (Holm)", 3),
        Column("utility_difference", "utility", 1, "utility_interval", signed=True),
        Column("judges", "judges"),
        Column("n_seeds", "seeds", 0, label=True),
    )
    shown = [{**row, "pair": f"{plain(row['first'])} − {plain(row['second'])}", "judges": _judges(row)} for row in rows]
    caption = (
        "Which safety rows to mix in, at the same number of them: the first defence minus the second, same seeds and "
        "prompts. Negative harmfulness and positive life speak for the first. 95% intervals over seeds and prompts."
    )
    return Table("defence_choices", caption, columns, shown)


def _judges(row: dict[str, Any]) -> str | None:
    if "sign_by_judge" not in row:
        return row.get("reason")
    return "sign differs" if row["depends_on_judge"] else "agree"


def levels_table(levels: list[dict[str, Any]]) -> Table:
    """Where the arms end: harmfulness and utility."""
    several = len({row["design"] for row in levels}) > 1
    columns = (
        Column("design", "design" if several else ""),
        Column("defence", "defence"),
        Column("final_percent", "harmful after %", 1, "final_interval_percent"),
        Column("utility", "utility after", 1),
        Column("front", "not dominated"),
        Column("n_seeds", "seeds", 0, label=True),
    )
    rows = [{**row, "defence": plain(row["defence"]), "front": "yes" if row["on_front"] else None} for row in levels]
    caption = (
        "Not dominated: no other arm is less harmful and at least as useful, or more useful and at most as harmful. "
        "By the means alone: arms whose intervals overlap may change places with other seeds."
    )
    return Table("defence_levels", caption, columns, rows)


def look(number: int, name: str) -> tuple[str, str]:
    """Colour and marker of the ``number``-th arm; the one without defence is black and square, and alone so."""
    if name == NONE:
        return "#000000", "s"
    return COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]


def pareto_figure(plt: Any, levels: list[dict[str, Any]]) -> Any:
    """Utility against harmfulness after fine-tuning with its interval; the front is a line. Top left is best."""
    known = [level for level in levels if level.get("utility") is not None]
    figure, axis = plt.subplots(figsize=(7.0, 4.4))
    front = sorted((level for level in known if level["on_front"]), key=lambda level: level["final_percent"])
    if len(front) > 1:
        x, y = [level["final_percent"] for level in front], [level["utility"] for level in front]
        axis.step(x, y, where="post", color="0.6", linewidth=1, zorder=1)
    for number, level in enumerate(known):
        colour, marker = look(number, level["defence"])
        x, y, (low, high) = level["final_percent"], level["utility"], level["final_interval_percent"]
        axis.plot([low, high], [y, y], color=colour, linewidth=1, alpha=0.6, zorder=2)
        filled = colour if level["on_front"] else "white"
        axis.plot(
            x, y, marker, color=colour, markerfacecolor=filled, markersize=7, zorder=3, label=plain(level["defence"])
        )
    axis.set(xlabel="harmful after fine-tuning (%), 95% interval", ylabel="utility after fine-tuning")
    axis.grid(color="0.92")
    axis.set_axisbelow(True)
    figure.legend(loc="center left", bbox_to_anchor=(0.76, 0.5), frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0, 0.77, 1))
    return figure


def with_defences(arms: list[dict[str, Any]], rows: list[dict[str, Any]], design: str) -> list[dict[str, Any]]:
    """The probed ``arms`` of ``design`` without defence, and with each whose probes show it, as ``defence`` of each.

    A defence that changes only what is saved has no life in its row, and is in no probe.
    """
    names = {design: NONE}
    for row in rows:
        if row["design"] == design and "life_difference" in row:
            names[f"{design} with {row['defence']}"] = row["defence"]
    return [{**arm, "defence": names[arm["design"]]} for arm in arms if arm["design"] in names]


def survival_by_defence(plt: Any, arms: list[dict[str, Any]]) -> Any:
    """Share of prompts whose guardrail still stands, a line per defence, a panel per task and subset.

    ``arms``: those of the ``survival`` block with ``defence`` beside them, the plain one first. The band is that of the
    arm without defence; those of a dozen defences would hide one another (their intervals are in the table).
    """
    panels = list(dict.fromkeys((arm["task"], arm["subset"], arm["subset_size"]) for arm in arms))
    names = list(dict.fromkeys(arm["defence"] for arm in arms))
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(2.0 + 3.6 * columns, 0.8 + 3.2 * lines), sharey=True, squeeze=False
    )
    for axis, place in itertools.zip_longest(axes.flat, panels):
        if place is None:
            axis.set_visible(False)
            continue
        for arm in (a for a in arms if (a["task"], a["subset"], a["subset_size"]) == place):
            colour, marker = look(names.index(arm["defence"]), arm["defence"])
            x = [point["step"] for point in arm["curve"]]
            if arm["defence"] == NONE:
                low, high = zip(*(point["interval_percent"] for point in arm["curve"]), strict=True)
                axis.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
            y = [point["standing_percent"] for point in arm["curve"]]
            axis.plot(x, y, color=colour, marker=marker, markersize=4, linewidth=2 if arm["defence"] == NONE else 1.1)
            steps_axis(axis, x[-1])
        axis.set_title(" ".join(plain(str(part)) for part in place if part), fontsize=9, fontweight="bold")
    for row in axes:
        row[0].set_ylabel("prompts not yet answered harmfully (%)")
    handles = []
    for number, name in enumerate(names):
        colour, marker = look(number, name)
        handles.append(plt.Line2D([], [], marker=marker, color=colour, label=plain(name)))
    right = 1 - 1.7 / figure.get_figwidth()
    figure.legend(handles=handles, loc="center left", bbox_to_anchor=(right, 0.5), frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0, right, 1))
    return figure
