"""The tables of a study, made from `study.json` alone: `study_tables` is the list of them.

Those of probed trainings: `guardrail.study.report.survival`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from guardrail.study.report.primary import EXPLORATORY, noise_tables, primary_table, sorted_comparisons
from guardrail.study.report.table import Column, Table, plain, without_numbers

MEASURE_TITLES = {"change": "change", "final": "final", "initial": "before fine-tuning"}


def study_tables(result: dict[str, Any]) -> list[Table]:
    """All tables that the study's results allow; fewer when a part could not be computed."""
    statistics, primary = result.get("statistics", {}), result.get("primary")
    of_all = [harmfulness_table(result)]
    of_first = [headline_table(result)]
    if statistics.get("arms"):
        of_all.append(arms_table(result))
    if statistics.get("comparisons"):
        of_all += [overall_table(statistics, primary), comparisons_table(statistics, primary)]
    if result.get("subsets"):
        of_first.append(subsets_table(result["subsets"]))
    if statistics.get("regression"):
        of_first.append(regression_table(statistics["regression"]))
    designs = result["designs"]
    tables = [with_designs(table, designs) for table in of_all]
    if result.get("noise"):
        tables += noise_tables(result["noise"])
    if (declared := primary_table(primary)) is not None:
        tables.insert(0, declared)
    tables += [replace(table, caption=f"{table.caption} {design_note(designs[:1])}") for table in of_first]
    if statistics.get("equivalence"):
        tables += [designs_table(statistics["equivalence"]), equivalence_table(statistics["equivalence"])]
    return tables


def design_note(designs: list[str]) -> str:
    """The sentence of a caption that says under which designs (docs/designs.md) its numbers were made."""
    return f"Design{'s' if len(designs) > 1 else ''}: {', '.join(designs)}."


def with_designs(table: Table, designs: list[str]) -> Table:
    """``table``, whose rows name their design, with a column for it (in the CSV alone where there is one design)."""
    column = Column("design", "design" if len(designs) > 1 else "")
    return replace(table, columns=(column, *table.columns), caption=f"{table.caption} {design_note(designs)}")


def designs_table(equivalence: dict[str, Any]) -> Table:
    """May a design stand in for the reference?"""
    columns = (
        Column("design", "design"),
        Column("verdict", "stands in"),
        Column("n_equivalent", "equivalent", 0),
        Column("n_different", "different", 0),
        Column("n_inconclusive", "inconclusive", 0),
        Column("n_tests", "tests", 0),
    )
    margins = equivalence["margins"]
    caption = (
        f"May a design stand in for {equivalence['reference']}? Only if every test of the next table is equivalent "
        f"within {margins['harmfulness_points']:g} points of harmfulness and {margins['utility_points']:g} of utility, "
        "margins set before the run; rules: docs/designs.md."
    )
    rows = [{**row, "verdict": "yes" if row["stands_in"] else "not shown"} for row in equivalence["designs"]]
    return Table("designs", caption, columns, rows)


def equivalence_table(equivalence: dict[str, Any]) -> Table:
    """Every equivalence test of designs."""
    columns = (
        Column("design", "design"),
        Column("scope", "scope"),
        Column("task", "task"),
        Column("subset", "alignment subset"),
        Column("subset_size", "size", 0, label=True),
        Column("outcome", "outcome"),
        Column("difference_points", "difference (points)", 1, "interval_90_points", signed=True),
        Column("margin_points", "margin", 1, label=True),
        Column("p_value_equivalence", "p (equivalence)", 3),
        Column("verdict", "verdict"),
        Column("n_seeds", "seeds", 0),
        Column("n_prompts", "prompts", 0),
    )
    titles = {**MEASURE_TITLES, "utility": "utility after"}
    rows = [
        {**row, "outcome": titles[row["outcome"]], "subset": plain(row["subset"] or "") or None}
        for row in equivalence["tests"]
    ]
    caption = (
        f"Each design minus {equivalence['reference']}, paired over seeds and prompts, with 90% intervals; p: the "
        "larger of two one-sided tests; equivalent: the whole interval lies within the margin; different: zero lies "
        "outside the 95% interval."
    )
    return Table("equivalence", caption, columns, rows)


def headline_table(result: dict[str, Any]) -> Table:
    """The differences behind the headline."""
    columns = (
        Column("what", "high minus low similarity"),
        Column("difference_points", "difference (points)", 1, "interval_points", signed=True),
        Column("p_value", "p", 3),
        Column("verdict", "note"),
    )
    rows = [
        {**fact, "verdict": ": ".join(filter(None, (fact["control"], fact["note"]))) or None}
        for fact in result.get("headline", {}).get("facts", ())
    ]
    caption = EXPLORATORY + (
        "Positive: more after high-similarity alignment. Tasks averaged where none is named; 95% intervals; p: "
        "two-sided. Rules and controls: docs/headlines.md."
    )
    return Table("headline", caption, columns, rows)


def harmfulness_table(result: dict[str, Any]) -> Table:
    """Every checkpoint: the base model, then one row per cell (task x subset x size x seed)."""
    columns = (
        Column("task", "task"),
        Column("subset", "alignment subset"),
        Column("subset_size", "size", 0, label=True),
        Column("seed", "seed", 0, label=True),
        Column("status"),
        Column("reason"),
        Column("initial_percent", "initial HS %", 1, "initial_interval", edges="initial_interval_{edge}_percent"),
        Column("final_percent", "final HS %", 1, "final_interval", edges="final_interval_{edge}_percent"),
        Column("delta_points", "change (points)", 1, signed=True),
        Column("initial_refusal_percent", "initial refusals %", 1),
        Column("benign_refusal_percent", "benign refused %", 1),
        Column("utility_metric"),
        Column("utility_initial", "utility before", 1),
        Column("utility_final", "utility after", 1),
        Column("n", "n", 0),
    )
    rows = []
    base = {"task": "(none)", "subset": "base model", **result["base"]}
    for cell in (base, *result["cells"]):
        keys = ("design", "task", "subset", "subset_size", "seed", "status")
        row: dict[str, Any] = {key: cell.get(key) for key in keys}
        if without_numbers(cell):
            row["reason"] = cell["reason"]
        else:
            initial = cell.get("initial", cell)
            row |= {key: initial.get(key) for key in ("n", "benign_refusal_percent")}
            row["initial_refusal_percent"] = initial["refusal_percent"]
            for moment, rate in (("initial", initial), ("final", cell.get("final"))):
                if rate is not None:
                    row[f"{moment}_percent"] = rate["harmfulness_score_percent"]
                    row[f"{moment}_interval"] = rate["harmfulness_score_interval_percent"]
            if "final" in cell:
                row["delta_points"] = cell["delta_points"]
                row |= {f"utility_{key}": cell["utility"][key] for key in ("metric", "initial", "final")}
        rows.append(row)
    caption = "Every checkpoint; HS: share of completions flagged harmful, 95% intervals over prompts."
    return Table("harmfulness", caption, columns, rows)


def arms_table(result: dict[str, Any]) -> Table:
    """The paper's table: task x subset x size, before, after, change, utility; seeds together."""
    columns = (
        Column("task", "task"),
        Column("subset", "alignment subset"),
        Column("subset_size", "size", 0, label=True),
        Column("initial_percent", "initial HS %", 1, "initial_interval_percent"),
        Column("final_percent", "final HS %", 1, "final_interval_percent"),
        Column("delta_points", "change (points)", 1, "delta_interval_points", signed=True),
        Column("utility_final", "utility", 1),
        Column("n_seeds", "seeds", 0),
        Column("n_prompts", "prompts", 0),
    )
    base = result["base"]
    rows: list[dict[str, Any]] = [{"task": "(none)", "subset": "base model", "status": base["status"]}]
    if not without_numbers(base):
        rows[0] |= {
            "initial_percent": base["harmfulness_score_percent"],
            "initial_interval_percent": base["harmfulness_score_interval_percent"],
            "n_prompts": base["n"],
        }
    for arm in result["statistics"]["arms"]:
        row = {**arm, "subset": plain(arm["subset"])}
        if arm["n_failed"] and arm["status"] == "done":
            words = ", ".join(f"{n} {status}" for status, n in arm["without_numbers"].items())
            total = arm["n_failed"] + arm["n_seeds"]
            row["subset"] += f" ({words.replace(' ', f' of {total} seeds ', 1)})"
        rows.append(row)
    metrics = sorted({cell["utility"]["metric"] for cell in result["cells"] if cell["status"] == "done"})
    caption = (
        "Harmfulness score (HS, percent of completions flagged) before and after fine-tuning, 95% intervals over seeds "
        f"and prompts; utility: {', '.join(metrics) or 'not measured'}."
    )
    return Table("arms", caption, columns, rows)


COMPARISON = (
    Column("question", "question"),
    Column("arms", "arms"),
    Column("subset_size", "size", 0, label=True),
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
            "outcome": MEASURE_TITLES[entry["outcome"]],
        }
        for entry in entries
        if "difference_points" in entry
    ]


def overall_table(statistics: dict[str, Any], primary: dict[str, Any] | None = None) -> Table:
    """High against low and the controls, tasks averaged."""
    caption = EXPLORATORY + (
        "Paired differences over the same seeds and prompts, tasks averaged, in points of harmfulness; positive: the "
        "first arm is more harmful. p: two-sided, not corrected over questions; detectable: true difference found with "
        "80% power; seeds needed: to find the smallest difference that matters; p (pairs): signs flipped per task and "
        "seed."
    )
    columns = (
        *(*COMPARISON, Column("p_value_task_seed_pairs", "p (pairs)", 3)),
        *(*COUNTS, Column("seeds_needed", "seeds needed", 0)),
    )
    return Table("overall", caption, columns, _comparison_rows(sorted_comparisons(statistics["overall"], primary)))


def comparisons_table(statistics: dict[str, Any], primary: dict[str, Any] | None = None) -> Table:
    """The same task by task, corrected over tasks and sizes."""
    corrected = (Column("p_value_holm", "p (Holm)", 3), Column("p_value_bh", "q (BH)", 3))
    caption = EXPLORATORY + (
        "The same for each task; Holm and Benjamini-Hochberg over the tasks and sizes of one question and outcome."
    )
    columns = (Column("task", "task"), *COMPARISON, *corrected, *COUNTS)
    rows = _comparison_rows(sorted_comparisons(statistics["comparisons"], primary))
    return Table("comparisons", caption, columns, rows)


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
    for measure, models in regression.items():
        if "reason" in models["together"]:
            reasons.append(models["together"]["reason"])
        joint = {row["predictor"]: row for row in models["together"].get("coefficients", [])}
        for row in models["alone"]:
            line = {"outcome": {"delta_points": "change", "final_percent": "final"}[measure]}
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
    caption = EXPLORATORY + (
        "Harmfulness after fine-tuning and its change, regressed on standardised properties of the subsets with an "
        "intercept per task (HC3 intervals). Variance inflation above about 5: these subsets cannot tell rivals apart."
    )
    if reasons:
        caption += f" No model of all predictors together: {reasons[0]}."
    return Table("regression", caption, columns, rows)
