"""A table of results and its renderings: Markdown, CSV, LaTeX (booktabs) and HTML rows. Which there are: `tables`."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from typing import Any

from guardrail.study.report import definitions

LATEX_ESCAPES = str.maketrans(
    {"%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "–": "--", "−": "$-$"}
)


@dataclass(frozen=True)
class Column:
    """``digits`` is None for text; ``interval`` names the key of a ``[low, high]`` shown behind the number.

    ``label``: a number that says which row it is, not what was measured. Without a ``title`` the column is only in the
    CSV. ``edges`` names the interval's two CSV columns.
    """

    key: str
    title: str = ""
    digits: int | None = None
    interval: str | None = None
    signed: bool = False
    label: bool = False
    edges: str = "{key}_{edge}"

    @property
    def measured(self) -> bool:
        return self.digits is not None and not self.label


@dataclass(frozen=True)
class Table:
    """``rows`` hold raw values; a row whose status is not ``done`` shows that status instead of numbers."""

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def shown(self) -> list[Column]:
        return [column for column in self.columns if column.title]

    def text(self, row: dict[str, Any], column: Column) -> str:
        """A cell for people: number with its interval, an en dash where there is none, FAILED (STALE, MISSING)."""
        value = row.get(column.key)
        if without_numbers(row) and column.measured:
            first = next(c for c in self.shown if c.measured)
            return row["status"].upper() if column is first else ""
        if value is None:
            return "–"
        if column.digits is None or isinstance(value, str):
            return str(value)
        interval = row.get(column.interval) if column.interval else None
        sign = "+" if column.signed else ""
        numbers = [f"{number:{sign}.{column.digits}f}" for number in (value, *(interval or ()))]
        numbers = [n if n.strip("+-0.") else n.lstrip("+-") for n in numbers]  # a rounded zero has no sign
        return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]" if interval else numbers[0]

    def texts(self) -> list[list[str]]:
        return [[self.text(row, column) for column in self.shown] for row in self.rows]

    def markdown(self) -> str:
        """Aligned columns: readable in a terminal too."""
        cells = [[column.title for column in self.shown], *self.texts()]
        widths = [max(map(len, line)) for line in zip(*cells, strict=True)]
        right = [column.digits is not None for column in self.shown]
        lines = []
        for line in cells:
            padded = [t.rjust(w) if r else t.ljust(w) for t, w, r in zip(line, widths, right, strict=True)]
            lines.append("| " + " | ".join(padded) + " |")
        rule = ["-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True)]
        lines.insert(1, "|" + "|".join(rule) + "|")
        return "\n".join(lines) + f"\n\n{self.caption}\n"

    def csv(self) -> str:
        """Raw values; an interval becomes two columns; rows without numbers have a status and empty numbers."""
        names: list[str] = []
        for column in self.columns:
            edges = [column.edges.format(key=column.key, edge=edge) for edge in ("low", "high")]
            names += [column.key, *(edges if column.interval else [])]
        with_status = "status" not in names and any("status" in row for row in self.rows)
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow([*names, "status"] if with_status else names)
        for row in self.rows:
            empty = without_numbers(row)
            values: list[Any] = []
            for column in self.columns:
                values.append(None if empty and column.measured else row.get(column.key))
                if column.interval:
                    values += (None if empty else row.get(column.interval)) or ["", ""]
            values += [row.get("status")] if with_status else []
            writer.writerow(["" if value is None else value for value in values])
        return buffer.getvalue()

    def latex(self) -> str:
        r"""A booktabs table; needs ``\usepackage{booktabs}``."""
        alignment = "".join("r" if column.digits is not None else "l" for column in self.shown)
        head = " & ".join(column.title.translate(LATEX_ESCAPES) for column in self.shown)
        body = [" & ".join(cell.translate(LATEX_ESCAPES) for cell in line) + r" \\" for line in self.texts()]
        lines = [
            r"\begin{table}[t]",
            r"  \centering\small",
            rf"  \caption{{{self.caption.translate(LATEX_ESCAPES)}}}",
            rf"  \label{{tab:{self.name.replace('_', '-')}}}",
            rf"  \begin{{tabular}}{{{alignment}}}",
            r"    \toprule",
            rf"    {head} \\",
            r"    \midrule",
            *(f"    {line}" for line in body),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"

    def html(self) -> dict[str, Any]:
        """What the page's template needs: texts beside the raw values that sorting uses."""
        rows = []
        for row, texts in zip(self.rows, self.texts(), strict=True):
            cells = []
            for column, text in zip(self.shown, texts, strict=True):
                value, number = row.get(column.key), column.digits is not None
                main, _, tail = text.partition(" [")
                cells.append(
                    {
                        "text": main,
                        "tail": f"[{tail}" if tail and number else "",
                        "sort": value if number and isinstance(value, (int, float)) else ("" if number else text),
                        "number": number,
                    }
                )
            rows.append({"cells": cells, "failed": without_numbers(row)})
        columns = [
            {
                "title": column.title,
                "number": column.digits is not None,
                "definition": definitions.COLUMNS.get(column.key),
            }
            for column in self.shown
        ]
        return {"name": self.name, "caption": self.caption, "columns": columns, "rows": rows}


def without_numbers(row: dict[str, Any]) -> bool:
    """Whether ``row`` is of a cell or arm that is not done: failed, stale, missing."""
    return row.get("status", "done") != "done"


def plain(name: str) -> str:
    """A subset's or property's name in words."""
    return name.replace("_", " ")
