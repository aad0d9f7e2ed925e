"""Sentences of an answer as character spans: every character belongs to exactly one.

The rule: a sentence ends behind ``.``, ``!`` or ``?`` (with closing quotes and brackets) where white space follows, and
at the end of a line; the white space goes with the sentence before it. A full stop behind a number that begins a line
("1. Sand it.") or behind one capital letter ("J. Smith") ends nothing. What is longer than ``MAX_CHARS`` is cut at the
last white space before it, so that text without stops (code, lists of words) is looked at in pieces too. Pieces without
a letter or digit join the sentence before.

Known limit: languages that end sentences with other marks are cut by lines and length alone.
"""

from __future__ import annotations

import itertools
import re

from guardrail.data.rows import Row, response

MAX_CHARS = 400
END = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"'”’)\]]))[ \t]+|[ \t]*\n\s*")
NO_END = re.compile(r"(?:^|\n)\s*\(?\d{1,3}[.)]\s*$|(?:^|[\s(])[A-Z]\.\s*$")
Span = tuple[int, int]


def sentence_spans(text: str) -> list[Span]:
    """``(start, end)`` of every sentence of ``text``, in order, together all of it; empty for a blank text."""
    if not text.strip():
        return []
    cuts = [0]
    for found in END.finditer(text):
        end = found.end()
        if "\n" not in found.group() and NO_END.search(text[cuts[-1] : found.start()]):
            continue
        if cuts[-1] < end < len(text):
            cuts.append(end)
    cuts.append(len(text))
    out: list[Span] = []
    for start, end in itertools.pairwise(cuts):
        for first, last in _pieces(text, start, end):
            if out and not any(character.isalnum() for character in text[first:last]):
                out[-1] = (out[-1][0], last)
            else:
                out.append((first, last))
    if len(out) > 1 and not any(character.isalnum() for character in text[out[0][0] : out[0][1]]):
        out[:2] = [(out[0][0], out[1][1])]
    return out


def _pieces(text: str, start: int, end: int) -> list[Span]:
    out = []
    while end - start > MAX_CHARS:
        blank = text.rfind(" ", start + 1, start + MAX_CHARS)
        cut = blank + 1 if blank > start else start + MAX_CHARS
        out.append((start, cut))
        start = cut
    out.append((start, end))
    return out


def segment_rows(row: Row) -> tuple[list[Span], list[Row]]:
    """The sentences of the row's last answer, and a row for each: the same question, that sentence as the answer.

    No sentences where the answer is one: the row's own score says it.
    """
    spans = sentence_spans(response(row))
    if len(spans) < 2:
        return [], []
    answer = row["messages"][-1]
    before = row["messages"][:-1]
    rows = []
    for number, (start, end) in enumerate(spans):
        text = answer["content"][start:end].strip()
        rows.append({"id": f"{row['id']}.{number}", "messages": [*before, {**answer, "content": text}]})
    return spans, rows
