"""Generation through an OpenAI-compatible server: the prompt goes as token ids to ``/completions``.

The server needs to take token ids as prompts (vLLM, SGLang and the older OpenAI completion models do). Token ids of the
answer come back where the server can return them (vLLM); elsewhere the text is tokenised for counting only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from guardrail.core.errors import UserError
from guardrail.core.openai_client import Client, Reply, resolve_base_url, run_parallel
from guardrail.core.ranks import world_size
from guardrail.generation.interface import (
    Completion,
    Request,
    SamplingOptions,
    decode_answer,
    find_stop,
    finish_completion,
    row_seed,
)
from guardrail.models.loading import load_tokenizer

UNIT_ROWS = 256
CONCURRENCY = 32


class ServerBackend:
    """A model behind ``base_url``; ``model_name_or_path`` is where its tokenizer is."""

    name = "openai"

    def __init__(
        self,
        model_name_or_path: str,
        base_url: str | None = None,
        served_model_name: str | None = None,
        stops: tuple[str, ...] = (),
        trust_remote_code: bool = False,
        unit_rows: int = UNIT_ROWS,
        unit_tokens: int = 1 << 40,
    ) -> None:
        if world_size() > 1:
            raise UserError(f"a server needs one client, but there are {world_size()} processes; use plain python")
        self.model_name_or_path = model_name_or_path
        self.client = Client(resolve_base_url(base_url), timeout_sec=600.0)
        self.wanted_model = served_model_name
        self.stops = stops
        self.trust_remote_code = trust_remote_code
        self.unit_rows = unit_rows
        self.unit_tokens = unit_tokens
        self.returns_token_ids = True

    @functools.cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.model_name_or_path, self.trust_remote_code)

    @functools.cached_property
    def model(self) -> str:
        return self.client.check_model(self.wanted_model)

    @functools.cached_property
    def context_tokens(self) -> int | None:
        """What the server says about its context (vLLM's ``max_model_len``)."""
        reply = self.client.request("models", None)
        entries = reply.body.get("data", []) if isinstance(reply.body, dict) else []
        return next((e.get("max_model_len") for e in entries if e.get("id") == self.model), None)

    @functools.cached_property
    def eos_ids(self) -> tuple[int, ...]:
        return (self.tokenizer.eos_token_id,) if self.tokenizer.eos_token_id is not None else ()

    def describe(self) -> dict[str, Any]:
        return {"backend": self.name, "served_model_name": self.model}

    def generate(
        self,
        requests: Sequence[Request],
        options: SamplingOptions,
        on_batch: Callable[[list[Completion]], None] | None = None,
    ) -> list[Completion]:
        """Complete ``requests``, several in flight. Raises ``UserError`` when one has no answer after all retries."""
        first = list(requests[:1])  # alone: it finds out what the server can do, before many requests fail
        done = [self._finish(request, self._ask(request, options)) for request in first]
        rest = list(requests[1:])
        replies = run_parallel([functools.partial(self._ask, r, options) for r in rest], CONCURRENCY)
        done += [self._finish(rest[index], reply) for index, reply in replies]
        if on_batch is not None:
            on_batch(done)
        return done

    def _ask(self, request: Request, options: SamplingOptions) -> Reply:
        payload: dict[str, Any] = {"max_tokens": self._room(request, options), "temperature": 0}
        if options.do_sample:
            payload |= {
                "temperature": options.temperature,
                "top_p": options.top_p,
                "seed": row_seed(options.seed, request.id, request.sample),
            }
            if options.top_k:
                payload["top_k"] = options.top_k
        if self.stops:
            payload["stop"] = list(self.stops[:4])  # OpenAI's limit; the text is cut at all of them here
        if self.returns_token_ids:
            reply = self.client.complete(self.model, list(request.prompt_ids), **payload, return_token_ids=True)
            if reply.error not in ("http_400", "http_422"):
                return reply
            self.returns_token_ids = False
        return self.client.complete(self.model, list(request.prompt_ids), **payload)

    def _room(self, request: Request, options: SamplingOptions) -> int:
        if self.context_tokens is None:
            return options.max_new_tokens
        room = min(options.max_new_tokens, self.context_tokens - len(request.prompt_ids))
        if room < 1:
            raise UserError(
                f"row {request.id!r}: its prompt has {len(request.prompt_ids)} tokens, the model's context "
                f"{self.context_tokens}; shorten the prompt or serve a model with a longer context"
            )
        return room

    def _finish(self, request: Request, reply: Reply) -> Completion:
        if reply.error is not None:
            raise UserError(
                f"the server at {self.client.base_url} gave no answer for row {request.id!r}: {reply.error} "
                f"{reply.detail} (after {reply.attempts} attempts); finished batches are kept, run the command again"
            )
        choice = reply.body["choices"][0]
        stopped = choice.get("finish_reason") == "stop"
        at_marker = stopped and isinstance(choice.get("stop_reason"), str)
        ids = choice.get("token_ids")
        if ids is not None:
            done = finish_completion(self.tokenizer, request, ids, self.eos_ids, self.stops)
            text, ids, cut = done.text, done.token_ids, done.cut_at_stop
        else:
            text = choice["text"]
            place = find_stop(text, self.stops)
            cut = place >= 0
            text = text[:place] if cut else text
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if at_marker and not cut:  # a server may leave the marker out of text and ids
            cut = True
            text = text if choice.get("token_ids") is None else decode_answer(self.tokenizer, request.prompt_ids, ids)
        return Completion(
            id=request.id,
            sample=request.sample,
            text=text,
            token_ids=list(ids),
            finish_reason="stop" if cut else "eos" if stopped else "length",
            n_prompt_tokens=len(request.prompt_ids),
            n_completion_tokens=len(ids),
            cut_at_stop=cut,
        )
