"""One table, four renderings: Markdown, CSV, LaTeX (booktabs) and HTML rows. Contents are in `summary_tables`."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from typing import Any

LATEX_ESCAPES = str.maketrans(
    {"%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "–": "--", "−": "$-$"}
)


@dataclass(frozen=True)
class Column:
    """``digits`` is None for text; ``interval`` names the key of a ``[low, high]`` shown behind the number."""

    key: str
    title: str
    digits: int | None = None
    interval: str | None = None
    signed: bool = False


@dataclass(frozen=True)
class Table:
    """``rows`` hold raw values; a row with status ``failed`` shows its reason instead of numbers."""

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def text(self, row: dict[str, Any], column: Column) -> str:
        """A cell for people: number with its interval, an en dash where there is none, FAILED where it failed."""
        value = row.get(column.key)
        if row.get("status") == "failed" and column.digits is not None:
            first = next(c for c in self.columns if c.digits is not None)
            return "FAILED" if column is first else ""
        if value is None:
            return "–"
        if column.digits is None or isinstance(value, str):
            return str(value)
        sign = "+" if column.signed else ""
        out = f"{value:{sign}.{column.digits}f}"
        interval = row.get(column.interval) if column.interval else None
        if interval:
            low, high = interval
            out += f" [{low:{sign}.{column.digits}f}, {high:{sign}.{column.digits}f}]"
        return out

    def texts(self) -> list[list[str]]:
        return [[self.text(row, column) for column in self.columns] for row in self.rows]

    def markdown(self) -> str:
        """Aligned columns: readable in a terminal too."""
        cells = [[column.title for column in self.columns], *self.texts()]
        widths = [max(len(line[i]) for line in cells) for i in range(len(self.columns))]
        right = [column.digits is not None for column in self.columns]
        lines = []
        for line in cells:
            padded = [t.rjust(w) if r else t.ljust(w) for t, w, r in zip(line, widths, right, strict=True)]
            lines.append("| " + " | ".join(padded) + " |")
        rule = ["-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True)]
        lines.insert(1, "|" + "|".join(rule) + "|")
        return "\n".join(lines) + f"\n\n{self.caption}\n"

    def csv(self) -> str:
        """Raw values; an interval becomes two columns ``*_low`` and ``*_high``; failed rows have empty numbers."""
        names: list[str] = []
        for column in self.columns:
            names.append(column.key)
            if column.interval:
                names += [f"{column.key}_low", f"{column.key}_high"]
        if any("status" in row for row in self.rows):
            names.append("status")
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(names)
        for row in self.rows:
            values: list[Any] = []
            for column in self.columns:
                values.append(row.get(column.key))
                if column.interval:
                    values += row.get(column.interval) or ["", ""]
            writer.writerow(
                ["" if v is None else v for v in values] + ([row.get("status")] if "status" in names else [])
            )
        return buffer.getvalue()

    def latex(self) -> str:
        r"""A booktabs table; needs ``\usepackage{booktabs}``."""
        alignment = "".join("r" if column.digits is not None else "l" for column in self.columns)
        head = " & ".join(column.title.translate(LATEX_ESCAPES) for column in self.columns)
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
