"""Lisa: bi-state optimisation with a proximal term (Huang et al. 2024, arXiv 2405.18641, algorithm 2, equation 2).

The training goes to and fro between two states: ``task_steps`` steps on the task's rows, ``safety_steps`` steps on
safety rows. In each of them

    loss + rho / 2 * |w - w_other|^2

is minimised, where ``w_other`` are the weights with which the other state ended (at first those of the aligned model).
A safety step takes the place of a step on the task's rows, so that the number of steps stays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from guardrail.core.cli import positive_int
from guardrail.core.options import option
from guardrail.training.config import natural
from guardrail.training.defences.further_rows import FurtherRows, accumulation, mean_loss

if TYPE_CHECKING:
    import torch

    from guardrail.training.batches import Batch


@dataclass(kw_only=True)
class Lisa(FurtherRows):
    """The states follow each other by the number of the step, beginning with the task's."""

    largest_stage = 2

    safety_steps: int = option(1, "optimizer steps on safety rows in a row", parse=natural)
    task_steps: int = option(9, "optimizer steps on the task's rows in a row", parse=positive_int)
    rho: float = option(1.0, "weight of the proximal term")
    batch_rows: int = option(8, "safety rows per micro-batch", parse=positive_int)
    other: list[Any] = field(default_factory=list, init=False, repr=False)
    done: int = field(default=0, init=False)
    turn: int = field(default=0, init=False)

    def begin(self, engine: Any) -> None:
        self.other = copies(engine)

    def is_safety_step(self, step: int) -> bool:
        """Whether step ``step`` (from 0) is one on safety rows."""
        return step % (self.task_steps + self.safety_steps) >= self.task_steps

    def loss(self, loss: torch.Tensor, engine: Any, batch: Batch) -> torch.Tensor:
        n_micro = accumulation(engine)
        if self.is_safety_step(self.done):
            loss = mean_loss(engine, self.batch(self.batch_rows, self.turn, engine.device)) / n_micro
            self.turn += 1
        return loss + proximal_term(trained(engine), self.other, self.rho) / n_micro

    def after_step(self, engine: Any, step: int) -> None:
        self.done = step
        if self.is_safety_step(step) != self.is_safety_step(step - 1):  # the other state begins here
            self.other = copies(engine)


def trained(engine: Any) -> list[torch.Tensor]:
    return [parameter for parameter in engine.module.parameters() if parameter.requires_grad]


def copies(engine: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trained(engine)]


def proximal_term(weights: list[torch.Tensor], other: list[torch.Tensor], rho: float) -> torch.Tensor:
    """``rho / 2 * |w - w_other|^2``, a scalar in float32."""
    total = sum((new.float() - old.float()).square().sum() for new, old in zip(weights, other, strict=True))
    return rho / 2 * total  # type: ignore[return-value]
