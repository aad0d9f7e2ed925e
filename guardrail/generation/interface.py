"""What every generation backend takes and gives: sampling options, requests, completions - and the shared rules.

Rules that hold for every backend, so that one model gives the same rows on all of them:

* a prompt is token ids (prefill included), never text that is tokenised again;
* a completion is what comes after the prompt by token count; special tokens are not part of its text;
* the text is cut where the prompt style's next turn would begin (``cut_at_stop``), and those tokens are not counted;
* the random numbers of a row depend on (seed, id, sample) alone, not on its batch, rank or neighbours.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from guardrail.core.errors import UserError

FINISH_REASONS = ("eos", "stop", "length")
DETOKENIZER_CONTEXT_TOKENS = 6  # prompt tail decoded along, so that a leading space of the answer survives


@dataclass(frozen=True)
class SamplingOptions:
    """How to decode. Greedy unless ``do_sample``; then temperature, top-k (0: off), top-p in the field's order.

    Raises ``UserError`` for values that no backend could honour.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.do_sample and not self.temperature > 0:
            raise UserError(
                f"temperature {self.temperature} with sampling; expected > 0, or --do_sample False (greedy)"
            )
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p {self.top_p}; expected a number above 0 and at most 1")
        if self.top_k < 0:
            raise UserError(f"top_k {self.top_k}; expected 0 (off) or a positive number")
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens {self.max_new_tokens}; expected at least 1")

    def as_dict(self) -> dict[str, Any]:
        """The options that can change a completion: with greedy decoding the sampling numbers are left out."""
        out = dataclasses.asdict(self)
        return out if self.do_sample else {k: out[k] for k in ("do_sample", "max_new_tokens")}


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


class Backend(Protocol):
    """A generation engine. Building one is cheap; the model loads at the first ``generate``."""

    name: str
    tokenizer: Any
    unit_rows: int
    unit_tokens: int

    def generate(
        self,
        requests: Sequence[Request],
        options: SamplingOptions,
        on_batch: Callable[[list[Completion]], None] | None = None,
    ) -> list[Completion]:
        """Complete every request exactly once; ``on_batch`` sees finished groups as they come (any order)."""
        ...

    def describe(self) -> dict[str, Any]:
        """What belongs in the run record: engine, versions, dtype, device."""
        ...


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
    units: list[list[Request]] = []
    width = 0
    for request in ordered:
        if not units or len(units[-1]) >= unit_rows or (len(units[-1]) + 1) * width > unit_tokens:
            units.append([])
            width = len(request.prompt_ids) + max_new_tokens
        units[-1].append(request)
    return units


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
) -> Completion:
    """Turn raw generated ids into a completion: cut at the first EOS, then at the first stop string."""
    ids = [int(i) for i in token_ids]
    reason = "length"
    end = next((i for i, token in enumerate(ids) if token in set(eos_ids)), None)
    if end is not None:
        ids, reason = ids[:end], "eos"
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
        cut_at_stop=place >= 0,
    )


def check_complete(requests: Sequence[Request], completions: Sequence[Completion]) -> list[Completion]:
    """Completions in the order of the requests; an assertion fails when one is missing, doubled or extra."""
    by_key = {completion.key: completion for completion in completions}
    assert len(by_key) == len(completions), "a completion occurs twice"
    missing = [request.key for request in requests if request.key not in by_key]
    assert not missing and len(by_key) == len(requests), f"rows lost or added: {missing[:5]} of {len(requests)}"
    return [by_key[request.key] for request in requests]
