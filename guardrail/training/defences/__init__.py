"""Defences: what may change while a model is trained, so that its guardrails last. Names are known without torch.

A defence is one file with a subclass of `Defence`, and one line below. It says what it changes by overriding methods;
the others change nothing. Its fields are its options: ``--defence NAME --defence_options share=0.5``. docs/extending.md
has an example that runs; docs/defences.md says what each one does, where it comes from and what it costs.

All methods are called on every rank, in this order: ``rows``, ``prepare``, ``model``, ``begin``, then for each
optimizer step ``token_losses`` and ``loss`` (once per micro-batch), ``gradients`` and ``after_step``; ``weights``
whenever weights are saved (rank 0 alone). They must do the same on every rank; under ZeRO the parameters of
``engine.module`` are in pieces (``deepspeed.utils`` gathers them).

The line of a defence names its ``side`` (`fine_tuning` or `alignment`), what it ``reads`` beside the rows, and its
``strength``, the option that is zero where nothing is to be changed: training is then as without it, bit for bit.
``at_save``: it changes only what is saved, so that probes along the training see nothing of it.

    booster             lower what one harmful step would gain, while aligning
    deep_alignment      refusals that begin after the first words of a harmful answer, while aligning
    first_tokens        hold the distribution of an answer's first tokens
    freeze              leave a share of the blocks as they are
    lisa                alternate with steps on safety rows, tied to where the other state ended
    model_soup          average the saved weights with the aligned model's
    further_rows        rows beside the task's that several of them read
    row_filter          leave out the rows that a scorer finds riskiest
    safe_lora           project updates into the subspace of alignment
    safety_rows         mix safety rows into the task's
    vaccine             train on perturbed hidden states, while aligning
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from guardrail.core.cli import Parser
from guardrail.core.errors import UserError
from guardrail.core.options import add_options, read_options
from guardrail.core.registry import Registry

if TYPE_CHECKING:
    import torch

    from guardrail.data.rows import Row
    from guardrail.training.batches import Batch
    from guardrail.training.data import TokenisedRows

HERE = "guardrail.training.defences"
DEFENCES = Registry("defence")
DEFENCES.add("none", f"{HERE}:NoDefence")
DEFENCES.add("safety_rows", f"{HERE}.safety_rows:SafetyRows", side="fine_tuning", strength="share", reads="safety_rows")
DEFENCES.add("row_filter", f"{HERE}.row_filter:RowFilter", side="fine_tuning", strength="share", reads="scores")
DEFENCES.add("first_tokens", f"{HERE}.first_tokens:FirstTokens", side="fine_tuning", strength="strength")
DEFENCES.add("lisa", f"{HERE}.lisa:Lisa", side="fine_tuning", strength="safety_steps", reads="safety_rows")
DEFENCES.add("freeze", f"{HERE}.freeze:Freeze", side="fine_tuning", strength="share")
DEFENCES.add("model_soup", f"{HERE}.model_soup:ModelSoup", side="fine_tuning", strength="share", at_save=True)
DEFENCES.add(
    "safe_lora", f"{HERE}.safe_lora:SafeLora", side="fine_tuning", strength="n_layers", reads="base", at_save=True
)
DEFENCES.add(
    "deep_alignment", f"{HERE}.deep_alignment:DeepAlignment", side="alignment", strength="share", reads="harmful_rows"
)
DEFENCES.add("vaccine", f"{HERE}.vaccine:Vaccine", side="alignment", strength="radius")
DEFENCES.add("booster", f"{HERE}.booster:Booster", side="alignment", strength="strength", reads="harmful_rows")


@dataclass(kw_only=True)
class Defence:
    """The interface; as it stands it changes nothing.

    ``resumable``: nothing that ``begin`` or a step keeps would be lost when a killed run goes on.
    ``largest_stage``: the highest ZeRO stage under which it works; ``needs_float32``: not with 16-bit weights.
    ``reads_states``: it reads or changes hidden states, so that every row must have those of its beginning to itself.
    """

    resumable: ClassVar[bool] = False
    largest_stage: ClassVar[int] = 3
    needs_float32: ClassVar[bool] = False
    reads_states: ClassVar[bool] = False

    def files(self) -> dict[str, Path]:
        """What it reads besides the rows, by option: the contents are part of the training's key."""
        return {}

    def rows(self, rows: list[Row]) -> list[Row]:
        """The rows to train on; ``rows`` have an id and messages that end with an answer. Ids stay unique."""
        return rows

    def prepare(self, encode: Callable[[list[Row]], TokenisedRows]) -> None:
        """``encode`` makes token ids of further rows, as those of the training are made."""

    def model(self, model: Any) -> None:
        """The model is loaded, there is no optimizer yet: parameters may stop being trained here."""

    def begin(self, engine: Any) -> None:
        """The engine is ready, no step has been made (``engine.module`` is the model)."""

    def token_losses(self, losses: torch.Tensor, engine: Any, batch: Batch) -> torch.Tensor:
        """The cross-entropies (n,) of a micro-batch's labelled tokens, in the order of ``batch.targets``, before they
        are added up; to be overridden without calling this one."""
        return losses

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
    strength = DEFENCES.facts(name).get("strength")
    if strength is not None and getattr(defence, strength) < 0:
        raise UserError(f"--defence_options {strength}={getattr(defence, strength):g} is negative; 0 changes nothing")
    return NoDefence() if strength is not None and not getattr(defence, strength) else defence


def check_setup(defence: Defence, name: str, stage: int, dtype: str) -> None:
    """Raises ``UserError`` where ``defence`` does not work under this ZeRO stage, or in this dtype."""
    if defence.needs_float32 and dtype != "float32":
        raise UserError(f"--defence {name} trains in float32, not {dtype}; use --bf16 False --fp16 False")
    if stage > defence.largest_stage:
        files = " or ".join(f"ds_z{known}_config.json" for known in (0, 2) if known <= defence.largest_stage)
        raise UserError(f"--defence {name} needs weights and gradients in one piece, not ZeRO {stage}; use {files}")
