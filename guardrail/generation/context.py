"""Make a conversation fit a model's context, by one stated rule, and say what was cut.

The rule. At least ``min(max_new_tokens, context / 4)`` tokens stay free for the answer. A conversation whose prompt
leaves less is shortened from its oldest text to its newest: first the earlier assistant answers lose their ends,
oldest answer first; then whole earlier turns are dropped, oldest first; last of all the end of the newest user
message goes. The system text stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from guardrail.core.errors import UserError
from guardrail.data.prompts import encode_prompt
from guardrail.models.fetch import read_config

Messages = list[dict[str, str]]
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")


@dataclass(frozen=True)
class Fitted:
    """``messages`` as they are asked, their ``prompt_ids``, and the number of prompt tokens that were cut (0: none)."""

    messages: Messages
    prompt_ids: list[int]
    cut_tokens: int


def context_tokens(model_name_or_path: str) -> int | None:
    """The model's longest sequence in tokens; ``None`` when its configuration does not say. Loads no weights."""
    config = read_config(model_name_or_path)
    for part in (config, config.get("text_config") or {}):
        for key in CONTEXT_KEYS:
            if isinstance(part.get(key), int):
                return part[key]
    return None


def backend_context(backend: Any) -> int | None:
    """The context of a generation backend: the engine's or server's own where it is shorter than the model's."""
    found = (context_tokens(backend.model_name_or_path), backend.context_tokens)
    return min((tokens for tokens in found if tokens is not None), default=None)


def prompt_limit(context: int | None, max_new_tokens: int) -> int | None:
    """The longest prompt that leaves room for an answer; see the rule above."""
    return None if context is None else context - max(1, min(max_new_tokens, context // 4))


def fit_conversation(tokenizer: Any, style: str, messages: Messages, limit: int | None) -> Fitted:
    """Encode ``messages`` (ending with a user turn) within ``limit`` prompt tokens.

    Raises ``UserError`` when the style's own text and the system text alone are longer than ``limit``.
    """

    def encode(candidate: Messages) -> list[int]:
        return encode_prompt(tokenizer, style, candidate)

    ids = encode(messages)
    full = len(ids)
    if limit is None or full <= limit:
        return Fitted(list(messages), ids, 0)
    work = [dict(message) for message in messages]

    def shorten(position: int) -> bool:
        """Cut the end of one message as little as needed; True when that is enough."""
        text = work[position]["content"]

        def fits(n_chars: int) -> bool:
            work[position]["content"] = text[:n_chars]
            return len(encode(work)) <= limit

        kept = _largest(fits, len(text))
        work[position]["content"] = text[: max(kept, 0)]
        return kept >= 0

    for position in [i for i, message in enumerate(work) if message["role"] == "assistant"]:
        if shorten(position):
            return Fitted(work, encode(work), full - len(encode(work)))
    first = next(i for i, message in enumerate(work) if message["role"] == "user")
    while len(work) - first > 2:
        del work[first : first + 2]  # the oldest question with its answer
        if len(encode(work)) <= limit:
            return Fitted(work, encode(work), full - len(encode(work)))
    if not shorten(len(work) - 1):
        raise UserError(
            f"the prompt style's own text takes {len(encode(work))} tokens; only {limit} fit the model's context: "
            "use a model with a longer context or a shorter --max_new_tokens"
        )
    return Fitted(work, encode(work), full - len(encode(work)))


def _largest(fits: Callable[[int], bool], upper: int) -> int:
    """The largest n in 0..upper with ``fits(n)``, -1 when there is none (bisection: longer text, more tokens)."""
    if not fits(0):
        return -1
    low, high = 0, upper
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
