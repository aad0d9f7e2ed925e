"""Safety rows mixed into the task's rows (Bianchi et al. 2023, arXiv 2309.07875, section 3: 3% of the training rows).

Which rows is the question: ``source`` may be a pool (`random` draws from it), or a selection file, whose rows lie in
the order of their score: `first` takes the head of `top...jsonl`, `last` the end of `bottom...jsonl`.
``budget`` replace keeps the number of rows, and so of steps, by leaving out as many of the task's.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guardrail.core.cli import fraction
from guardrail.core.errors import UserError
from guardrail.core.options import option
from guardrail.data.rows import Row
from guardrail.training.defences.further_rows import FurtherRows

if TYPE_CHECKING:
    from guardrail.training.data import TokenisedRows


@dataclass(kw_only=True)
class SafetyRows(FurtherRows):
    """``share`` of the task's row number, rounded, at least one row; the trainer shuffles them in."""

    resumable = True

    share: float = option(0.03, "safety rows per row of the task", parse=fraction)
    choose: str = option("random", "any rows of source, its first, or its last", choices=("random", "first", "last"))
    budget: str = option("replace", "replace: as many rows as before; add: more rows", choices=("replace", "add"))

    def rows(self, rows: list[Row]) -> list[Row]:
        n = max(1, round(self.share * len(rows)))
        pool = self.read()
        if n > len(pool):
            raise UserError(f"{self.source} has {len(pool)} rows, share={self.share:g} of {len(rows)} needs {n}")
        draw = random.Random(self.rows_seed)
        places = {"first": range(n), "last": range(len(pool) - n, len(pool))}
        chosen = places.get(self.choose) or sorted(draw.sample(range(len(pool)), n))
        if self.budget == "replace":
            if n >= len(rows):
                raise UserError(f"share={self.share:g} would leave no row of the task; lower it, or use budget=add")
            kept = sorted(draw.sample(range(len(rows)), len(rows) - n))
            rows = [rows[i] for i in kept]
        taken = {row["id"] for row in rows}
        more = [pool[i] for i in chosen]
        return rows + [{**row, "id": f"{row['id']}#safety" if row["id"] in taken else row["id"]} for row in more]

    def prepare(self, encode: Callable[[list[Row]], TokenisedRows]) -> None:
        """They are trained with the others: nothing more to tokenise."""
