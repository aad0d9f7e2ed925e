"""Less work in the last transformer block: its feed-forward part only at the positions that are read.

Nothing looks at the other positions any more, and a feed-forward layer works on each position alone. Saves most of one
feed-forward layer per pass: 8% of an 8-layer model's work, 2% of a 32-layer one's.

Shapes: B batch, T tokens, P positions, D hidden.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def dense_mlp(block: torch.nn.Module) -> torch.nn.Module | None:
    """The block's feed-forward part, if it is plainly linear layers and an activation; else None."""
    mlp = getattr(block, "mlp", None)
    if not isinstance(mlp, torch.nn.Module):
        return None
    inside = list(mlp.children())
    dense = all(isinstance(m, torch.nn.Linear) or not list(m.parameters()) for m in inside)
    return mlp if inside and dense else None


@contextlib.contextmanager
def feed_forward_at(block: torch.nn.Module | None, places: torch.Tensor) -> Iterator[None]:
    """Inside, ``block``'s feed-forward part sees (B, P) ``places`` only and adds nothing elsewhere.

    A block of another build (mixture of experts, convolutions as layers) or None is left as it is.
    """
    mlp = dense_mlp(block) if block is not None else None
    if mlp is None:
        yield
        return
    whole = mlp.forward

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        index = places[..., None].expand(-1, -1, hidden.shape[2])  # (B, P, D)
        return torch.zeros_like(hidden).scatter_(1, index, whole(hidden.gather(1, index)))

    mlp.forward = forward
    try:
        yield
    finally:
        mlp.forward = whole
