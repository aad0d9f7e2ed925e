"""Run a transformers model over sequences in token-budget batches, halving the budget when memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from guardrail.core.cli import log
from guardrail.core.errors import UserError
from guardrail.models.loading import load_backbone
from guardrail.similarity.representations.batches import batch_end
from guardrail.similarity.representations.forward import Forward
from guardrail.similarity.representations.options import ExtractionOptions, ModelFacts
from guardrail.similarity.representations.sequences import TokenSequence

CPU_BATCH_TOKENS = 1024  # measured: activations stay in cache; 4096 costs up to 1.5 times as much
GPU_BATCH_TOKENS = 16384
GPU_MAX_BATCH_TOKENS = 1 << 18
Item = tuple[int, TokenSequence]


def out_of_memory(error: BaseException) -> bool:
    """Is this torch's way of saying that memory ran out (CUDA or the CPU allocator)?"""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "not enough memory" in text)


class HfRunner:
    """The default backend. ``run`` yields ``(row numbers, {view: (B, D)})`` in any order.

    ``batch_tokens`` of ``None``: 1024 padded tokens on a CPU; on a GPU it starts at 16k and doubles as long as the
    peak memory of the largest batch so far leaves room for twice as much.
    """

    def __init__(
        self,
        model: str,
        options: ExtractionOptions,
        facts: ModelFacts,
        tokenizer: Any,
        batch_tokens: int | None,
        trust_remote_code: bool = False,
    ) -> None:
        on_gpu = torch.cuda.is_available()
        self.dtype = options.torch_dtype if options.torch_dtype != "auto" else ("bfloat16" if on_gpu else "float32")
        backbone = load_backbone(model, self.dtype, trust_remote_code=trust_remote_code)
        self._set_up(backbone, options, facts, tokenizer.pad_token_id or 0, batch_tokens)

    @classmethod
    def from_module(
        cls,
        backbone: torch.nn.Module,
        options: ExtractionOptions,
        facts: ModelFacts,
        pad_id: int,
        batch_tokens: int | None = None,
    ) -> HfRunner:
        """A runner for a backbone that is in memory already."""
        runner = cls.__new__(cls)
        runner.dtype = str(next(backbone.parameters()).dtype).removeprefix("torch.")
        runner._set_up(backbone, options, facts, pad_id, batch_tokens)
        return runner

    def _set_up(
        self,
        backbone: torch.nn.Module,
        options: ExtractionOptions,
        facts: ModelFacts,
        pad_id: int,
        batch_tokens: int | None,
    ) -> None:
        config: Any = backbone.config
        config = getattr(config, "text_config", None) or config
        on_gpu = next(backbone.parameters()).device.type == "cuda"
        self.dim = int(config.hidden_size)
        self.search = batch_tokens is None and on_gpu
        self.batch_tokens = batch_tokens or (GPU_BATCH_TOKENS if on_gpu else CPU_BATCH_TOKENS)
        self.forward = Forward(backbone, options, facts.n_layers, pad_id)

    def run(self, items: list[Item]) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        items = sorted(items, key=lambda item: -item[1].n_tokens)
        lengths = [sequence.n_tokens for _, sequence in items]
        start = 0
        while start < len(items):
            end = batch_end(lengths, start, self.batch_tokens)
            try:
                values = self.forward([sequence for _, sequence in items[start:end]])
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                values = None
            if values is None:  # outside the except block: the traceback would keep the failed batch in memory
                self._back_off(lengths[start:end])
                continue
            yield [row for row, _ in items[start:end]], values
            start = end
            if self.search:
                self._grow()

    def _back_off(self, lengths: list[int]) -> None:
        if len(lengths) == 1:
            raise UserError(
                f"one row of {lengths[0]} tokens does not fit in memory; lower --max_length, or choose a smaller "
                "--torch_dtype"
            )
        self.search = False
        self.batch_tokens = max(lengths[0], lengths[0] * len(lengths) // 2)
        log(f"out of memory with {len(lengths)} rows of up to {lengths[0]} tokens; now {self.batch_tokens} a batch")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _grow(self) -> None:
        """Double the budget while twice the largest batch so far would fit into what is free."""
        allocated = torch.cuda.memory_allocated()
        batch_bytes = torch.cuda.max_memory_allocated() - allocated
        free_bytes = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - allocated
        if 2.2 * batch_bytes < 0.9 * free_bytes and self.batch_tokens < GPU_MAX_BATCH_TOKENS:
            self.batch_tokens *= 2
        else:
            self.search = False
