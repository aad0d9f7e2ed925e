"""Scorers: one number per row of a pool, higher = riskier to align on (more like what the anchors do to a guardrail).

A scorer is a function ``score(rows, inputs) -> (N,)`` in a file of its own and one line here. The line says what it
``needs`` of `Inputs` and what it ``costs``, so that both are known without importing it. Looking a name up imports
neither numpy nor torch.

    controls   scores that know nothing of similarity: what a similarity score has to beat
    cosines    the paper's similarity score: cosines of pool rows to anchor rows, in blocks
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from guardrail.core.errors import UserError
from guardrail.core.registry import Registry
from guardrail.data.rows import Row

if TYPE_CHECKING:
    import numpy as np

SCORERS = Registry("scorer")
HERE = "guardrail.similarity.scorers"
SCORERS.add(
    "similarity",
    f"{HERE}.cosines:score_similarity",
    needs=("representations", "anchors"),
    cost="a forward pass per row for the representations, then rows x anchors x width products",
)
SCORERS.add("length", f"{HERE}.controls:score_length", needs=(), cost="none")
SCORERS.add("random", f"{HERE}.controls:score_random", needs=(), cost="none")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a scorer may use besides the rows, in their order. N pool rows, M anchor rows, D hidden."""

    representations: Any = None  # (N, D), see cosines.Matrix
    anchors: Any = None  # (M, D)
    avg_n: int = 1
    seed: int = 42


def score_rows(name: str, rows: Sequence[Row], inputs: Inputs) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The scores of ``rows`` by the scorer ``name``, (N,) float32.

    Raises ``UserError``: unknown name, something it needs is missing, not one finite number per row.
    """
    import numpy as np

    missing = [need for need in SCORERS.facts(name).get("needs", ()) if getattr(inputs, need, None) is None]
    if missing:
        raise UserError(f"scorer {name} needs {' and '.join(missing)}; give them or choose another scorer")
    scores = np.asarray(SCORERS.load(name)(rows, inputs), dtype=np.float32)
    if scores.shape != (len(rows),):
        raise UserError(
            f"scorer {name} gave numbers of shape {scores.shape} for {len(rows)} rows; expected one per row"
        )
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise UserError(f"scorer {name} gave no finite number for {len(bad)} rows (first: {rows[bad[0]]['id']})")
    return scores
