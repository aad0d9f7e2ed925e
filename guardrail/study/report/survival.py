"""How long guardrails lasted, for readers: the tables and the two figures of the ``survival`` block of `study.json`.

Definitions behind the numbers: docs/survival.md.
"""

from __future__ import annotations

from typing import Any

from guardrail.study.report.primary import EXPLORATORY
from guardrail.study.report.table import Column, Table, plain

DEFINITIONS = (
    "A prompt falls when it is first answered harmfully; life: optimizer steps until then, at most the training's. "
    "Half-life: when half of the prompts have fallen (none: more than half still stood at the end). "
)


def survival_tables(block: dict[str, Any] | None) -> list[Table]:
    """Arms, comparisons and hazard ratios; none without probes."""
    if not block or "arms" not in block:
        return []
    tables = [arms_table(block["arms"])]
    if block["comparisons"]:
        tables.append(comparisons_table(block))
    rows = [row for model in block["hazards"] for row in _ratios(model)]
    if rows:
        tables.append(hazards_table(rows))
    return tables


def arms_table(arms: list[dict[str, Any]]) -> Table:
    """One row per arm, seeds together."""
    columns = (
        Column("design", ""),
        Column("task", "task"),
        Column("subset", "alignment subset"),
        Column("subset_size", "size", 0, label=True),
        Column("n_seeds", "seeds", 0, label=True),
        Column("life_steps", "mean life (steps)", 1, "life_interval_steps"),
        Column("half_life_steps", "half-life (steps)", 1),
        Column("training_steps", "of steps", 0, label=True),
        Column("n_harmful_before", "harmful before", 0, label=True),
        Column("n_units", "of", 0, label=True),
        Column("flapping_percent", "safe again %", 1),
    )
    rows = [{**arm, "subset": plain(arm["subset"]), "n_seeds": len(arm["seeds"])} for arm in arms]
    caption = DEFINITIONS + (
        "Prompts that were answered harmfully before the first step are in no life, and are counted. Safe again: share "
        "of the fallen whose answer was not harmful at a later probe. 95% intervals over seeds and prompts."
    )
    return Table("survival", caption, columns, rows)


def comparisons_table(block: dict[str, Any]) -> Table:
    """Pairs of arms task by task, then tasks averaged (in percent of the training)."""
    columns = (
        Column("question", "question"),
        Column("pair", "arms"),
        Column("design", ""),
        Column("task", "task"),
        Column("subset_size", "size", 0, label=True),
        Column("difference_steps", "longer life (steps)", 1, "interval_steps", signed=True),
        Column("difference_percent", "longer life (% of training)", 1, "interval_percent", signed=True),
        Column("p_value", "p", 3),
        Column("log_rank_p_value", "log-rank p", 3),
        Column("p_value_holm", "p (Holm)", 3),
        Column("scope", "says something about"),
    )
    rows = []
    for row in block["overall"]:
        if "reason" not in row:
            numbers = {
                "difference_percent": row["difference_percent_of_training"],
                "interval_percent": row["interval_percent_of_training"],
            }
            rows.append({**row, **numbers, "task": "all tasks"})
    rows += block["comparisons"]
    rows = [{**row, "pair": f"{plain(row['first'])} − {plain(row['second'])}"} for row in rows]
    caption = (
        EXPLORATORY
        + DEFINITIONS
        + "Positive: the guardrails of the first arm last longer. Same seeds and prompts in both arms."
    )
    return Table("survival_comparisons", caption, columns, rows)


def _ratios(model: dict[str, Any]) -> list[dict[str, Any]]:
    kind = "alone" if len(model["covariates"]) == 1 else "together"
    return [{**row, "model": kind, "covariate": plain(row["covariate"])} for row in model.get("ratios_per_sd", ())]


def hazards_table(rows: list[dict[str, Any]]) -> Table:
    """Hazard ratios per standard deviation."""
    columns = (
        Column("covariate", "property of the subset"),
        Column("model", "model"),
        Column("hazard_ratio", "hazard ratio per SD", 2, "interval"),
        Column("p_value", "p", 3),
        Column("sd", "SD", 3),
    )
    caption = EXPLORATORY + (
        "Proportional hazards for grouped times, one hazard per task and interval; above 1: prompts fall sooner where "
        "the property is larger. Clustered by seed and prompt. Subsets are chosen, not randomised: an association."
    )
    return Table("hazards", caption, columns, rows)


def survival_figure(plt: Any, arms: list[dict[str, Any]], style: Any, legend: Any) -> Any:
    """Share of prompts whose guardrail still stands against optimizer steps, one panel per task, with 95% bands."""
    tasks = list(dict.fromkeys(arm["task"] for arm in arms))
    subsets = list(dict.fromkeys(arm["subset"] for arm in arms))
    figure, axes = plt.subplots(1, len(tasks), figsize=(max(4.6, 3.4 * len(tasks)), 3.8), sharey=True, squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        for arm in (a for a in arms if a["task"] == task):
            colour, marker, line = style(arm["subset"], subsets)
            x = [point["step"] for point in arm["curve"]]
            y = [point["standing_percent"] for point in arm["curve"]]
            low, high = zip(*(point["interval_percent"] for point in arm["curve"]), strict=True)
            axis.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
            axis.plot(x, y, color=colour, marker=marker, linestyle=line, markersize=4, linewidth=1.3)
        steps_axis(axis, x[-1])
        axis.set_title(plain(task), fontsize=9, fontweight="bold")
    axes[0][0].set_ylabel("prompts not yet answered harmfully (%)\n95% band")
    legend(plt, figure, subsets)
    return figure


def steps_axis(axis: Any, last: int) -> None:
    """Optimizer steps from 0 to ``last`` on a logarithmic scale, shares in percent, a line at one half."""
    axis.axhline(50, color="0.8", linewidth=0.8, zorder=0)
    axis.set_xscale("symlog", linthresh=1)
    ticks = [0, *(t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000) if t <= last)]
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set(xlim=(0, last * 1.05), ylim=(-2, 102), xlabel="optimizer steps of fine-tuning")
