"""The primary comparison and the noise of a study for readers: their tables, and the order of what is exploratory."""

from __future__ import annotations

from typing import Any

from guardrail.study.declaration import OUTCOMES
from guardrail.study.report.table import Column, Table, plain

EXPLORATORY = "Exploratory. "
NOISE_OUTCOMES = {
    "change": "rise of harmfulness",
    "harmful_after": "harmfulness after",
    "life_percent": "mean life",
}
NOISES = ("sd_seeds", "sd_prompts", "sd_machine")
RANK = {"change": 0, "final": 1, "initial": 2}


def primary_table(block: dict[str, Any] | None) -> Table | None:
    """One row: what was declared, and what came out; None where nothing is declared."""
    if not block or block["digest"] is None:
        return None
    declared = block["declared"]
    first, second = map(plain, declared["comparison"])
    columns = (
        Column("outcome", "outcome"),
        Column("arms", "arms"),
        Column("tasks", "tasks"),
        Column("difference", "difference", 1, "interval", signed=True),
        Column("unit"),
        Column("p_value", "p", 3),
        Column("smallest_difference", "that matters", 1, label=True),
        Column("alpha", "alpha", 2, label=True),
        Column("decision", "decision"),
        Column("n_seeds", "seeds", 0),
        Column("n_prompts", "prompts", 0),
        Column("digest"),
    )
    row = {
        **declared,
        **block,
        "outcome": f"{OUTCOMES[declared['outcome']][0]} ({block['unit']})",
        "arms": f"{first} − {second}",
        "tasks": ", ".join(declared["tasks"]),
        "decision": block.get("decision") or block["reason"],
    }
    caption = f"The primary comparison, digest {block['digest']}. {block['standing']['note']} Rules: docs/primary.md."
    return Table("primary", caption, columns, [row])


def noise_tables(rows: list[dict[str, Any]]) -> list[Table]:
    """What one run's value varies by with other seeds, other prompts, another machine: arms pooled, and arm by arm."""
    arm = (Column("subset", "alignment subset"), Column("subset_size", "size", 0, label=True))
    head, tail = (
        (Column("design"), Column("task", "task")),
        (
            Column("outcome", "outcome"),
            Column("sd_seeds", "other seed", 1),
            Column("sd_prompts", "other prompts", 1),
            Column("sd_machine", "other machine", 1),
            Column("unit", "unit"),
            Column("n_seeds", "seeds", 0),
            Column("n_prompts", "prompts", 0),
            Column("n_machines", "machines", 0),
        ),
    )
    shown = [{**row, "subset": plain(row["subset"]), "outcome": NOISE_OUTCOMES[row["outcome"]]} for row in rows]
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in shown:
        groups.setdefault((row["design"], row["outcome"], row["task"]), []).append(row)
    together = [
        {
            **{name: group[0][name] for name in ("design", "task", "outcome", "unit")},
            **{name: root_mean_square([row[name] for row in group]) for name in NOISES},
            **{name: smallest([row[name] for row in group]) for name in ("n_seeds", "n_prompts", "n_machines")},
        }
        for _, group in sorted(groups.items(), key=lambda item: item[0][:2])
    ]
    measured = any(row["sd_machine"] is not None for row in rows)
    caption = (
        "Standard deviations of one run's value if one thing alone were changed: the training seed, the prompts, the "
        "machine (instruction set and threads; same seed, prompts and aligned model). "
        + ("" if measured else "The machine's was not measured: benchmarks/machine_noise.py.")
    )
    return [
        Table("noise", f"{caption.strip()} Arms pooled.", (*head, *tail), together),
        Table("noise_arms", f"{caption.strip()} Arm by arm.", (*head, *arm, *tail), shown),
    ]


def root_mean_square(values: list[float | None]) -> float | None:
    """Standard deviations pooled over those that are known; None where none is."""
    known = [value for value in values if value is not None]
    return (sum(value**2 for value in known) / len(known)) ** 0.5 if known else None


def smallest(values: list[int | None]) -> int | None:
    return min((value for value in values if value is not None), default=None)


def sorted_comparisons(rows: list[dict[str, Any]], primary: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The declared pair first, then by outcome (change, final, initial), the smallest p first."""
    declared = (primary or {}).get("declared") or {}
    pair = list(declared.get("comparison", ()))
    return sorted(
        rows,
        key=lambda row: ([row["first"], row["second"]] != pair, RANK.get(row["outcome"], 3), row.get("p_value", 2.0)),
    )
