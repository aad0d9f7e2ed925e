"""Defences: what may change while a model is fine-tuned, so that its guardrails last. Names are known without torch.

A defence is one file with a subclass of `Defence`, and one line below. It says what it changes by overriding methods;
the others change nothing. Its fields are its options: ``--defence NAME --defence_options share=0.5``. docs/extending.md
has an example that runs.

All methods are called on every rank, in this order: ``rows``, ``begin``, then for each optimizer step ``loss`` (once
per micro-batch), ``gradients`` and ``after_step``; ``weights`` whenever weights are saved (rank 0 alone). They must do
the same on every rank; under ZeRO the parameters of ``engine.module`` are in pieces (``deepspeed.utils`` gathers them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from guardrail.core.cli import Parser
from guardrail.core.errors import UserError
from guardrail.core.options import add_options, read_options
from guardrail.core.registry import Registry

if TYPE_CHECKING:
    import torch

    from guardrail.data.rows import Row
    from guardrail.training.batches import Batch

DEFENCES = Registry("defence")
DEFENCES.add("none", "guardrail.training.defences:NoDefence")


@dataclass(kw_only=True)
class Defence:
    """The interface; as it stands it changes nothing.

    ``resumable``: nothing that ``begin`` or a step keeps would be lost when a killed run goes on.
    """

    resumable: ClassVar[bool] = False

    def rows(self, rows: list[Row]) -> list[Row]:
        """The rows to train on; ``rows`` have an id and messages that end with an answer. Ids stay unique."""
        return rows

    def begin(self, engine: Any) -> None:
        """The engine is ready, no step has been made (``engine.module`` is the model)."""

    def loss(self, loss: torch.Tensor, engine: Any, batch: Batch) -> torch.Tensor:
        """The loss of one micro-batch, a scalar scaled as `Trainer` scales it; what is returned is differentiated."""
        return loss

    def gradients(self, engine: Any) -> None:
        """The gradients of a step are whole, the weights are the old ones."""

    def after_step(self, engine: Any, step: int) -> None:
        """Optimizer step ``step`` (from 1) has changed the weights."""

    def weights(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors that are saved, by name (CPU, full size; adapters are merged already)."""
        return state


@dataclass(kw_only=True)
class NoDefence(Defence):
    """``none``: training as it is, bit for bit."""

    resumable = True


def make_defence(name: str, options: Sequence[str] = ()) -> Defence:
    """The defence ``name`` with ``options`` such as ``("share=0.5",)``. Raises ``UserError`` for unknown ones."""
    kind = DEFENCES.load(name)
    for text in options:
        if "=" not in text:
            raise UserError(f"--defence_options {text!r} is no option of a defence; expected name=value")
    parser = Parser(prog=f"--defence {name} --defence_options", add_help=False)
    add_options(parser, kind)
    defence: Defence = read_options(kind, parser.parse_args([f"--{text}" for text in options]))
    return defence
