"""Weight averaging with the aligned model: ``w = (1 - share) * w_tuned + share * w_aligned``.

Wortsman et al. 2022 (arXiv 2109.01903, equation 1: WiSE-FT), whose mixing coefficient is ``1 - share``; made once, on
the saved weights, in float32. Costs nothing while training.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from guardrail.core.cli import fraction
from guardrail.core.options import option
from guardrail.training.defences import Defence

if TYPE_CHECKING:
    import torch


@dataclass(kw_only=True)
class ModelSoup(Defence):
    """Adapters that are saved alone shrink by the same factor: without them the model is the aligned one."""

    share: float = option(0.3, "weight of the aligned model", parse=fraction)
    start: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def begin(self, engine: Any) -> None:
        self.start = start_weights(engine)

    def weights(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if any(is_up(name) for name in state):
            return {name: tensor * (1 - self.share) if is_up(name) else tensor for name, tensor in state.items()}
        return {name: averaged(tensor, self.start.get(name), self.share) for name, tensor in state.items()}


def averaged(tensor: torch.Tensor, start: torch.Tensor | None, share: float) -> torch.Tensor:
    if start is None or not tensor.is_floating_point():
        return tensor
    return tensor.float().lerp(start.float(), share).to(tensor.dtype)


def is_up(name: str) -> bool:
    """Is it the matrix of an adapter that is zero at the start?"""
    return ".lora_B." in name


def start_weights(engine: Any) -> dict[str, torch.Tensor]:
    """The weights before the first step (CPU), under the names of a model without adapters. Collective."""
    from guardrail.models.adapters import PREFIX
    from guardrail.training.checkpoint import gathered_state_dict

    state = gathered_state_dict(engine) or {}
    plain = {name: tensor for name, tensor in state.items() if ".lora_" not in name}
    return {name.removeprefix(PREFIX).replace(".base_layer.", "."): t.clone() for name, t in plain.items()}
