"""Generation with Hugging Face models: length-sorted token-budget batches, rows leave the batch when they end.

One forward per token for the rows still running. Left padding; masks come from lengths. Random numbers are drawn per
row from its own seed, so batch composition cannot change a sample beyond floating-point noise.

Limits: one device per process (no tensor parallelism: that is vLLM's job); no beam search, no penalties.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from guardrail.core.batches import length_batches
from guardrail.generation.context import context_tokens
from guardrail.generation.interface import Backend, Completion, Request, decode_answer, eos_ids_of, find_stop, row_seed
from guardrail.generation.options import SamplingOptions
from guardrail.models.loading import load_causal_lm
from guardrail.models.memory import Budget

STOP_CHECK_EVERY_STEPS = 8  # a next-turn marker is looked for this often; the text is cut exactly either way
COMPACT_BELOW_FRACTION = 0.75  # finished rows leave the batch when fewer than this share still run


class HFBackend(Backend):
    """``transformers`` in this process, on this rank's GPU or the CPU."""

    name = "hf"
    many_processes = True

    def __init__(
        self, model_name_or_path: str, torch_dtype: str = "bfloat16", device: Any = None, **common: Any
    ) -> None:
        super().__init__(model_name_or_path, **{"unit_rows": 64, "unit_tokens": 32768, **common})
        self.torch_dtype = torch_dtype
        self.device = device
        self.budget = Budget(self.unit_tokens, self.unit_rows)

    def use(self, model: Any, tokenizer: Any) -> None:
        """Generate with a model that is in memory already, as it is: whole, on one device, in its own dtype."""
        self.model, self.tokenizer = model, tokenizer
        self.context_tokens = getattr(model.config, "max_position_embeddings", None)
        self.torch_dtype = str(next(model.parameters()).dtype).removeprefix("torch.")

    @functools.cached_property
    def model(self) -> Any:
        return load_causal_lm(self.model_name_or_path, self.torch_dtype, self.device, self.trust_remote_code)

    @functools.cached_property
    def eos_ids(self) -> tuple[int, ...]:  # type: ignore[override]  # a value that is computed once
        return eos_ids_of(self.tokenizer, getattr(self.model, "generation_config", None))

    @functools.cached_property
    def context_tokens(self) -> int | None:  # type: ignore[override]
        return context_tokens(self.model_name_or_path)

    def describe(self) -> dict[str, Any]:
        return {"backend": self.name, "torch_dtype": self.torch_dtype}

    def generate(self, requests: Sequence[Request], options: SamplingOptions) -> list[Completion]:
        """Complete ``requests``; see ``Backend``. Raises ``UserError`` for a prompt as long as the context."""

        def too_long(index: int) -> str:
            return (
                f"out of memory with a single row of {len(requests[index].prompt_ids)} prompt tokens and "
                f"{options.max_new_tokens} new ones; lower --max_new_tokens or use a smaller dtype"
            )

        def compute(rows: list[int]) -> list[Completion]:
            return self._generate_batch([requests[i] for i in rows], options)

        lengths = [len(request.prompt_ids) + options.max_new_tokens for request in requests]
        return [one for _, done in self.budget.run(lengths, compute, too_long) for one in done]

    def top_next_tokens(self, prompts: Sequence[Sequence[int]], k: int = 20) -> list[list[tuple[int, float]]]:
        """The ``k`` likeliest next tokens of each prompt with their probabilities."""
        import torch

        out: list[list[tuple[int, float]]] = [[] for _ in prompts]
        for rows in length_batches([len(prompt) for prompt in prompts], self.budget.tokens, self.unit_rows):
            ids, mask, positions = self._left_padded([prompts[i] for i in rows], 0)
            with torch.inference_mode():
                logits = self.model(
                    input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=1
                ).logits[:, -1]
            values, tokens = torch.softmax(logits.float(), -1).topk(min(k, logits.shape[-1]), -1)
            for row, p, t in zip(rows, values.tolist(), tokens.tolist(), strict=True):
                out[row] = list(zip(t, p, strict=True))
        return out

    def _left_padded(self, prompts: Sequence[Sequence[int]], extra: int) -> tuple[Any, Any, Any]:
        """Ids and positions ``(B, T)``, mask ``(B, T + extra)`` of left-padded prompts; the mask comes from lengths."""
        import torch

        device = next(self.model.parameters()).device
        B, T = len(prompts), max(map(len, prompts))
        ids = torch.full((B, T), self.tokenizer.pad_token_id or 0, dtype=torch.long)
        mask = torch.ones((B, T + extra), dtype=torch.long)
        for i, prompt in enumerate(prompts):
            ids[i, T - len(prompt) :] = torch.tensor(prompt)
            mask[i, : T - len(prompt)] = 0
        positions = (mask[:, :T].cumsum(1) - 1).clamp_(min=0)
        return ids.to(device), mask.to(device), positions.to(device)

    def _generate_batch(self, unit: list[Request], options: SamplingOptions) -> list[Completion]:
        import torch

        from guardrail.generation.cache import make_cache

        model = self.model
        device = next(model.parameters()).device
        B = len(unit)
        room = [self.room(request, options) for request in unit]
        T = max(len(r.prompt_ids) for r in unit)
        steps = max(room)
        ends = {*self.eos_ids, *self.stop_ids}

        ids, mask, positions = self._left_padded([r.prompt_ids for r in unit], steps)
        padded = min(len(r.prompt_ids) for r in unit) < T
        next_position = torch.tensor([len(r.prompt_ids) for r in unit], device=device)
        uniforms = _row_uniforms(unit, options, steps).to(device) if options.do_sample else None

        produced: list[list[int]] = [[] for _ in unit]
        alive = list(range(B))  # rows of `unit` still in the batch, in batch order
        running = [True] * B
        with torch.inference_mode():
            cache = make_cache(model.config, T + steps)
            for step in range(steps):
                out = model(
                    input_ids=ids,
                    attention_mask=mask[:, : T + step] if padded else None,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                logits = out.logits[:, -1].float()  # (B, V)
                if uniforms is None:
                    token = logits.argmax(-1)
                else:
                    token = sample_tokens(logits, options, uniforms[:, step])
                check_stops = bool(self.stops) and (step + 1) % STOP_CHECK_EVERY_STEPS == 0
                for row, value in zip(alive, token.tolist(), strict=True):
                    if not running[row]:
                        continue
                    produced[row].append(value)
                    ended = value in ends or len(produced[row]) >= room[row]
                    if check_stops and not ended:
                        ended = self._has_stop(unit[row], produced[row])
                    running[row] = not ended
                keep = [i for i, row in enumerate(alive) if running[row]]
                if not keep or step + 1 == steps:
                    break
                ids, positions = token[:, None], next_position[:, None]
                if len(keep) < COMPACT_BELOW_FRACTION * len(alive):
                    index = torch.tensor(keep, device=device)
                    cache.batch_select_indices(index)
                    ids, positions, mask = ids[index], positions[index], mask[index]
                    next_position = next_position[index]
                    uniforms = uniforms[index] if uniforms is not None else None
                    alive = [alive[i] for i in keep]
                next_position = next_position + 1
        return [self.finish(request, tokens) for request, tokens in zip(unit, produced, strict=True)]

    def _has_stop(self, request: Request, tokens: list[int]) -> bool:
        """Is a next-turn marker in the newest part of the answer? (Older parts were looked at before.)"""
        longest = max(len(stop) for stop in self.stops)
        recent = tokens[-(longest + STOP_CHECK_EVERY_STEPS) :]  # a token decodes to at least one character or nothing
        before = [*request.prompt_ids, *tokens[: len(tokens) - len(recent)]]
        return find_stop(decode_answer(self.tokenizer, before, recent), self.stops) >= 0


def _row_uniforms(unit: Sequence[Request], options: SamplingOptions, steps: int) -> Any:
    """``(B, steps)`` uniform numbers; row i depends on (seed, id, sample) alone, also not on ``steps``."""
    import torch

    rows = []
    for request in unit:
        generator = torch.Generator().manual_seed(row_seed(options.seed, request.id, request.sample))
        rows.append(torch.rand(options.max_new_tokens, generator=generator, dtype=torch.float64)[:steps])
    return torch.stack(rows)


def sample_tokens(logits: Any, options: SamplingOptions, uniforms: Any) -> Any:
    """One token a row from ``logits`` ``(B, V)`` and ``uniforms`` ``(B,)``: inverse of the cumulative distribution.

    Temperature, then the ``top_k`` largest, then the smallest set of them whose mass reaches ``top_p``
    (the token that crosses it stays in), renormalised - the order and rule of ``transformers``' samplers.
    """
    import torch

    V = logits.shape[-1]
    k = min(options.top_k, V) if options.top_k else V
    values, tokens = torch.topk(logits.double() / options.temperature, k, dim=-1)  # sorted, largest first
    probabilities = torch.softmax(values, dim=-1)  # (B, k)
    if options.top_p < 1:
        before = probabilities.cumsum(-1) - probabilities
        probabilities = torch.where(before < options.top_p, probabilities, torch.zeros_like(probabilities))
    cumulative = probabilities.cumsum(-1)
    place = (cumulative <= uniforms[:, None].to(cumulative.dtype) * cumulative[:, -1:]).sum(-1)
    last = (probabilities > 0).sum(-1) - 1  # rounding must not pick a token of probability zero
    return tokens.gather(-1, torch.minimum(place, last)[:, None])[:, 0]
