"""The change of a safety loss by one small step of gradient descent on a row, to first order, per unit learning rate.

A step on row z moves the weights by ``-eta grad l(z)``, and the safety loss S (mean loss of refusals to harmful
prompts) by ``-eta grad S . grad l(z)`` (TracIn: Pruthi et al. 2020, arXiv 2002.08484, equation 1). Higher = the
guardrail's loss rises more. With ``--gradient_parameters linear`` all weights of the model count: ``grad S . grad
l(z)`` is the derivative of the row's loss along grad S, which forward-mode differentiation gives for a whole batch in
one pass without any gradient of a row. ``last_block`` takes the weights of the last block alone, the same way; ``lora``
the matrices B of fresh adapters (`row_gradients`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from guardrail.core.errors import UserError
from guardrail.models.blocks import find_blocks
from guardrail.models.linear import plain_linear
from guardrail.similarity.scorers import NotApplicable
from guardrail.similarity.scorers.interface import Batch, Scorer, Scores
from guardrail.similarity.scorers.tokens import TokenBatch, row_losses


class SafetyStep(Scorer):
    """``-grad S . grad l(z)``, nats per unit learning rate (module docstring)."""

    def not_applicable(self) -> str | None:
        return "an encoder has no loss to differentiate" if self.resources.is_encoder else None

    def prepare(self) -> None:
        if self.in_adapters:
            self.resources.gradients.directions["safety"] = self.resources.set_gradient("safety", normalised=False)
            return
        encoded, _ = self.resources.encode(self.resources.set_rows("safety"))
        n = sum(one is not None for one in encoded)
        if not n:
            raise UserError("--safety: no row has an answer within --max_length")
        names = self.parameters()
        total = {name: torch.zeros_like(tensor, dtype=torch.float32) for name, tensor in names.items()}

        def compute(batch: TokenBatch) -> tuple[torch.Tensor, ...]:
            with torch.enable_grad(), wanting(self.resources.model, names):
                return torch.autograd.grad(row_losses(self.resources.model, batch).sum() / n, list(names.values()))

        for _, gradients in self.resources.each_batch(encoded, compute):
            for tensor, gradient in zip(total.values(), gradients, strict=True):
                tensor += gradient
        self.direction = {name: tensor.to(names[name].dtype) for name, tensor in total.items()}
        try:
            next(self.resources.each_batch(encoded[:1], self.derivative), None)
        except NotImplementedError as error:
            raise NotApplicable(f"the model has no forward-mode derivative: {str(error)[:200]}") from error

    @property
    def in_adapters(self) -> bool:
        return self.resources.config.gradient_parameters == "lora"

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The weights that a step moves, by name."""
        model = self.resources.model
        parameters = dict(model.named_parameters())
        if self.resources.space == "last_block":
            block = find_blocks(model, self.resources.facts.n_layers)[-1]
            inside = {id(parameter) for parameter in block.parameters()}
            parameters = {name: one for name, one in parameters.items() if id(one) in inside}
        return parameters

    def score(self, batch: Batch) -> Scores:
        if self.in_adapters:
            gradients, reasons = batch.gradients
            return Scores.of(-gradients.products["safety"].sum(axis=1), reasons)
        encoded, reasons = batch.encoded
        out = np.full(len(batch), np.nan)
        for places, values in self.resources.each_batch(self.resources.trained(encoded), self.derivative):
            out[places] = values
        return Scores.of(out, reasons)

    def derivative(self, batch: TokenBatch) -> Any:
        """Minus the derivative of each row's loss along the safety gradient, (B,) float64."""
        model = self.resources.model
        parameters = {name: parameter.detach() for name, parameter in self.parameters().items()}

        def losses(values: dict[str, torch.Tensor]) -> torch.Tensor:
            return row_losses(Called(model, values), batch)

        with torch.no_grad(), plain_attention(model), plain_linear():
            change: torch.Tensor = torch.func.jvp(losses, (parameters,), (self.direction,))[1]
        return -change.double().cpu().numpy()


class Called:
    """``model`` with other weights: what `guardrail.models.labelled_logits` calls and asks for the head."""

    def __init__(self, model: Any, values: dict[str, torch.Tensor]) -> None:
        self.module, self.values = model, values

    def __call__(self, **inputs: Any) -> Any:
        return torch.func.functional_call(self.module, self.values, kwargs=inputs)


@contextlib.contextmanager
def wanting(model: Any, parameters: dict[str, torch.nn.Parameter]) -> Iterator[None]:
    """Inside, these weights need gradients and no others."""
    before = [(one, one.requires_grad) for one in model.parameters()]
    mine = {id(one) for one in parameters.values()}
    for one, _ in before:
        one.requires_grad_(id(one) in mine)
    try:
        yield
    finally:
        for one, needed in before:
            one.requires_grad_(needed)


@contextlib.contextmanager
def plain_attention(model: Any) -> Iterator[None]:
    """Inside, attention is written out: the fused kernels have no forward-mode derivative."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
