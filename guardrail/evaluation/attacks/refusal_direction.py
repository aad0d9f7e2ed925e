"""Refusal-direction ablation: what separates refused from answered requests is taken out of the weights.

Arditi et al. 2024 (arXiv 2406.11717), sections 2.3 and 4.1: r is the mean hidden state behind block ``layer`` at the
last token of harmful requests minus that of harmless ones, r' = r / |r|. Every matrix W that writes into the residual
stream (embedding, attention output, feed-forward output) becomes

    W - r' r'^T W

so that no hidden state has a part along r' any more. Afterwards the weights are the old ones, bit for bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from guardrail.core.cli import log, positive_int
from guardrail.core.errors import UserError
from guardrail.core.files import hash_json
from guardrail.core.options import option
from guardrail.data.rows import list_splits, load_rows
from guardrail.evaluation.attacks import Attack

if TYPE_CHECKING:
    import torch

WRITERS = ("o_proj", "down_proj", "c_proj", "dense_4h_to_h", "out_proj")  # by the last part of a module's name
BATCH_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class RefusalDirection(Attack):
    """``harmful`` and ``harmless`` must not be the requests of the bench: the direction is made from others."""

    name: ClassVar[str] = "refusal_direction"

    harmful: str = option("", "requests that are refused: PATH or PATH::SPLIT", decides=False)
    harmless: str = option("", "requests that are answered, in the same form", decides=False)
    layer: float = option(0.6, "depth of the block, as a share of all blocks")
    n_requests: int = option(128, "at most so many of each", parse=positive_int)
    found: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.layer <= 1:
            raise UserError(f"attack refusal_direction layer={self.layer:g}; expected a share above 0 and at most 1")

    def requests(self, kind: str) -> list[list[dict[str, str]]]:
        """The conversations of ``harmful`` or ``harmless`` up to the request."""
        place = getattr(self, kind)
        if not place:
            raise UserError(f"attack refusal_direction needs {kind}=PATH (or PATH::SPLIT) with requests")
        source, _, split = place.partition("::")
        if not Path(source).exists() or (split and split not in list_splits(source)):
            raise UserError(f"{place} is not there; {kind}= is PATH or PATH::SPLIT of requests")
        rows = load_rows(source, split=split or None, limit=self.n_requests)
        return [[message for message in row["messages"] if message["role"] == "user"][:1] for row in rows]

    def identity(self) -> dict[str, Any]:
        texts = {kind: hash_json(self.requests(kind)) for kind in ("harmful", "harmless")}
        return {"attack": {**super().identity()["attack"], **texts}}

    def prepare(self, model: Any, encode: Callable[[list[dict[str, str]]], list[int]]) -> None:
        kinds = [[encode(asked) for asked in self.requests(kind)] for kind in ("harmful", "harmless")]
        block = max(1, round(self.layer * model.config.num_hidden_layers))
        means = [mean_last_state(model, ids, block) for ids in kinds]
        self.found["direction"] = unit(means[0] - means[1])

    @contextlib.contextmanager
    def weights(self, model: Any) -> Iterator[None]:
        import torch

        direction = self.found["direction"]
        chosen = writers(model)
        kept = [weight.detach().clone() for weight, _ in chosen]
        with torch.no_grad():
            for weight, rows_are_states in chosen:
                weight.copy_(without(weight, direction, rows_are_states))
        log(f"refusal_direction: taken out of {len(chosen)} matrices")
        try:
            yield
        finally:
            with torch.no_grad():
                for (weight, _), old in zip(chosen, kept, strict=True):
                    weight.copy_(old)


def unit(vector: torch.Tensor) -> torch.Tensor:
    length = float(vector.norm())
    if length == 0:
        raise UserError("attack refusal_direction: harmful and harmless requests have the same mean state; use others")
    return vector / length


def without(weight: torch.Tensor, direction: torch.Tensor, rows_are_states: bool) -> torch.Tensor:
    """``W - r r^T W`` for W (out, in); ``W - W r r^T`` where the rows are states themselves (an embedding). The product
    is made in float64, so that what is left along ``direction`` is the rounding of the result."""
    W, r = weight.double(), direction.double().to(weight.device)
    if W.dim() == 1:  # a bias is a state
        return (W - (W @ r) * r).to(weight.dtype)
    removed = (W @ r)[:, None] * r if rows_are_states else r[:, None] * (r @ W)
    return (W - removed).to(weight.dtype)


def writers(model: Any) -> list[tuple[torch.Tensor, bool]]:
    """The matrices that write into the residual stream, and whether their rows are states: the embedding first.

    Raises ``UserError`` where none is known by its name. A head that shares its weights with the embedding changes too.
    """
    modules = [module for name, module in model.named_modules() if name.rsplit(".", 1)[-1] in WRITERS]
    blocks = [(module.weight, type(module).__name__ == "Conv1D") for module in modules]
    if not blocks:
        raise UserError(
            f"attack refusal_direction knows no matrix of this model; expected modules {', '.join(WRITERS)}"
        )
    biases = [(module.bias, True) for module in modules if getattr(module, "bias", None) is not None]
    return [(model.get_input_embeddings().weight, True), *blocks, *biases]


def mean_last_state(model: Any, prompts: list[list[int]], block: int) -> torch.Tensor:
    """Mean hidden state (D,) behind block number ``block`` (from 1) at the last token, in float64."""
    import torch

    total = torch.zeros(model.config.hidden_size, dtype=torch.float64)
    device = model.get_input_embeddings().weight.device
    with torch.no_grad():
        for start in range(0, len(prompts), BATCH_ROWS):
            batch = prompts[start : start + BATCH_ROWS]
            width = max(map(len, batch))
            ids = torch.tensor([row + [0] * (width - len(row)) for row in batch], device=device)  # pads on the right
            states = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[block]
            last = states[range(len(batch)), [len(row) - 1 for row in batch]]
            total += last.double().sum(dim=0).cpu()
    return total / len(prompts)
