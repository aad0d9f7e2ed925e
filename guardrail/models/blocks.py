"""The transformer blocks of a model, whatever the family calls their list."""

from __future__ import annotations

import torch

from guardrail.core.errors import UserError


def find_blocks(model: torch.nn.Module, n_layers: int, instead: str = "use another model") -> torch.nn.ModuleList:
    """The list of ``n_layers`` blocks. Raises ``UserError`` where there is none, with what to do ``instead``."""
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == n_layers]
    if not lists:
        raise UserError(f"cannot find the {n_layers} transformer blocks of {type(model).__name__}; {instead}")
    return lists[0]


def last_block(model: torch.nn.Module) -> torch.nn.Module | None:
    """The last of a causal LM's transformer blocks; None where they are not found."""
    n_layers = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    try:
        return find_blocks(model, n_layers)[-1] if n_layers else None
    except UserError:
        return None
