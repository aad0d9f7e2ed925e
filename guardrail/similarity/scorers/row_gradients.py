"""Gradients of single rows in the linear layers of the blocks, without ever keeping one.

The weight gradient of a row in a linear layer is ``G = sum_t d_t x_t'``: inputs ``x_t`` and gradients ``d_t`` of the
outputs at the row's tokens (Goodfellow 2015, arXiv 1510.01799). Both are at hand in one backward pass over a batch, in
which no weight needs a gradient; norms, products with directions and random projections are taken layer by layer and
the tensors let go. Rows do not mix: the loss is the sum of the rows' mean losses, and ``d_t`` of a row comes from its
own loss alone.

Which weights, ``gradient_parameters``:

    linear      all linear layers of all blocks (not embeddings, norms and the head)
    last_block  those of the last block: the backward pass ends there, the cost is a forward pass
    lora        the matrices B of fresh low-rank adapters of all linear layers: with B = 0, as training begins, the
                gradient of B is ``sum_t d_t (A x_t)'`` and that of A is zero (Hu et al. 2021, section 4.1)

Shapes: B rows, T tokens, I and O inputs and outputs of a layer, r rank, k numbers of a projection.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from guardrail.models.blocks import find_blocks
from guardrail.similarity.scorers import NotApplicable
from guardrail.similarity.scorers.tokens import TokenBatch, row_losses

Visit = Callable[[str, torch.Tensor, torch.Tensor], None]
Directions = dict[str, torch.Tensor]  # layer -> (O, I)
Array = np.ndarray[Any, Any]
CHUNK = 1 << 16  # parameters whose random signs are made in one go
KEPT_SIGNS_BYTES = 256 << 20


@dataclass
class RowGradients:
    """Of n rows: ``norms`` (n, layers) squared; ``products[direction]`` (n, layers); ``sketches`` (n, k); ``losses``.

    ``n_answer_tokens`` (n,). Rows without a gradient are NaN. float64.
    """

    layers: list[str]
    losses: Array
    n_answer_tokens: Array
    norms: Array
    products: dict[str, Array]
    sketches: Array | None = None

    @property
    def squared_norm(self) -> Array:
        """(n,) over all layers."""
        return self.norms.sum(axis=1)

    def put(self, places: list[int], other: RowGradients) -> None:
        """Fill in the rows at ``places``."""
        for mine, theirs in (
            (self.losses, other.losses),
            (self.n_answer_tokens, other.n_answer_tokens),
            (self.norms, other.norms),
            *((self.products[name], other.products[name]) for name in self.products),
        ):
            mine[places] = theirs
        if self.sketches is not None:
            self.sketches[places] = other.sketches

    def blank(self, n: int) -> RowGradients:
        """The same for ``n`` rows of which nothing is known."""

        def nan(array: Array) -> Array:
            return np.full((n, *array.shape[1:]), np.nan)

        sketches = None if self.sketches is None else nan(self.sketches)
        products = {name: nan(values) for name, values in self.products.items()}
        return RowGradients(
            self.layers, nan(self.losses), nan(self.n_answer_tokens), nan(self.norms), products, sketches
        )


@dataclass
class Layer:
    """A linear layer; ``down`` (r, I) is the fresh adapter's A, float32."""

    module: torch.nn.Linear
    down: torch.Tensor


@dataclass
class GradientPass:
    """Backward passes over batches of rows of one model.

    ``directions[name]`` are gradients to multiply with: of the same layers, (O, I), or (O, r) in the space ``lora``.
    ``projection_dim`` > 0 also gives a random projection of each row's ``lora`` gradient.
    """

    model: Any
    n_layers: int
    space: str
    rank: int
    seed: int
    projection_dim: int = 0
    directions: dict[str, Directions] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)
    _signs: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.device = next(self.model.parameters()).device
        self.blocks = find_blocks(self.model, self.n_layers)
        first = self.n_layers - 1 if self.space == "last_block" else 0
        for number in range(first, self.n_layers):
            for name, module in self.blocks[number].named_modules():
                if isinstance(module, torch.nn.Linear):
                    self._add(f"{number}.{name}", module)
        if not self.layers:
            raise NotApplicable(f"{type(self.model).__name__} has no linear layers in its blocks")

    def _add(self, name: str, module: torch.nn.Linear) -> None:
        generator = torch.Generator().manual_seed(named_seed(self.seed, "adapter", name))
        down = torch.randn(self.rank, module.in_features, generator=generator) / self.rank**0.5
        self.layers[name] = Layer(module, down.to(self.device))

    @property
    def n_parameters(self) -> int:
        """How many numbers a row's gradient has in this space."""
        lora = self.space == "lora"
        return sum(
            one.module.out_features * (self.rank if lora else one.module.in_features) for one in self.layers.values()
        )

    def run(self, batch: TokenBatch, visit: Visit, weights: torch.Tensor | None = None) -> torch.Tensor:
        """The rows' losses (B,); ``visit(layer, x, d)`` is called for every layer, x (B, T, I), d (B, T, O), float32.

        ``weights`` (B,) multiply the rows' losses, and so their gradients.
        """
        with torch.enable_grad(), self._frozen(), self._hooked(visit):
            losses = row_losses(self.model, batch)
            (losses if weights is None else losses * weights).sum().backward()
        return losses.detach()

    @contextlib.contextmanager
    def _frozen(self) -> Iterator[None]:
        """No weight needs a gradient; the graph begins at the embeddings' output or before the last block."""
        wanted = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]

        def begin(
            _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            hidden = args[0] if args else kwargs["hidden_states"]
            hidden = hidden.detach().requires_grad_(True)
            return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        start = self.blocks[self.n_layers - 1 if self.space == "last_block" else 0]
        hook = start.register_forward_pre_hook(begin, with_kwargs=True)
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            hook.remove()
            for parameter, before in wanted:
                parameter.requires_grad_(before)

    @contextlib.contextmanager
    def _hooked(self, visit: Visit) -> Iterator[None]:
        def watch(name: str) -> Any:
            def forward(_module: Any, args: tuple[Any, ...], output: torch.Tensor) -> None:
                x = args[0].detach()
                output.register_hook(lambda d: visit(name, x.float(), d.float()))

            return forward

        with contextlib.ExitStack() as stack:
            for name, layer in self.layers.items():
                stack.callback(layer.module.register_forward_hook(watch(name)).remove)
            yield

    def inputs(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """What stands for ``x`` in this space: itself, or ``A x`` (B, T, r)."""
        return x @ self.layers[name].down.T if self.space == "lora" else x

    def summed(self, batch: TokenBatch, weights: torch.Tensor) -> Directions:
        """``sum_b weights_b G_b`` over the rows of ``batch``, layer by layer, float32."""
        total: Directions = {}

        def visit(name: str, x: torch.Tensor, d: torch.Tensor) -> None:
            total[name] = torch.einsum("bto,bti->oi", d, self.inputs(name, x))

        self.run(batch, visit, weights)
        return total

    def lengths(self, batch: TokenBatch) -> torch.Tensor:
        """Euclidean length of every row's gradient, (B,)."""
        squared = torch.zeros(len(batch.ids), dtype=torch.float64)

        def visit(name: str, x: torch.Tensor, d: torch.Tensor) -> None:
            squared.add_(squared_norms(self.inputs(name, x), d).double().cpu())

        self.run(batch, visit)
        return squared.sqrt()

    def describe(self, batch: TokenBatch) -> RowGradients:
        """Norms, products and projections of every row of ``batch``."""
        B, names = len(batch.ids), list(self.layers)
        norms = torch.zeros(B, len(names), dtype=torch.float64)
        products = {name: torch.zeros(B, len(names), dtype=torch.float64) for name in self.directions}
        sketches = torch.zeros(B, self.projection_dim, device=self.device) if self.projection_dim else None
        place = {name: number for number, name in enumerate(names)}

        def visit(name: str, x: torch.Tensor, d: torch.Tensor) -> None:
            inside = self.inputs(name, x)
            norms[:, place[name]] = squared_norms(inside, d).double().cpu()
            for direction, layers in self.directions.items():
                product = ((d @ layers[name]) * inside).sum(dim=(1, 2))
                products[direction][:, place[name]] = product.double().cpu()
            if sketches is not None:
                down = inside if self.space == "lora" else x @ self.layers[name].down.T
                sketches.add_(self.project(name, torch.einsum("bto,btr->bor", d, down).flatten(1)))

        losses = self.run(batch, visit)
        return RowGradients(
            names,
            losses.double().cpu().numpy(),
            batch.counts.double().cpu().numpy(),
            norms.numpy(),
            {name: values.numpy() for name, values in products.items()},
            None if sketches is None else sketches.double().cpu().numpy(),
        )

    def project(self, name: str, gradients: torch.Tensor) -> torch.Tensor:
        """Random signs times (B, P) gradients of one layer, chunk by chunk: (B, k) (Johnson-Lindenstrauss)."""
        out = torch.zeros(len(gradients), self.projection_dim, device=self.device)
        for start in range(0, gradients.shape[1], CHUNK):
            part = gradients[:, start : start + CHUNK]
            out += part @ self._chunk(name, start, part.shape[1]).float()
        return out / self.projection_dim**0.5

    def _chunk(self, name: str, start: int, size: int) -> torch.Tensor:
        """(size, k) random signs, int8: the same whenever they are asked for; kept while there is room."""
        if (name, start) not in self._signs:
            generator = torch.Generator(self.device).manual_seed(named_seed(self.seed, "projection", name, start))
            shape = (size, self.projection_dim)
            bits = torch.randint(0, 2, shape, generator=generator, dtype=torch.int8, device=self.device)
            signs = 2 * bits - 1
            if signs.numel() + sum(one.numel() for one in self._signs.values()) > KEPT_SIGNS_BYTES:
                return signs
            self._signs[name, start] = signs
        return self._signs[name, start]


def squared_norms(x: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """``|sum_t d_t x_t'|^2`` of every row, (B,): from the T x T products where the matrix itself would be larger.

    ``sum_{t,s} (x_t . x_s)(d_t . d_s)``; the choice by ``2 T^2 < O I`` is that of mixed ghost clipping (Bu et al. 2022,
    arXiv 2205.10683, section 4).
    """
    T, many = x.shape[1], d.shape[2] * x.shape[2]
    if many > 2 * T * T:
        return ((x @ x.transpose(1, 2)) * (d @ d.transpose(1, 2))).sum(dim=(1, 2)).clamp(min=0)
    return (d.transpose(1, 2) @ x).square().sum(dim=(1, 2))


def named_seed(seed: int, *names: object) -> int:
    """A seed for one use, from the run's and what it is for."""
    return int.from_bytes(hashlib.sha256(repr((seed, *names)).encode()).digest()[:8], "big") >> 1
