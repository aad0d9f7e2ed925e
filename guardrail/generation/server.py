"""Generation through an OpenAI-compatible server: the prompt goes as token ids to ``/completions``.

The server needs to take token ids as prompts (vLLM, SGLang and the older OpenAI completion models do). Token ids of the
answer come back where the server can return them (vLLM); elsewhere the text is tokenised for counting only.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from guardrail.core.errors import UserError
from guardrail.core.openai_client import Client, Reply, resolve_base_url, run_parallel
from guardrail.core.ranks import world_size
from guardrail.generation.interface import Backend, Completion, Request, eos_ids_of, find_stop, row_seed
from guardrail.generation.options import SamplingOptions

CONCURRENCY = 32


class ServerBackend(Backend):
    """A model behind ``base_url``; ``model_name_or_path`` is where its tokenizer is."""

    name = "openai"

    def __init__(
        self,
        model_name_or_path: str,
        base_url: str | None = None,
        served_model_name: str | None = None,
        **common: Any,
    ) -> None:
        if world_size() > 1:
            raise UserError(f"a server needs one client, but there are {world_size()} processes; use plain python")
        super().__init__(model_name_or_path, **common)
        self.client = Client(resolve_base_url(base_url), timeout_sec=600.0)
        self.wanted_model = served_model_name
        self.knows_token_ids = True

    @functools.cached_property
    def model(self) -> str:
        return self.client.check_model(self.wanted_model)

    @functools.cached_property
    def context_tokens(self) -> int | None:  # type: ignore[override]
        """What the server says about its context (vLLM's ``max_model_len``)."""
        reply = self.client.request("models", None)
        entries = reply.body.get("data", []) if isinstance(reply.body, dict) else []
        return next((e.get("max_model_len") for e in entries if e.get("id") == self.model), None)

    @functools.cached_property
    def eos_ids(self) -> tuple[int, ...]:  # type: ignore[override]
        return eos_ids_of(self.tokenizer, None)

    def describe(self) -> dict[str, Any]:
        return {"backend": self.name, "served_model_name": self.model}

    def generate(self, requests: Sequence[Request], options: SamplingOptions) -> list[Completion]:
        """Complete ``requests``, several in flight. Raises ``UserError`` when one has no answer after all retries."""
        first = list(requests[:1])  # alone: it finds out what the server can do, before many requests fail
        done = [self._finish(request, self._ask(request, options)) for request in first]
        rest = list(requests[1:])
        replies = run_parallel([functools.partial(self._ask, r, options) for r in rest], CONCURRENCY)
        return done + [self._finish(rest[index], reply) for index, reply in replies]

    def _ask(self, request: Request, options: SamplingOptions) -> Reply:
        payload: dict[str, Any] = {"max_tokens": self.room(request, options), "temperature": 0}
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
        if self.knows_token_ids:
            extra: dict[str, Any] = {"return_token_ids": True}
            if self.stop_ids:
                extra["stop_token_ids"] = list(self.stop_ids)
            reply = self.client.complete(self.model, list(request.prompt_ids), **payload, **extra)
            if reply.error not in ("http_400", "http_422"):
                return reply
            self.knows_token_ids = False
        return self.client.complete(self.model, list(request.prompt_ids), **payload)

    def _finish(self, request: Request, reply: Reply) -> Completion:
        if reply.error is not None:
            raise UserError(
                f"the server at {self.client.base_url} gave no answer for row {request.id!r}: {reply.error} "
                f"{reply.detail} (after {reply.attempts} attempts); finished batches are kept, run the command again"
            )
        choice = reply.body["choices"][0]
        stopped = choice.get("finish_reason") == "stop"
        # a server may leave the marker out of text and ids, and then says what it stopped at
        reason = choice.get("stop_reason")
        cut = stopped and (isinstance(reason, str) or reason in self.stop_ids)
        ids = choice.get("token_ids")
        if ids is not None:
            done = self.finish(request, ids)
            text, ids, cut = done.text, done.token_ids, cut or done.cut_at_stop
        else:
            place = find_stop(choice["text"], self.stops)
            text, cut = choice["text"] if place < 0 else choice["text"][:place], cut or place >= 0
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
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
