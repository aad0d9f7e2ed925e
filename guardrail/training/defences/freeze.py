"""Freezing: a share of the decoder blocks, counted from the embedding or from the head, is not trained.

Wei et al. 2024 (arXiv 2402.05162, section 4.3) freeze what they find critical for safety and see that this alone is
not enough; which blocks hold a guardrail is an open question, so both ends can be chosen. Frozen parameters need no
gradients and no optimizer state: less memory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from guardrail.core.cli import fraction
from guardrail.core.errors import UserError
from guardrail.core.options import option
from guardrail.training.defences import Defence

BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


@dataclass(kw_only=True)
class Freeze(Defence):
    """With the first blocks the embedding is frozen, with the last ones the norm and the head behind them."""

    resumable = True

    share: float = option(0.5, "share of the blocks that is frozen, rounded; 1: all of them", parse=fraction)
    which: str = option("first", "first or last blocks", choices=("first", "last"))

    def model(self, model: Any) -> None:
        names = [name for name, _ in model.named_parameters()]
        numbers = [int(found[1]) for name in names if (found := BLOCK.search(name))]
        if not numbers:
            raise UserError("--defence freeze finds no numbered blocks in this model's parameters; use another defence")
        frozen = frozen_names(names, max(numbers) + 1, self.share, self.which)
        for name, parameter in model.named_parameters():
            if name in frozen:
                parameter.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UserError(f"--defence freeze share={self.share:g} leaves nothing to train; lower it")


def frozen_names(names: list[str], n_blocks: int, share: float, which: str) -> set[str]:
    """The parameters of the ``share`` of blocks at one end, and what lies outside them at that end."""
    n = round(share * n_blocks)
    blocks = set(range(n)) if which == "first" else set(range(n_blocks - n, n_blocks))
    numbered = [i for i, name in enumerate(names) if BLOCK.search(name)]
    out = set()
    for i, name in enumerate(names):
        found = BLOCK.search(name)
        outside = i < numbered[0] if which == "first" else i > numbered[-1]
        if (found and int(found[1]) in blocks) or (not found and outside and n):
            out.add(name)
    return out
