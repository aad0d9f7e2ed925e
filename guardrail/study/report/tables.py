"""The study's table in Markdown and CSV, in the paper's order: task x subset, initial, final, change, utility."""

from __future__ import annotations

import csv
import io
from typing import Any

COLUMNS = (
    ("task", "task"),
    ("subset", "alignment subset"),
    ("subset_size", "size"),
    ("seed", "seed"),
    ("initial_percent", "initial HS %"),
    ("final_percent", "final HS %"),
    ("delta_points", "change (points)"),
    ("initial_refusal_percent", "initial refusals %"),
    ("benign_refusal_percent", "benign refused %"),
    ("utility_initial", "utility before"),
    ("utility_final", "utility after"),
    ("n", "n"),
)


def table_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One flat record per arm: the base model, then every cell; failed cells carry their reason."""
    out = []
    base = {"task": "(none)", "subset": "base model", "subset_size": None, "seed": None, **result["base"]}
    for cell in (base, *result["cells"]):
        row: dict[str, Any] = {key: cell.get(key) for key in ("task", "subset", "subset_size", "seed", "status")}
        if cell["status"] == "failed":
            row["reason"] = cell["reason"]
        else:
            initial, final = cell.get("initial", cell), cell.get("final")
            row["initial_percent"] = initial["harmfulness_score_percent"]
            row["initial_interval_percent"] = initial["harmfulness_score_interval_percent"]
            row["initial_refusal_percent"] = initial["refusal_percent"]
            row["benign_refusal_percent"] = initial.get("benign_refusal_percent")
            row["n"] = initial["n"]
            if final is not None:
                row["final_percent"] = final["harmfulness_score_percent"]
                row["final_interval_percent"] = final["harmfulness_score_interval_percent"]
                row["delta_points"] = cell["delta_points"]
                row["utility_metric"] = cell["utility"]["metric"]
                row["utility_initial"] = cell["utility"]["initial"]
                row["utility_final"] = cell["utility"]["final"]
        out.append(row)
    return out


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if row["status"] == "failed" and key == "initial_percent":
        return "FAILED"
    if value is None:
        return "" if row["status"] == "failed" else "–"
    if key in ("initial_percent", "final_percent"):
        low, high = row[key.replace("percent", "interval_percent")]
        return f"{value:.1f} [{low:.1f}, {high:.1f}]"
    if key == "delta_points":
        return f"{value:+.1f}"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def markdown(result: dict[str, Any]) -> str:
    """A Markdown table with aligned columns, readable in a terminal too."""
    rows = table_rows(result)
    cells = [[title for _, title in COLUMNS]] + [[_text(row, key) for key, _ in COLUMNS] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


def csv_text(result: dict[str, Any]) -> str:
    """The same rows as CSV with interval columns; failed cells have status `failed` and empty numbers."""
    rows = table_rows(result)
    for row in rows:
        for key in ("initial_interval_percent", "final_interval_percent"):
            low, high = row.pop(key, None) or ("", "")
            row[key.replace("interval", "interval_low")], row[key.replace("interval", "interval_high")] = low, high
    names = list(dict.fromkeys(key for row in rows for key in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
