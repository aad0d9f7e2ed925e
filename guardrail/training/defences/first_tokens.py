"""Constrained fine-tuning: the distribution of an answer's first tokens may hardly move.

Qi et al. 2024, "Safety alignment should be made more than just a few tokens deep" (arXiv 2406.05946), equation 3:

    loss = - sum_t 2 / beta_t * log sigmoid(beta_t * log(p(y_t | x, y_<t) / p_aligned(y_t | x, y_<t)))

with beta_1 = 0.5, beta_t = 2 for 2 <= t <= 5 and beta_t = 0.1 behind (their section 4). A large beta stops a token's
gradient as soon as its probability has moved; for beta towards 0 it is the cross-entropy's. A copy of the aligned
model is held beside the trained one: weights once more, and one forward pass per step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from guardrail.core.options import option
from guardrail.training.defences import Defence

if TYPE_CHECKING:
    import torch

    from guardrail.training.batches import Batch

BETAS = ((1, 0.5), (5, 2.0), (None, 0.1))  # up to and including this token


@dataclass(kw_only=True)
class FirstTokens(Defence):
    """``strength`` scales every beta."""

    resumable = False
    largest_stage = 2

    strength: float = option(1.0, "1: the paper's betas; smaller: less constrained")
    reference: Any = field(default=None, init=False, repr=False)

    def begin(self, engine: Any) -> None:
        import copy

        self.reference = copy.deepcopy(engine.module).eval().requires_grad_(False)

    def token_losses(self, losses: torch.Tensor, engine: Any, batch: Batch) -> torch.Tensor:
        import torch

        from guardrail.training.batches import token_losses

        with torch.no_grad():
            aligned = token_losses(self.reference, batch)
        return constrained_losses(losses, aligned, self.strength * betas(answer_places(batch.rows, batch.positions)))


def answer_places(rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Number (n,) of each labelled token in its answer, from 1: an answer is a run of neighbouring positions."""
    import torch

    starts = torch.ones_like(positions, dtype=torch.bool)
    starts[1:] = (rows[1:] != rows[:-1]) | (positions[1:] != positions[:-1] + 1)
    index = torch.arange(len(positions), device=positions.device)
    return index - torch.where(starts, index, 0).cummax(0).values + 1


def betas(places: torch.Tensor) -> torch.Tensor:
    """The paper's beta of each token, (n,)."""
    import torch

    out = torch.full(places.shape, BETAS[-1][1], device=places.device)
    for last, beta in reversed(BETAS[:-1]):
        out[places <= last] = beta
    return out


def constrained_losses(losses: torch.Tensor, aligned: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """Equation 3 per token (n,); ``losses`` and ``aligned`` are cross-entropies, so their difference is a log ratio."""
    import torch.nn.functional as F

    return 2 / beta * F.softplus(-beta * (aligned - losses))
