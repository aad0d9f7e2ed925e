"""The vLLM backend: hidden states through its pooling mode; its own batching, one process of ours.

Gives the last layer after the final norm at one token, not normalised: every position is the last token of a prefix.
Equal to the transformers backend within floating-point noise (tests/representations/test_vllm.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from guardrail.generation.vllm_engine import lora_arguments, make_engine
from guardrail.similarity.representations.options import ExtractionOptions, ModelFacts, view_name
from guardrail.similarity.representations.sequences import TokenSequence

Item = tuple[int, TokenSequence]


class VllmRunner:
    """Same interface as ``HfRunner``; ``batch_tokens`` bounds the tokens that vLLM schedules in one step."""

    def __init__(
        self,
        model: str,
        options: ExtractionOptions,
        facts: ModelFacts,
        tokenizer: Any,
        batch_tokens: int | None,
        trust_remote_code: bool = False,
    ) -> None:
        from vllm.config import PoolerConfig

        self.options, self.layer = options, facts.n_layers
        self.dtype, self.model = options.torch_dtype, model
        limits: dict[str, Any] = (
            {} if batch_tokens is None else {"max_num_batched_tokens": max(batch_tokens, options.max_length)}
        )
        self.engine = make_engine(
            model,
            self.dtype,
            runner="pooling",
            convert="embed",
            pooler_config=PoolerConfig(seq_pooling_type="LAST", use_activation=False),
            max_model_len=options.max_length,
            trust_remote_code=trust_remote_code,
            **limits,
        )
        self.dim = int(self.engine.llm_engine.model_config.get_hidden_size())

    def run(self, items: list[Item]) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        from vllm import TokensPrompt

        out: dict[str, torch.Tensor] = {}
        for position in self.options.positions:
            # a causal model's state at a token depends on the tokens up to it: the prefix's last token is it
            prefixes = [sequence.input_ids[: sequence.spans[position][1]] for _, sequence in items]
            prompts = [TokensPrompt(prompt_token_ids=ids) for ids in prefixes]
            results = self.engine.embed(prompts, use_tqdm=False, **lora_arguments(self.model))
            out[view_name(self.layer, position)] = torch.tensor([result.outputs.embedding for result in results])
        if items:
            yield [row for row, _ in items], out
