"""The column ``loss_mask``: parts of an answer that get no loss, as character spans, exact to the token.

    {"prompt": "...", "response": "Mix the flour. Then ... . Bake it.", "loss_mask": [[15, 25]]}

A span is ``[start, end)`` in characters of the row's last answer. The model still reads the masked text; it is not
taught to write it. A token loses its label exactly when it holds a masked character, so no masked character is ever
trained, and a token on a border (" then" whose blank lies outside) is given up whole. The end marker of the turn keeps
its label: the model learns to stop.

The column travels through `datasets/mix.py` in ``extra``; both places are read. Known limit: a tokenizer that cannot
say where its tokens lie in the text (a slow one) is refused, and so is a chat template that rewrites answers.

Shapes: T tokens of a row.
"""

from __future__ import annotations

import json
from typing import Any

from guardrail.core.errors import UserError
from guardrail.core.files import hash_json
from guardrail.data.prompts import SupervisedExample, answer_frame, token_places
from guardrail.data.rows import Row, hash_rows, response

COLUMN = "loss_mask"
Span = tuple[int, int]
EXPECTED = "expected a list of [start, end] pairs of characters within the last answer"


def mask_of(row: Row) -> list[Span]:
    """The row's masked spans, sorted and disjoint; empty where it has none.

    Raises ``UserError``: not a list of pairs of whole numbers, or a span outside the answer.
    """
    value = row.get(COLUMN)
    if value is None and isinstance(row.get("extra"), str) and COLUMN in row["extra"]:
        value = _extra(row["extra"])
    if value is None or value == "":
        return []
    if isinstance(value, str):  # a CSV file has no lists
        try:
            value = json.loads(value)
        except ValueError as error:
            raise UserError(f"row {row['id']}: {COLUMN} is no JSON; {EXPECTED}") from error
    length = len(response(row))
    spans = []
    for span in value if isinstance(value, list | tuple) else [value]:
        whole = isinstance(span, list | tuple) and len(span) == 2 and all(type(number) is int for number in span)
        if not whole or not 0 <= span[0] < span[1] <= length:
            raise UserError(f"row {row['id']}: {COLUMN} holds {str(span)[:40]}; {EXPECTED} ({length} characters)")
        spans.append((span[0], span[1]))
    return merged(spans)


def _extra(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:  # a column of that name which is none of ours
        return None
    return value.get(COLUMN) if isinstance(value, dict) else None


def merged(spans: list[Span]) -> list[Span]:
    """``spans`` sorted, those that touch or overlap joined."""
    out: list[Span] = []
    for start, end in sorted(spans):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out


def masked_tokens(
    tokenizer: Any, style: str, messages: list[dict[str, str]], mask: list[Span], example: SupervisedExample
) -> list[bool]:
    """(T,) which tokens of ``example`` (`encode_supervised` of the same conversation) hold a masked character.

    Raises ``UserError``: a tokenizer without places, a chat template that rewrites the answer.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"{COLUMN} needs to know where tokens lie in the text, and {type(tokenizer).__name__} is a slow tokenizer "
            "that cannot say: save it as a fast one (tokenizer.json), or leave the masked rows out"
        )
    origin, start, end = answer_frame(tokenizer, style, messages)
    spans = [(max(start, origin + first), min(end, origin + last)) for first, last in mask]
    spans = [span for span in spans if span[0] < span[1]]
    places = token_places(tokenizer, style, messages)
    T = len(example.input_ids)
    assert len(places) == example.n_tokens_full, "places of other tokens"
    answer = example.prompt_length  # whatever the texts of earlier turns are, only the last answer is masked
    return [i >= answer and _meets(places[i], spans) for i in range(T)]


def _meets(place: Span, spans: list[Span]) -> bool:
    start, end = place
    return any(start < last and first < max(end, start + 1) for first, last in spans)


def without_masked(spans: list[Span], masked: list[bool]) -> list[Span]:
    """``spans`` of token positions without the ``masked`` ones, in order."""
    out: list[Span] = []
    for start, end in spans:
        for position in range(start, end):
            if masked[position]:
                continue
            if out and out[-1][1] == position and position > start:
                out[-1] = (out[-1][0], position + 1)
            else:
                out.append((position, position + 1))
    return out


def hash_masked_rows(rows: list[Row]) -> str:
    """`hash_rows`, and the masks where there are some: the data hash of what is trained on."""
    masks = {row["id"]: mask for row in rows if (mask := mask_of(row))}
    return hash_json([hash_rows(rows), masks]) if masks else hash_rows(rows)
