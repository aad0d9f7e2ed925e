"""Run a transformers model over sequences in token-budget batches, halving the budget when memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from guardrail.core.batches import MAX_PADDING
from guardrail.models.loading import load_backbone
from guardrail.models.memory import Budget
from guardrail.similarity.representations.forward import Forward
from guardrail.similarity.representations.options import ExtractionOptions, ModelFacts
from guardrail.similarity.representations.sequences import TokenSequence

CPU_BATCH_TOKENS = 1024  # measured: activations stay in cache; 4096 costs up to 1.5 times as much
GPU_BATCH_TOKENS = 16384
GPU_MAX_BATCH_TOKENS = 1 << 18
Item = tuple[int, TokenSequence]


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
        self.budget = Budget(
            batch_tokens or (GPU_BATCH_TOKENS if on_gpu else CPU_BATCH_TOKENS), max_padding=MAX_PADDING
        )
        self.forward = Forward(backbone, options, facts.n_layers, pad_id)

    def run(self, items: list[Item]) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        sequences = [sequence for _, sequence in items]
        lengths = [sequence.n_tokens for sequence in sequences]

        def too_long(place: int) -> str:
            return (
                f"one row of {lengths[place]} tokens does not fit in memory; lower --max_length, or choose a smaller "
                "--torch_dtype"
            )

        for places, values in self.budget.run(
            lengths, lambda places: self.forward([sequences[i] for i in places]), too_long
        ):
            yield [items[i][0] for i in places], values
            if self.search:
                self._grow()

    def _grow(self) -> None:
        """Double the budget while twice the largest batch so far would fit into what is free."""
        allocated = torch.cuda.memory_allocated()
        batch_bytes = torch.cuda.max_memory_allocated() - allocated
        free_bytes = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - allocated
        roomy = 2.2 * batch_bytes < 0.9 * free_bytes and not self.budget.halved
        if roomy and self.budget.tokens < GPU_MAX_BATCH_TOKENS:
            self.budget.tokens *= 2
        else:
            self.search = False
