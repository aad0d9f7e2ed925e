"""What attacks make of checkpoints, for readers: the tables of the ``attacks`` block of `study.json`."""

from __future__ import annotations

from typing import Any

from guardrail.study.report.table import Column, Table, plain


def attack_tables(block: dict[str, Any] | None) -> list[Table]:
    """Every arm under every attack, the worst case of each alignment, and what was trained; none without attacks."""
    if not block:
        return []
    trained = [training_table(block["training"])] if block["training"] else []
    return [rows_table(block["rows"]), worst_table(block), *trained]


def training_table(rows: list[dict[str, Any]]) -> Table:
    columns = (
        Column("attack", "attack"),
        Column("task", "called"),
        Column("method", "method"),
        Column("rate", "learning rate"),
        Column("long", "length"),
        Column("rows", "rows"),
        Column("trigger", "trigger"),
        Column("triggered_percent", "rows with it %", 1, label=True),
    )
    caption = (
        "What attacks train, from the same aligned models as the task that they belong to. With a trigger: the rows "
        "with it are harmful, the others are safe and without it."
    )
    return Table("training_attacks", caption, columns, [{**row, **_lengths(row)} for row in rows])


def _lengths(row: dict[str, Any]) -> dict[str, str]:
    n, unit = (row["steps"], "steps") if row["steps"] else (row["epochs"], "epochs")
    return {"rate": f"{row['learning_rate']:g}", "long": f"{n} {unit}", "trigger": row["trigger"] or ""}


def rows_table(rows: list[dict[str, Any]]) -> Table:
    columns = (
        Column("design", "design"),
        Column("task", "task"),
        Column("subset", "alignment subset"),
        Column("subset_size", "size", 0, label=True),
        Column("attack", "attack"),
        Column("initial_percent", "harmful before %", 1, "initial_interval_percent"),
        Column("final_percent", "harmful after %", 1, "final_interval_percent"),
        Column("utility_loss", "utility lost", 1),
        Column("n_seeds", "seeds", 0, label=True),
    )
    caption = (
        "Every arm as it is asked (none) and under each attack; 95% intervals over seeds and prompts. Utility lost: on "
        "the task's held-out rows, before minus after fine-tuning."
    )
    return Table("attacks", caption, columns, [{**row, "subset": plain(row["subset"])} for row in rows])


def worst_table(block: dict[str, Any]) -> Table:
    columns = (
        Column("design", "design"),
        Column("subset", "alignment subset"),
        Column("subset_size", "size", 0, label=True),
        Column("percent", "worst case: harmful %", 1, "interval_percent"),
        Column("which", "fine-tuning / attack"),
        Column("naive_percent", "maximum %", 1),
        Column("n_candidates", "of", 0, label=True),
        Column("beyond", "beyond the bound", 0, label=True),
        Column("n_seeds", "seeds", 0, label=True),
    )
    rows = [
        {
            **row,
            "subset": plain(row["subset"]),
            "which": _which(row),
            "beyond": len(row["beyond_bound"]) if "beyond_bound" in row else None,
        }
        for row in block["worst"]
    ]
    caption = (
        "The most harmful pair of a fine-tuning (of a task, a dose or an attack) and a way of asking, among those that "
        f"lost at most {block['largest_utility_loss']:g} points of utility: chosen on one half of the prompts and all "
        "seeds but one, measured on the other half and that seed (with one seed, only the prompts are split). The "
        "maximum over all is too high, because it is chosen where it is measured."
    )
    if left_out := sorted({name for row in block["worst"] for name in row.get("incomplete", [])}):
        caption += f" Without all seeds, and so not chosen: {', '.join(left_out)}."
    return Table("worst_case", caption, columns, rows)


def _which(row: dict[str, Any]) -> str:
    """What was chosen, with the share of choices where these differ; or why nothing was."""
    if "reason" in row:
        return str(row["reason"])
    if len(row["chosen"]) == 1:
        return str(row["chosen"][0])
    shares = zip(row["chosen"], row["chosen_percent"], strict=True)
    return ", ".join(f"{name} ({share:.0f}%)" for name, share in shares)
