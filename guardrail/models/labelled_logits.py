"""Logits of a causal LM at chosen tokens only: no two answers lie at the same positions, and a vocabulary is wide."""

from __future__ import annotations

from typing import Any

import torch


def logits_at(engine: Any, inputs: dict[str, Any], rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Logits (n, V) of the tokens at ``(rows[j], positions[j])``. ``engine`` is a causal LM, or wraps one as
    ``engine.module``.

    Hidden states are picked where they enter the head, so that the whole model still runs as one forward pass (ZeRO 3
    and checkpointing rely on it) and what a model does to its logits afterwards stays.
    """
    head = getattr(engine, "module", engine).get_output_embeddings()

    def pick(_module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (arguments[0][rows, positions][None], *arguments[1:])  # (B, T, D) -> (1, n, D)

    hook = head.register_forward_pre_hook(pick)
    try:
        logits: torch.Tensor = engine(**inputs, use_cache=False).logits
    finally:
        hook.remove()
    assert logits.shape[:2] == (1, len(rows)), "the model's logits come from its output embeddings"
    return logits[0]
