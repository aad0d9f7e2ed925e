"""What attacks make of checkpoints, for readers: the tables of the ``attacks`` block of `study.json`."""

from __future__ import annotations

from typing import Any

from guardrail.study.report.table import Column, Table, plain


def attack_tables(block: dict[str, Any] | None) -> list[Table]:
    """Every arm under every attack, and the worst case of each alignment; none without attacks."""
    if not block:
        return []
    return [rows_table(block["rows"]), worst_table(block)]


def rows_table(rows: list[dict[str, Any]]) -> Table:
    columns = (
        Column("design", "design"),
        Column("task", "task"),
        Column("subset", "alignment subset"),
        Column("subset_size", "size", 0, label=True),
        Column("attack", "attack"),
        Column("initial_percent", "harmful before %", 1, "initial_interval_percent"),
        Column("final_percent", "harmful after %", 1, "final_interval_percent"),
        Column("n_seeds", "seeds", 0, label=True),
    )
    caption = "Every arm as it is asked (none) and under each attack; 95% intervals over seeds and prompts."
    return Table("attacks", caption, columns, [{**row, "subset": plain(row["subset"])} for row in rows])


def worst_table(block: dict[str, Any]) -> Table:
    columns = (
        Column("design", "design"),
        Column("subset", "alignment subset"),
        Column("subset_size", "size", 0, label=True),
        Column("percent", "worst case: harmful %", 1, "interval_percent"),
        Column("which", "task / attack"),
        Column("naive_percent", "maximum %", 1),
        Column("n_candidates", "of", 0, label=True),
    )
    rows = [
        {**row, "subset": plain(row["subset"]), "which": " or ".join(row.get("chosen", [row.get("reason", "")]))}
        for row in block["worst"]
    ]
    caption = (
        "The most harmful pair of a fine-tuning task and an attack, among tasks that lost at most "
        f"{block['largest_utility_loss']:g} points of utility: chosen on one half of the prompts, measured on the "
        "other. The maximum over all prompts is too high, because it is chosen where it is measured."
    )
    return Table("worst_case", caption, columns, rows)
