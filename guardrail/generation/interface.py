"""What every generation backend takes and gives: sampling options, requests, completions - and the shared rules.

Rules that hold for every backend, so that one model gives the same rows on all of them:

* a prompt is token ids (prefill included), never text that is tokenised again;
* a completion is what comes after the prompt by token count; special tokens are not part of its text;
* the text is cut where the prompt style's next turn would begin (``cut_at_stop``), and those tokens are not counted;
* the random numbers of a row depend on (seed, id, sample) alone, not on its batch, rank or neighbours.
"""

from __future__ import annotations

import functools
import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from guardrail.core.batches import length_batches
from guardrail.core.errors import UserError
from guardrail.generation.options import SamplingOptions

FINISH_REASONS = ("eos", "stop", "length")
DETOKENIZER_CONTEXT_TOKENS = 6  # prompt tail decoded along, so that a leading space of the answer survives


@dataclass(frozen=True)
class Request:
    """One prompt to complete: ``prompt_ids`` as ``guardrail.data.prompts.encode_prompt`` gives them."""

    id: str
    sample: int
    prompt_ids: list[int]

    @property
    def key(self) -> tuple[str, int]:
        return self.id, self.sample


@dataclass(frozen=True)
class Completion:
    """The answer to one request.

    ``text`` is unstripped; ``token_ids`` are the answer's tokens without EOS and without a next-turn marker
    (``n_completion_tokens`` counts them). ``finish_reason``: ``eos``, ``stop`` (a next turn began) or ``length``.
    """

    id: str
    sample: int
    text: str
    token_ids: list[int]
    finish_reason: str
    n_prompt_tokens: int
    n_completion_tokens: int
    cut_at_stop: bool

    @property
    def key(self) -> tuple[str, int]:
        return self.id, self.sample


class Backend:
    """A generation engine. Building one is cheap: model and tokenizer load when they are first used.

    Args:
        model_name_or_path: model folder or hub name; for a server the folder or name whose tokenizer makes the ids.
        stops: texts that begin a next turn; completions are cut there.
        unit_rows, unit_tokens: upper limits of one unit of work.
    """

    name: str
    many_processes = False  # True: ranks share the work; False: the engine is parallel itself, under one process
    eos_ids: tuple[int, ...]
    context_tokens: int | None

    def __init__(
        self,
        model_name_or_path: str,
        stops: tuple[str, ...] = (),
        trust_remote_code: bool = False,
        unit_rows: int = 256,
        unit_tokens: int = 1 << 40,
    ) -> None:
        self.model_name_or_path = model_name_or_path
        self.stops = stops
        self.trust_remote_code = trust_remote_code
        self.unit_rows = unit_rows
        self.unit_tokens = unit_tokens

    @functools.cached_property
    def tokenizer(self) -> Any:
        from guardrail.models.loading import load_tokenizer

        return load_tokenizer(self.model_name_or_path, self.trust_remote_code)

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        return special_stop_ids(self.tokenizer, self.stops)

    @abstractmethod
    def generate(self, requests: Sequence[Request], options: SamplingOptions) -> list[Completion]:
        """Complete every request exactly once, in any order."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What belongs in the run record: engine, dtype, device."""

    def finish(self, request: Request, token_ids: Sequence[int]) -> Completion:
        """`finish_completion` with this engine's tokenizer, EOS ids and stops."""
        return finish_completion(self.tokenizer, request, token_ids, self.eos_ids, self.stops, self.stop_ids)

    def room(self, request: Request, options: SamplingOptions) -> int:
        """How many tokens the answer may get: the option, or what the context leaves. ``UserError`` when none."""
        if self.context_tokens is None:
            return options.max_new_tokens
        left = min(options.max_new_tokens, self.context_tokens - len(request.prompt_ids))
        if left < 1:
            raise UserError(
                f"row {request.id!r}: its prompt has {len(request.prompt_ids)} tokens, the model's context "
                f"{self.context_tokens}; shorten the prompt or use a model with a longer context"
            )
        return left


def row_seed(seed: int, row_id: str, sample: int) -> int:
    """A 63-bit seed from run seed, row id and sample number (order and batch do not matter)."""
    digest = hashlib.sha256(f"{seed}\x1f{row_id}\x1f{sample}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def plan_units(
    requests: Sequence[Request], max_new_tokens: int, unit_tokens: int, unit_rows: int
) -> list[list[Request]]:
    """Cut requests into units of work of similar length, longest first; the same for any number of processes.

    A unit has at most ``unit_rows`` rows and at most ``unit_tokens`` padded prompt-plus-answer tokens (a single row
    may exceed it). Longest first: a batch that does not fit in memory shows at once.
    """
    ordered = sorted(requests, key=lambda r: (-len(r.prompt_ids), r.id, r.sample))
    lengths = [len(request.prompt_ids) + max_new_tokens for request in ordered]
    return [[ordered[i] for i in unit] for unit in length_batches(lengths, unit_tokens, unit_rows)]


def eos_ids_of(tokenizer: Any, generation_config: Any) -> tuple[int, ...]:
    """Every id that ends an answer: the tokenizer's EOS and those of the model's generation configuration."""
    configured = getattr(generation_config, "eos_token_id", None)
    configured = configured if isinstance(configured, list) else [configured]
    return tuple(sorted({i for i in (tokenizer.eos_token_id, *configured) if i is not None}))


def special_stop_ids(tokenizer: Any, stops: Sequence[str]) -> tuple[int, ...]:
    """Ids of the stop strings that are one special token: decoding leaves such a token out, so no text shows it."""
    if not stops:
        return ()
    tokens, flags = tokenizer.get_added_vocab(), tokenizer.added_tokens_decoder
    found = [tokens[stop] for stop in stops if stop in tokens]
    return tuple(i for i in found if i in tokenizer.all_special_ids or flags[i].special)


def decode_answer(tokenizer: Any, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> str:
    """Text of ``token_ids`` as they continue ``prompt_ids``, special tokens left out."""
    if not token_ids:
        return ""
    tail = list(prompt_ids[-DETOKENIZER_CONTEXT_TOKENS:])
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    head = tokenizer.decode(tail, **options)
    whole = tokenizer.decode([*tail, *token_ids], **options)
    return whole[len(head) :] if whole.startswith(head) else tokenizer.decode(list(token_ids), **options)


def find_stop(text: str, stop_strings: Sequence[str]) -> int:
    """Where the first stop string begins in ``text``; -1 when there is none."""
    places = [place for place in (text.find(stop) for stop in stop_strings if stop) if place >= 0]
    return min(places, default=-1)


def finish_completion(
    tokenizer: Any,
    request: Request,
    token_ids: Sequence[int],
    eos_ids: Sequence[int],
    stop_strings: Sequence[str],
    stop_ids: Sequence[int] = (),
) -> Completion:
    """Turn raw generated ids into a completion: cut at the first EOS or stop id, then at the first stop string."""
    ids = [int(i) for i in token_ids]
    reason = "length"
    end = next((i for i, token in enumerate(ids) if token in eos_ids or token in stop_ids), None)
    if end is not None:
        reason = "eos" if ids[end] in eos_ids else "stop"
        ids = ids[:end]
    text = decode_answer(tokenizer, request.prompt_ids, ids)
    place = find_stop(text, stop_strings)
    if place >= 0:
        text, reason = text[:place], "stop"
        low, high = 0, len(ids)  # the longest run of tokens that stays within the cut text
        while low < high:
            middle = (low + high + 1) // 2
            if len(decode_answer(tokenizer, request.prompt_ids, ids[:middle])) <= place:
                low = middle
            else:
                high = middle - 1
        ids = ids[:low]
    return Completion(
        id=request.id,
        sample=request.sample,
        text=text,
        token_ids=ids,
        finish_reason=reason,
        n_prompt_tokens=len(request.prompt_ids),
        n_completion_tokens=len(ids),
        cut_at_stop=reason == "stop",
    )


def check_complete(requests: Sequence[Request], completions: Sequence[Completion]) -> list[Completion]:
    """Completions in the order of the requests; an assertion fails when one is missing, doubled or extra."""
    by_key = {completion.key: completion for completion in completions}
    assert len(by_key) == len(completions), "a completion occurs twice"
    missing = [request.key for request in requests if request.key not in by_key]
    assert not missing and len(by_key) == len(requests), f"rows lost or added: {missing[:5]} of {len(requests)}"
    return [by_key[request.key] for request in requests]
