"""Rows beside the task's: safety rows or harmful rows that a defence mixes in, trains on in between or guards against.

They are read like training rows (a file, or one split of a data-set folder) and tokenised like them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardrail.core.errors import UserError
from guardrail.core.options import option
from guardrail.data.rows import Row, list_splits, load_rows
from guardrail.training.defences import Defence

if TYPE_CHECKING:
    import torch

    from guardrail.training.batches import Batch
    from guardrail.training.data import TokenisedRows


@dataclass(kw_only=True)
class FurtherRows(Defence):
    """A defence that needs more rows. ``draw`` gives them in an order that depends on the seed alone."""

    source: str = option("", "its rows: a file with answers, or a data-set folder", decides=False)
    split: str | None = option(None, "split of source, where it has several", decides=False)
    rows_seed: int = option(0, "seed of the order in which they are taken")
    further: Any = field(default=None, init=False, repr=False)

    def files(self) -> dict[str, Path]:
        if not self.source:
            raise UserError(f"a defence that needs rows has none; add source=FILE to --defence_options ({self.needs})")
        path = Path(self.source).expanduser()
        if path.is_dir():
            splits = list_splits(path)
            name = self.split or (next(iter(splits)) if len(splits) == 1 else None)
            if name not in splits:
                raise UserError(f"{path} has no split {name!r}; expected split= one of {', '.join(sorted(splits))}")
            return {f"source{number or ''}": file for number, file in enumerate(splits[name])}
        if not path.is_file():
            raise UserError(
                f"{self.source} is not there; source= is a file of rows or a data-set folder ({self.needs})"
            )
        return {"source": path}

    @property
    def needs(self) -> str:
        """What kind of rows, in words."""
        return "safety rows: harmful requests with safe answers"

    def read(self) -> list[Row]:
        self.files()
        return load_rows(self.source, split=self.split, need_answer=True)

    def prepare(self, encode: Callable[[list[Row]], TokenisedRows]) -> None:
        self.further = encode(self.read())

    def draw(self, n: int, turn: int) -> list[int]:
        """Numbers of the ``n`` rows of the batch ``turn`` (from 0): passes over all rows, each in a new order."""
        N, out = len(self.further), []
        for place in range(turn * n, (turn + 1) * n):
            order = list(range(N))
            random.Random(f"{self.rows_seed} {place // N}").shuffle(order)
            out.append(order[place % N])
        return out

    def batch(self, n: int, turn: int, device: Any) -> Batch:
        """The batch ``turn``, the same on every rank."""
        from guardrail.training.batches import padded_batch

        rows = self.draw(n, turn)
        # under causal attention no real token sees a pad on its right: any id does
        return padded_batch(self.further, tuple((row,) for row in rows), (False,) * n, 0, device)


def mean_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy per labelled token."""
    from guardrail.training.batches import summed_loss

    return summed_loss(model, batch) / (batch.targets != -100).sum().clamp(min=1)


def accumulation(engine: Any) -> int:
    """Micro-batches per optimizer step: a term that is added to every micro-batch's loss is divided by it."""
    steps = getattr(engine, "gradient_accumulation_steps", None)
    return int(steps()) if callable(steps) else 1
