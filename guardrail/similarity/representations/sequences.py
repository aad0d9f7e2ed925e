"""From a row to token ids and the span of tokens that each position averages (a last-token position: one token).

Positions, on BOS + prompt + response + end marker with EOS:

* ``eos``: the last token; EOS for a row that was not cut (the paper's feature).
* ``completion_last``: the last token of the response itself, before the end marker.
* ``prompt_last``: the last token of the prompt, from which the first response token is predicted.
* ``completion_mean``: all tokens of the response; ``mean``: all tokens.

With ``--text prompt`` or ``completion`` only that part is fed to the model (after BOS).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from guardrail.core.errors import UserError
from guardrail.data.prompts import encode_prompt, encode_supervised
from guardrail.data.rows import Row, is_answered
from guardrail.similarity.representations.options import ExtractionOptions

Span = tuple[int, int]


@dataclass(frozen=True)
class TokenSequence:
    """``input_ids`` as fed to the model; ``spans[position]`` is half-open and never empty."""

    input_ids: list[int]
    spans: dict[str, Span]
    n_tokens_full: int

    @property
    def n_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def truncated(self) -> bool:
        return self.n_tokens_full > len(self.input_ids)


def make_sequence(tokenizer: Any, row: Row, options: ExtractionOptions) -> TokenSequence | None:
    """Tokenise ``row``; ``None`` when it is longer than the cap and ``long_rows`` is ``exclude``."""
    if options.architecture == "encoder":
        ids, spans = _encoder_sequence(tokenizer, row, options)
    else:
        ids, spans = _causal_sequence(tokenizer, row, options)
    full = len(ids)
    if full > options.max_length:
        if options.long_rows == "exclude":
            return None
        ids, spans = _cut(ids, spans, options)
    return TokenSequence(ids, {name: spans[name] for name in options.positions}, full)


def needs_answers(options: ExtractionOptions) -> bool:
    """Does ``options.text`` read the answer of a row?"""
    return not (options.text == "prompt" or (options.text == "full" and options.architecture == "encoder"))


def unanswered_ids(rows: Sequence[Row], options: ExtractionOptions, max_dropped_fraction: float) -> list[str]:
    """Ids of the rows without the answer that ``options.text`` needs; they get no representation.

    Raises ``UserError`` when they are more than ``max_dropped_fraction`` of all: how many, and which is the first.
    """
    without = [row["id"] for row in rows if needs_answers(options) and not is_answered(row["messages"])]
    rest_is_left = len(without) < len(rows)
    if not without or (rest_is_left and len(without) <= max_dropped_fraction * len(rows)):
        return without
    which = f"row {without[0]} has" if len(rows) == 1 else f"{len(without)} of {len(rows)} rows have"
    first = "" if len(rows) == 1 else f" (the first is row {without[0]})"
    share = math.ceil(1000 * len(without) / len(rows)) / 1000
    rest = f": --max_dropped_fraction {share:g}" if rest_is_left else ""
    raise UserError(
        f"{which} no answer, which --text {options.text} needs{first}; use --text prompt for prompts alone, or "
        f"leave these rows out{rest}"
    )


def require_answers(rows: Sequence[Row], options: ExtractionOptions) -> None:
    """Refuse rows that lack the answer which ``options.text`` needs (a blank one is an answer here)."""
    if needs_answers(options) and any(not is_answered(row["messages"], not_blank=False) for row in rows):
        unanswered_ids(rows, options, 0.0)


def _causal_sequence(tokenizer: Any, row: Row, options: ExtractionOptions) -> tuple[list[int], dict[str, Span]]:
    messages, style = row["messages"], options.prompt_style
    assert style is not None
    if options.text == "prompt":
        prompt = messages[:-1] if messages[-1]["role"] == "assistant" else messages
        ids = encode_prompt(tokenizer, style, prompt)
        last = (len(ids) - 1, len(ids))
        return ids, {"eos": last, "prompt_last": last, "mean": (0, len(ids))}
    require_answers([row], options)
    example = encode_supervised(tokenizer, style, messages)
    ids, start = example.input_ids, example.prompt_length
    end = len(ids)
    if any(name.startswith("completion") for name in options.positions):
        end = max(start + 1, _content_end(ids, encode_prompt(tokenizer, style, messages)))
    if options.text == "completion":
        head = ids[:1] if tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id else []
        ids, end, start = head + ids[start:], end - start + len(head), len(head)
    return ids, {
        "eos": (len(ids) - 1, len(ids)),
        "completion_last": (end - 1, end),
        "prompt_last": (max(start - 1, 0), max(start, 1)),
        "completion_mean": (start, end),
        "mean": (0, len(ids)),
    }


def _content_end(ids: list[int], open_ids: list[int]) -> int:
    """End of the response's own tokens: where the open answer's ids stop agreeing with the closed one's.

    A tokenizer may merge the response's last characters with the end marker; the merged token then counts.
    """
    common = 0
    while common < min(len(ids), len(open_ids)) and ids[common] == open_ids[common]:
        common += 1
    return common if common == len(open_ids) else common + 1


def _encoder_sequence(tokenizer: Any, row: Row, options: ExtractionOptions) -> tuple[list[int], dict[str, Span]]:
    messages, text = row["messages"], options.text
    if text == "completion":
        require_answers([row], options)
        chosen = messages[-1:]
    elif text == "prompt":
        chosen = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    else:
        chosen = messages
    ids = tokenizer("\n".join(message["content"] for message in chosen))["input_ids"]
    return ids, {"eos": (len(ids) - 1, len(ids)), "mean": (0, len(ids))}


def _cut(ids: list[int], spans: dict[str, Span], options: ExtractionOptions) -> tuple[list[int], dict[str, Span]]:
    """Cut to the cap. The first token (BOS or [CLS]) always stays; an encoder's last ([SEP]) stays too.

    A span that was cut away altogether becomes the nearest token that is left.
    """
    full, cap = len(ids), options.max_length
    if options.architecture == "encoder":
        kept = [0, *range(full - cap + 1, full)] if options.long_rows == "keep_tail" else [*range(cap - 1), full - 1]
    else:
        kept = [0, *range(full - cap + 1, full)] if options.long_rows == "keep_tail" else list(range(cap))
    place = {old: new for new, old in enumerate(kept)}
    out = {}
    for name, (start, end) in spans.items():
        inside = [place[i] for i in range(start, end) if i in place]
        if name == "eos":
            inside = [cap - 1]
        out[name] = (inside[0], inside[-1] + 1) if inside else ((cap - 1, cap) if start >= kept[-1] else (0, 1))
        if not inside and options.long_rows == "keep_tail":
            out[name] = (min(1, cap - 1), min(1, cap - 1) + 1)
    return [ids[i] for i in kept], out
