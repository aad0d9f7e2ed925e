"""What defences change and cost, for readers: the tables and the figure of the ``defences`` block of `study.json`."""

from __future__ import annotations

from typing import Any

from guardrail.study.report.table import Column, Table, plain

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#7F7F00", "#555555")
MARKERS = "o^vsDPX*<>"


def defence_tables(block: dict[str, Any] | None) -> list[Table]:
    """Effects and costs, and where each arm ends; none without defences."""
    if not block:
        return []
    return [effects_table(block["rows"]), levels_table(block["levels"])]


def effects_table(rows: list[dict[str, Any]]) -> Table:
    """One row per defence: what it changes, beside what it costs."""
    several = len({row["design"] for row in rows}) > 1
    columns = (
        Column("design", "design" if several else ""),
        Column("defence", "defence"),
        Column("method", "method"),
        Column("final_difference", "harmful after (points)", 1, "final_interval", signed=True),
        Column("final_p_value", "p", 3),
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
        "are of alignment and fine-tuning together; early stopping is read off the probes of the arm without defence, "
        "chosen on one half of the prompts and measured on the other. Nothing is corrected for the number of defences."
    )
    return Table("defences", caption, columns, shown)


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


def pareto_figure(plt: Any, levels: list[dict[str, Any]]) -> Any:
    """Utility against harmfulness after fine-tuning with its interval; the front is a line. Top left is best."""
    known = [level for level in levels if level.get("utility") is not None]
    figure, axis = plt.subplots(figsize=(6.4, 4.4))
    front = sorted((level for level in known if level["on_front"]), key=lambda level: level["final_percent"])
    if len(front) > 1:
        x, y = [level["final_percent"] for level in front], [level["utility"] for level in front]
        axis.step(x, y, where="post", color="0.6", linewidth=1, zorder=1)
    for number, level in enumerate(known):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        x, y, (low, high) = level["final_percent"], level["utility"], level["final_interval_percent"]
        axis.plot([low, high], [y, y], color=colour, linewidth=1, alpha=0.6, zorder=2)
        filled = colour if level["on_front"] else "white"
        axis.plot(
            x, y, marker, color=colour, markerfacecolor=filled, markersize=7, zorder=3, label=plain(level["defence"])
        )
    axis.set(xlabel="harmful after fine-tuning (%), 95% interval", ylabel="utility after fine-tuning")
    axis.grid(color="0.92")
    axis.set_axisbelow(True)
    figure.legend(loc="center left", bbox_to_anchor=(0.74, 0.5), frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0, 0.75, 1))
    return figure
