"""Hidden states of a transformers model: the requested layers at the requested positions, no logits, no loss.

``Forward`` is one pass over one batch; ``HfRunner`` makes the batches and halves them when memory runs out.
Shapes: B batch, T tokens, D hidden.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from guardrail.core.batches import MAX_PADDING
from guardrail.core.errors import UserError
from guardrail.models.blocks import find_blocks
from guardrail.models.last_block import feed_forward_at
from guardrail.models.loading import load_backbone
from guardrail.models.memory import Budget, free_bytes
from guardrail.similarity.representations.options import ExtractionOptions, ModelFacts, view_name
from guardrail.similarity.representations.sequences import TokenSequence

CPU_BATCH_TOKENS = 1024  # measured: activations stay in cache; 4096 costs up to 1.5 times as much
GPU_BATCH_TOKENS = 16384
GPU_MAX_BATCH_TOKENS = 1 << 18
Item = tuple[int, TokenSequence]


class _Enough(Exception):
    """Raised by the hook of the last layer that is needed: the blocks behind it are not computed."""


NO_LAYER = "use --layer -1"


class Forward:
    """Callable on batches of sequences; returns ``{view: (B, D) float32 on CPU}``.

    In the last block that is needed, the feed-forward part of a causal LM sees only the positions that are read:
    nothing looks at the others any more. ``padding_side`` is for tests and for models that want the left; results do
    not depend on it.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        options: ExtractionOptions,
        n_layers: int,
        pad_id: int,
        padding_side: str = "right",
    ) -> None:
        self.model, self.options, self.pad_id, self.padding_side = model, options, pad_id, padding_side
        self.device = next(model.parameters()).device
        self.n_layers = n_layers
        self.calls_whole_model = n_layers in options.layers and options.final_norm
        inner = [layer for layer in options.layers if layer < n_layers or not options.final_norm]
        self._last_inner = max(inner, default=-1)
        self._batch: tuple[torch.Tensor, torch.Tensor] | None = None
        self._out: dict[str, torch.Tensor] = {}
        self._inner = inner
        self._blocks = list(find_blocks(model, n_layers, NO_LAYER)) if inner else []
        self._last_block = self._find_last_block()

    def _find_last_block(self) -> torch.nn.Module | None:
        """The last block that is computed, if only single positions of it are read: none for encoders and means."""
        last = max(self.options.layers) - 1
        means = any(position.endswith("mean") for position in self.options.positions)
        if self.options.architecture != "causal" or means or last < 0:
            return None
        try:
            return (self._blocks or find_blocks(self.model, self.n_layers, NO_LAYER))[last]
        except UserError:
            return None

    @contextlib.contextmanager
    def _hooked(self) -> Iterator[None]:
        """Hooks for one call: several objects may share a model."""
        with contextlib.ExitStack() as stack:
            for layer in self._inner:
                if layer == 0:
                    hook = self._blocks[0].register_forward_pre_hook(self._before_first_block, with_kwargs=True)
                else:
                    hook = self._blocks[layer - 1].register_forward_hook(self._after_block(layer))
                stack.callback(hook.remove)
            assert self._batch is not None
            stack.enter_context(feed_forward_at(self._last_block, self._batch[0].T))
            yield

    def _before_first_block(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._keep(0, args[0] if args else kwargs["hidden_states"])

    def _after_block(self, layer: int) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            self._keep(layer, output[0] if isinstance(output, tuple) else output)

        return hook

    def _keep(self, layer: int, hidden: torch.Tensor) -> None:
        """Pool one layer's (B, T, D) states at every position, then let it go."""
        assert self._batch is not None
        starts, ends = self._batch  # each (positions, B)
        B, T, _ = hidden.shape
        rows = torch.arange(B, device=hidden.device)
        for number, position in enumerate(self.options.positions):
            start, end = starts[number], ends[number]
            if not position.endswith("mean"):
                pooled = hidden[rows, start].float()  # (B, D)
            else:
                places = torch.arange(T, device=hidden.device)
                inside = (places >= start[:, None]) & (places < end[:, None])  # (B, T)
                weight = inside.float() / (end - start)[:, None]
                # a product in the model's dtype would round each mean: sum in float32
                pooled = torch.einsum("bt,btd->bd", weight, hidden.float())
            self._out[view_name(layer, position)] = pooled
        if layer == self._last_inner and not self.calls_whole_model:
            raise _Enough

    @torch.inference_mode()
    def __call__(self, sequences: list[TokenSequence]) -> dict[str, torch.Tensor]:
        B, T = len(sequences), max(s.n_tokens for s in sequences)
        ids = torch.full((B, T), self.pad_id, dtype=torch.long)
        mask = torch.zeros((B, T), dtype=torch.long)
        starts = torch.zeros((len(self.options.positions), B), dtype=torch.long)
        ends = torch.zeros_like(starts)
        for b, sequence in enumerate(sequences):
            offset = T - sequence.n_tokens if self.padding_side == "left" else 0
            ids[b, offset : offset + sequence.n_tokens] = torch.tensor(sequence.input_ids)
            mask[b, offset : offset + sequence.n_tokens] = 1  # from lengths, never from ids != pad
            for number, position in enumerate(self.options.positions):
                start, end = sequence.spans[position]
                starts[number, b], ends[number, b] = start + offset, end + offset
        self._batch = (starts.to(self.device), ends.to(self.device))
        self._out = {}
        inputs: dict[str, Any] = {"input_ids": ids.to(self.device)}
        if self.options.architecture == "encoder":
            inputs["attention_mask"] = mask.to(self.device)
        else:
            inputs["use_cache"] = False
            # Right padding lies behind every real token, so a causal model needs no mask for it (and attention
            # takes the fused causal path). Left padding needs the mask, and positions that start at the first token.
            if self.padding_side == "left":
                inputs["attention_mask"] = mask.to(self.device)
                inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0).to(self.device)
        with self._hooked(), contextlib.suppress(_Enough):
            hidden = self.model(**inputs).last_hidden_state  # (B, T, D)
            if self.calls_whole_model:
                self._keep(self.n_layers, hidden)
        self._batch = None
        return {view: self._out[view].cpu() for view in self.options.views}


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
        self.dtype = options.torch_dtype
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
        batch_bytes = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
        roomy = 2.2 * batch_bytes < 0.9 * free_bytes(torch.device("cuda")) and not self.budget.halved
        if roomy and self.budget.tokens < GPU_MAX_BATCH_TOKENS:
            self.budget.tokens *= 2
        else:
            self.search = False
