"""Safe LoRA: updates that leave the subspace of alignment are projected into it (Hsu et al. 2024, arXiv 2405.16833).

Per weight matrix, with the aligned weights A, those of the base model B and the update D of fine-tuning:

    V = A - B,  C = V V^T / |V|,  D' = C D                                          (sections 3.1 and 3.2)

The ``n_layers`` matrices whose update agrees least with its projection (lowest cosine of D and C D, equation 3) get
D' instead of D, once, when weights are saved. Matrices are matched by name; where the aligned and the base model are
equal there is no subspace, and the matrix is left as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardrail.core.cli import log
from guardrail.core.errors import UserError
from guardrail.core.options import option
from guardrail.models.adapters import PREFIX
from guardrail.training.config import natural
from guardrail.training.defences import Defence
from guardrail.training.defences.freeze import BLOCK
from guardrail.training.defences.model_soup import start_weights

if TYPE_CHECKING:
    import torch

UP = ".lora_B.default.weight"
DOWN = ".lora_A.default.weight"


@dataclass(kw_only=True)
class SafeLora(Defence):
    """Works on adapters (their B becomes C B) and on whole weights alike. Weights twice more in memory, on rank 0."""

    base: str = option("", "the model before its alignment: a folder", decides=False)
    n_layers: int = option(8, "how many matrices are projected", parse=natural)
    start: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    before: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    cosines: dict[str, float] = field(default_factory=dict, init=False)

    def files(self) -> dict[str, Path]:
        if not Path(self.base).is_dir() or not self.base:
            raise UserError(
                f"--defence safe_lora: {self.base or 'no base'!r} is no folder; expected base=FOLDER of the model "
                "before its alignment in --defence_options"
            )
        return {"base": Path(self.base)}

    def begin(self, engine: Any) -> None:
        from guardrail.models.loading import load_causal_lm

        self.files()
        self.start = start_weights(engine)
        self.before = load_causal_lm(self.base).state_dict()
        missing = [name for name, tensor in self.start.items() if is_matrix(name, tensor) and name not in self.before]
        odd = [name for name in self.start if name in self.before and self.start[name].shape != self.before[name].shape]
        if missing or odd:
            first = (missing + odd)[0]
            raise UserError(f"{self.base} is no base of this model: {first} is missing there or has another shape")

    def weights(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        adapters = [name for name in state if name.endswith(UP)]
        names = adapters or [name for name, tensor in state.items() if is_matrix(name, tensor) and name in self.start]
        found = {}
        for name in names:
            stem = name.removeprefix(PREFIX).removesuffix(UP) + ".weight" if adapters else name
            aligned = self.start[stem].float()
            difference = aligned - self.before[stem].float()
            if float(difference.norm()) == 0:
                continue
            if adapters:
                part, right = state[name].float(), state[name.removesuffix(UP) + DOWN].float()
            else:
                part, right = state[name].float() - aligned, None
            new = project(part, difference)
            whole = (part, new) if right is None else (part @ right, new @ right)
            found[name] = (cosine(*whole), new if adapters else aligned + new)
        if self.n_layers > len(found):
            raise UserError(
                f"n_layers={self.n_layers} of --defence safe_lora; only {len(found)} matrices can be projected"
            )
        chosen = sorted(found, key=lambda name: (found[name][0], name))[: self.n_layers]
        self.cosines = {name: found[name][0] for name in chosen}
        log(f"safe_lora: {len(chosen)} of {len(found)} matrices projected")
        return {name: found[name][1].to(t.dtype) if name in self.cosines else t for name, t in state.items()}


def is_matrix(name: str, tensor: torch.Tensor) -> bool:
    """A weight matrix inside a block; embeddings and head are none."""
    return tensor.dim() == 2 and BLOCK.search(name) is not None


def project(update: torch.Tensor, difference: torch.Tensor) -> torch.Tensor:
    """``V V^T D / |V|``: (out, in) or (out, r), without the (out, out) matrix where that is larger."""
    return difference @ (difference.T @ update) / difference.norm()


def cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    """Of two matrices as vectors; 1 where one of them is zero: nothing to project."""
    norms = float(first.norm() * second.norm())
    return float((first * second).sum()) / norms if norms else 1.0
