"""Vaccine: training on perturbed hidden states while aligning, so that later drift of them does less.

Huang et al. 2024 (arXiv 2402.01109), algorithm 1 and equation 4: with the hidden states e_1 ... e_L behind the blocks,

    epsilon_l = radius * grad_l / |(grad_1, ..., grad_L)|,  loss(e_1 + epsilon_1, ..., e_L + epsilon_L)

is what is differentiated. The gradients are taken in a pass of their own, past the engine, which allows one backward
pass per loss: two forward passes and a backward pass more per step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from guardrail.core.errors import UserError
from guardrail.core.options import option
from guardrail.training.defences import Defence

if TYPE_CHECKING:
    import torch

    from guardrail.training.batches import Batch


@dataclass(kw_only=True)
class Vaccine(Defence):
    """The perturbation is taken over all of a micro-batch's states on this rank."""

    resumable = True
    largest_stage = 2
    reads_states = True

    radius: float = option(2.0, "length of the perturbation, over all blocks together")
    states: list[Any] = field(default_factory=list, init=False, repr=False)
    shifts: list[Any] = field(default_factory=list, init=False, repr=False)

    def begin(self, engine: Any) -> None:
        model = engine.module
        if getattr(model, "is_gradient_checkpointing", False):
            raise UserError("--defence vaccine needs the states of a step; add --gradient_checkpointing False")
        from guardrail.models.blocks import find_blocks

        for place, block in enumerate(find_blocks(model, model.config.num_hidden_layers, "use another defence")):
            block.register_forward_hook(self._hook(place))

    def _hook(self, place: int) -> Any:
        def hook(_module: Any, _arguments: Any, output: Any) -> Any:
            state = output[0] if isinstance(output, tuple) else output
            if not state.requires_grad:  # a look at the model in between
                return None
            if self.shifts:
                state = state + self.shifts[place]
            else:
                self.states.append(state)
            return (state, *output[1:]) if isinstance(output, tuple) else state

        return hook

    def token_losses(self, losses: torch.Tensor, engine: Any, batch: Batch) -> torch.Tensor:
        import torch

        from guardrail.training.batches import token_losses

        self.states.clear()
        gradients = torch.autograd.grad(token_losses(engine.module, batch).sum(), self.states)
        self.states.clear()
        self.shifts = perturbation(gradients, self.radius)
        try:
            return token_losses(engine, batch)
        finally:
            self.shifts = []


def perturbation(gradients: tuple[torch.Tensor, ...], radius: float) -> list[torch.Tensor]:
    """``radius * grad_l / |grad|`` with the norm over all of them together; zeros where there is no gradient."""
    import torch

    norm = torch.stack([gradient.float().square().sum() for gradient in gradients]).sum().sqrt()
    scale = radius / norm.clamp(min=1e-12)
    return [(gradient * scale).to(gradient.dtype).detach() for gradient in gradients]
