"""The tables of a study from its `study.json`: arms, comparisons, properties of subsets, regression."""

from __future__ import annotations

from typing import Any

from guardrail.study.report.tabular import Column, Table

OUTCOME_TITLES = {"change": "change", "final": "final", "initial": "before fine-tuning"}


def plain(name: str) -> str:
    """A subset's or property's name in words."""
    return name.replace("_", " ")


def summary_tables(result: dict[str, Any]) -> list[Table]:
    """All tables that the study's statistics allow; fewer when a part could not be computed."""
    statistics = result.get("statistics", {})
    tables = []
    if statistics.get("arms"):
        tables.append(arms_table(result))
    if statistics.get("comparisons"):
        tables += [overall_table(statistics), comparisons_table(statistics)]
    if result.get("subsets"):
        tables.append(subsets_table(result["subsets"]))
    if statistics.get("regression"):
        tables.append(regression_table(statistics["regression"]))
    return tables


def arms_table(result: dict[str, Any]) -> Table:
    """The paper's table: task x subset x size, before, after, change, utility; seeds together."""
    columns = (
        Column("task", "task"),
        Column("subset", "alignment subset"),
        Column("subset_size", "size", 0),
        Column("initial_percent", "initial HS %", 1, "initial_interval_percent"),
        Column("final_percent", "final HS %", 1, "final_interval_percent"),
        Column("delta_points", "change (points)", 1, "delta_interval_points", signed=True),
        Column("utility_final", "utility", 1),
        Column("n_seeds", "seeds", 0),
        Column("n_prompts", "prompts", 0),
    )
    base = result["base"]
    rows: list[dict[str, Any]] = [{"task": "(none)", "subset": "base model", "status": base["status"]}]
    if base["status"] == "done":
        rows[0] |= {
            "initial_percent": base["harmfulness_score_percent"],
            "initial_interval_percent": base["harmfulness_score_interval_percent"],
            "n_prompts": base["n"],
        }
    for arm in result["statistics"]["arms"]:
        row = {**arm, "subset": plain(arm["subset"])}
        if arm["n_failed"] and arm["status"] == "done":
            row["subset"] += f" ({arm['n_failed']} of {arm['n_failed'] + arm['n_seeds']} seeds failed)"
        rows.append(row)
    metrics = sorted({cell["utility"]["metric"] for cell in result["cells"] if cell["status"] == "done"})
    caption = (
        "Harmfulness score (percent of completions flagged) before and after fine-tuning, 95% intervals over seeds and "
        f"prompts; utility: {', '.join(metrics) or 'not measured'}."
    )
    return Table("arms", caption, columns, rows)


COMPARISON = (
    Column("question", "question"),
    Column("arms", "arms"),
    Column("subset_size", "size", 0),
    Column("outcome", "outcome"),
    Column("difference_points", "difference (points)", 1, "interval_points", signed=True),
    Column("p_value", "p", 3),
)
COUNTS = (
    Column("minimum_detectable_points", "detectable", 1),
    Column("n_seeds", "seeds", 0),
    Column("n_prompts", "prompts", 0),
)


def _comparison_rows(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            **entry,
            "arms": f"{plain(entry['first'])} − {plain(entry['second'])}",
            "outcome": OUTCOME_TITLES[entry["outcome"]],
        }
        for entry in entries
        if "difference_points" in entry
    ]


def overall_table(statistics: dict[str, Any]) -> Table:
    """High against low and the controls, tasks averaged."""
    caption = (
        "Paired differences over the same seeds and prompts, tasks averaged, in points of harmfulness; positive: the "
        "first arm is more harmful. p: two-sided, not corrected over questions; detectable: true difference found with "
        "80% power; p (pairs): signs flipped per task and seed."
    )
    columns = (*COMPARISON, Column("p_value_task_seed_pairs", "p (pairs)", 3), *COUNTS)
    return Table("overall", caption, columns, _comparison_rows(statistics["overall"]))


def comparisons_table(statistics: dict[str, Any]) -> Table:
    """The same task by task, corrected over tasks and sizes."""
    corrected = (Column("p_value_holm", "p (Holm)", 3), Column("p_value_bh", "q (BH)", 3))
    caption = (
        "The same for each task; Holm and Benjamini-Hochberg over the tasks and sizes of one question and outcome."
    )
    columns = (Column("task", "task"), *COMPARISON, *corrected, *COUNTS)
    return Table("comparisons", caption, columns, _comparison_rows(statistics["comparisons"]))


def subsets_table(subsets: list[dict[str, Any]]) -> Table:
    """What each subset is made of."""
    columns = (
        Column("task", "task"),
        Column("subset", "alignment subset"),
        Column("n", "rows", 0),
        Column("similarity", "similarity", 3),
        Column("diversity", "Vendi score", 1),
        Column("mean_pairwise_cosine", "pairwise cosine", 3),
        Column("response_chars", "length (characters)", 0),
        Column("list_share_percent", "lists %", 1),
        Column("duplicate_rows", "duplicates", 0),
    )
    caption = (
        "Properties of the alignment subsets: mean largest cosine to the task's rows, diversity, response length, "
        "share of list-formatted responses, rows that repeat an earlier one."
    )
    return Table("subsets", caption, columns, [{**row, "subset": plain(row["subset"])} for row in subsets])


def regression_table(regression: dict[str, Any]) -> Table:
    """Similarity and its rivals side by side: each alone, then together."""
    columns = (
        Column("outcome", "outcome"),
        Column("predictor", "predictor"),
        Column("alone", "alone (points per SD)", 1, "alone_interval", signed=True),
        Column("alone_p", "p", 3),
        Column("together", "together (points per SD)", 1, "together_interval", signed=True),
        Column("together_p", "p (together)", 3),
        Column("inflation", "variance inflation", 1),
        Column("n", "subsets", 0),
    )
    rows, reasons = [], []
    for outcome, models in regression.items():
        if "reason" in models["together"]:
            reasons.append(models["together"]["reason"])
        joint = {row["predictor"]: row for row in models["together"].get("coefficients", [])}
        for row in models["alone"]:
            line = {"outcome": {"delta_points": "change", "final_percent": "final"}[outcome]}
            line |= {"predictor": plain(row["predictor"])}
            if "reason" in row:
                line["predictor"] += f" ({row['reason']})"
            else:
                line |= {"alone": row["points_per_sd"], "alone_interval": row["interval"], "alone_p": row["p_value"]}
                line |= {"n": row["n"]}
            other = joint.get(row["predictor"])
            if other:
                line |= {"together": other["points_per_sd"], "together_interval": other["interval"]}
                line |= {"together_p": other["p_value"], "inflation": other["variance_inflation"]}
            rows.append(line)
    caption = (
        "Harmfulness after fine-tuning and its change, regressed on standardised properties of the subsets with an "
        "intercept per task (HC3 intervals). Variance inflation above about 5: these subsets cannot tell rivals apart."
    )
    if reasons:
        caption += f" No model of all predictors together: {reasons[0]}."
    return Table("regression", caption, columns, rows)
