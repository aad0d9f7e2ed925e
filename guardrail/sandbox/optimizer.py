"""Muon for the hidden matrices of the tiny models: about a third fewer steps than AdamW for the same loss here.

Momentum, then five Newton-Schulz steps that bring the update's singular values close to one (Jordan et al., 2024). In
float32 and without ``torch.optim.Muon``, whose bfloat16 steps differ between machine types more than needed.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

from guardrail.sandbox.exchange import Exchange

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def orthogonalise(updates: torch.Tensor) -> torch.Tensor:
    """``(n, rows, columns)`` matrices with singular values near one and the same singular vectors."""
    a, b, c = COEFFICIENTS
    wide = updates.shape[1] <= updates.shape[2]
    x = updates if wide else updates.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """For 2-D parameters only; equal shapes are orthogonalised in one batch, each rank doing its share of them."""

    def __init__(self, parameters: Any, exchange: Exchange, lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})
        self.exchange = exchange

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        mine = slice(self.exchange.rank, None, self.exchange.ranks)
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                average = state.setdefault("average", torch.zeros_like(parameter))
                average.lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(average, group["momentum"])  # Nesterov
                by_shape[tuple(parameter.shape)].append((parameter, update))
            flat = torch.zeros(sum(p.numel() for pairs in by_shape.values() for p, _ in pairs))
            parts = flat.split([pairs[0][0].numel() * len(pairs) for pairs in by_shape.values()])
            for part, pairs in zip(parts, by_shape.values(), strict=True):
                if updates := [update for _, update in pairs][mine]:
                    part.view(len(pairs), *updates[0].shape)[mine] = orthogonalise(torch.stack(updates))
            places = iter(self.exchange.sums(flat).split([p.numel() for pairs in by_shape.values() for p, _ in pairs]))
            for (rows, columns), pairs in by_shape.items():
                scale = group["lr"] * max(1.0, rows / columns) ** 0.5
                for parameter, _ in pairs:
                    parameter.add_(next(places).view_as(parameter), alpha=-scale)  # every other rank added zeros
