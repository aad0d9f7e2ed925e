"""Deep alignment: refusals that come after the first words of a harmful answer (Qi et al. 2024, arXiv 2406.05946).

Their section 3.1: with the probability 1/2 a safety row stays as it is; else the refusal is put behind the first k
words of a harmful answer to the same request, k uniform in 1 ... ``max_words``, and only the refusal is learned (the
row's ``loss_mask`` covers the prefix). ``source`` holds harmful requests with answers that comply; a safety row whose
request is not among them takes the answer of another one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guardrail.core.cli import fraction, positive_int
from guardrail.core.errors import UserError
from guardrail.core.options import option
from guardrail.data.refusals import is_refusal
from guardrail.data.rows import Row
from guardrail.training.defences.further_rows import FurtherRows

if TYPE_CHECKING:
    from guardrail.training.data import TokenisedRows


@dataclass(kw_only=True)
class DeepAlignment(FurtherRows):
    """Rows whose answer opens as a refusal are the safety rows; all others stay as they are."""

    resumable = True

    share: float = option(0.5, "share of the safety rows that gets a harmful beginning", parse=fraction)
    max_words: int = option(20, "most words of a harmful beginning", parse=positive_int)

    @property
    def needs(self) -> str:
        return "harmful rows: harmful requests with answers that comply"

    def rows(self, rows: list[Row]) -> list[Row]:
        pairs = [(request(row), answer(row)) for row in self.read()]
        known, answers = dict(pairs), [text for _, text in pairs]
        if not any(is_refusal(answer(row)) for row in rows):
            raise UserError("--defence deep_alignment finds no refusal among the rows; it belongs to the alignment")
        out = []
        for row in rows:
            draw = random.Random(f"{self.rows_seed} {row['id']}")
            if draw.random() < self.share and is_refusal(answer(row)):
                harmful = known.get(request(row)) or draw.choice(answers)
                row = with_prefix(row, first_words(harmful, draw.randint(1, self.max_words)))
            out.append(row)
        return out

    def prepare(self, encode: Callable[[list[Row]], TokenisedRows]) -> None:
        """The harmful answers are only beginnings: nothing more to tokenise."""


def request(row: Row) -> str:
    return str(next(m["content"] for m in reversed(row["messages"]) if m["role"] == "user"))


def answer(row: Row) -> str:
    return str(row["messages"][-1]["content"])


def first_words(text: str, n: int) -> str:
    """The first ``n`` words with the blanks between them."""
    return "".join(re.findall(r"\S+\s*", text)[:n]).strip()


def with_prefix(row: Row, prefix: str) -> Row:
    """``row`` with ``prefix`` in front of its answer, which alone keeps its loss."""
    *before, last = row["messages"]
    messages = [*before, {**last, "content": f"{prefix} {last['content']}"}]
    return {**row, "messages": messages, "loss_mask": [[0, len(prefix)]]}
