"""Booster: lower what one harmful step would gain, while aligning (Huang et al. 2024, arXiv 2409.01586).

With h the loss on harmful rows, their equation 1 adds ``strength * (h(w) - h(w - step * grad h / |grad h|))`` to the
loss; its gradient, with the second-order term left out (their equation 4), is added to the step's:

    strength * (grad h(w) - grad h(w - step * grad h(w) / |grad h(w)|))

Two more forward and backward passes per step, on ``batch_rows`` harmful rows, which nothing is trained to answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from guardrail.core.cli import positive_int
from guardrail.core.errors import UserError
from guardrail.core.options import option
from guardrail.training.defences.further_rows import FurtherRows, mean_loss
from guardrail.training.defences.lisa import trained

if TYPE_CHECKING:
    import torch

    from guardrail.training.batches import Batch


@dataclass(kw_only=True)
class Booster(FurtherRows):
    """Gradients have to lie with their parameters: ZeRO 0 without 16-bit master weights."""

    largest_stage = 0
    needs_float32 = True

    strength: float = option(5.0, "weight of the regulariser")
    step: float = option(0.1, "length of the harmful step")
    batch_rows: int = option(8, "harmful rows per step", parse=positive_int)
    turn: int = field(default=0, init=False)

    @property
    def needs(self) -> str:
        return "harmful rows: harmful requests with answers that comply"

    def gradients(self, engine: Any) -> None:
        weights = trained(engine)
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        if len(gradients) < len(weights):
            raise UserError("--defence booster needs gradients beside the weights; use ds_z0_config.json, --bf16 False")
        batch = self.batch(self.batch_rows, self.turn, engine.device)
        self.turn += 1
        for gradient, extra in zip(gradients, regulariser(engine.module, weights, batch, self.step), strict=True):
            gradient += self.strength * extra


def regulariser(model: Any, weights: list[torch.Tensor], batch: Batch, step: float) -> list[torch.Tensor]:
    """``grad h(w) - grad h(w - step * grad h(w) / |grad h(w)|)`` per weight; the weights are as before afterwards."""
    import torch

    here = torch.autograd.grad(mean_loss(model, batch), weights, allow_unused=False)
    norm = torch.stack([gradient.float().square().sum() for gradient in here]).sum().sqrt().clamp(min=1e-12)
    kept = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight, gradient in zip(weights, here, strict=True):
            weight -= step / norm * gradient
    there = torch.autograd.grad(mean_loss(model, batch), weights, allow_unused=False)
    with torch.no_grad():
        for weight, old in zip(weights, kept, strict=True):
            weight.copy_(old)
    return [first - second for first, second in zip(here, there, strict=True)]
