"""Scorers: one number per row, higher = riskier (more like what wears a guardrail off).

A scorer is a function ``score(rows, inputs) -> (N,)`` or a class (`interface.Scorer`) in a file of its own, and one
line here. The line says what it ``needs`` and what it ``costs``, so that both are known without importing it. Looking a
name up imports neither numpy nor torch. `run.RowScoring` scores rows batch by batch with any of them
(similarity/score_rows.py is its command); `score_rows` calls the functions on a whole pool with its representations.

    interface         what a scorer is, what it gives, what a batch of rows offers it
    options           options of a scoring run
    resources         the model, the anchors and the other sets of a run, loaded when a scorer asks for them
    tokens            rows as token ids with the positions that training would learn
    run               scores of rows, batch by batch: in memory, or into a file that survives a kill
    command           the command line: score, compare, or both
    compare           do the scores of a small model agree with the target model's?
    controls          scores that know nothing of similarity: what a similarity score has to beat
    cosines           the paper's similarity score: cosines of pool rows to anchor rows, in blocks
    representation    mean cosines to anchors and alignment set, bi-anchor
    compliance        projections on a compliance direction and on its consensus subspace
    row_gradients     gradients of single rows in the linear layers: norms, products, random projections
    gradient_scores   self-influence, gradient cosines, module-normalised projection
    safety_step       the change of a safety loss by one step on the row
    likelihood        perplexity
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
TEXT, FORWARD, BACKWARD, TANGENT = "none", "forward pass", "forward and backward pass", "forward-mode derivative"
SCORERS.add(
    "similarity",
    f"{HERE}.cosines:score_similarity",
    needs=("representations", "anchors"),
    cost="a forward pass per row for the representations, then rows x anchors x width products",
)
SCORERS.add("length", f"{HERE}.controls:score_length", needs=(), cost=TEXT)
SCORERS.add("random", f"{HERE}.controls:score_random", needs=(), cost=TEXT)
for _name, _place, _needs, _cost in (
    ("mean_similarity", "representation:MeanSimilarity", ("representations", "anchors"), FORWARD),
    ("alignment_similarity", "representation:AlignmentSimilarity", ("representations", "alignment"), FORWARD),
    ("bi_anchor", "representation:BiAnchor", ("representations", "anchors", "safe_anchors"), FORWARD),
    ("compliance", "compliance:Compliance", ("model", "anchors", "refusals"), FORWARD),
    ("compliance_subspace", "compliance:ComplianceSubspace", ("model", "anchors", "refusals"), FORWARD),
    ("perplexity", "likelihood:Perplexity", ("model",), FORWARD),
    ("self_influence", "gradient_scores:SelfInfluence", ("model",), BACKWARD),
    ("gradient_cosine", "gradient_scores:GradientCosine", ("model", "anchors"), BACKWARD),
    ("gradient_projection", "gradient_scores:GradientProjection", ("model", "anchors"), BACKWARD),
    ("gradient_modules", "gradient_scores:GradientModules", ("model", "anchors", "safe_anchors"), BACKWARD),
    ("safety_step", "safety_step:SafetyStep", ("model", "safety"), TANGENT),
):
    SCORERS.add(_name, f"{HERE}.{_place}", needs=_needs, cost=_cost)
SCORERS.add(
    "moderation",
    "guardrail.evaluation.judges.row_scores:Moderated",
    needs=("moderation_model",),
    cost="a forward pass of the moderation model",
)


class NotApplicable(UserError):
    """A scorer can give nothing with this model; raised while it prepares, it says why and the others go on."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a scorer that is a function may use besides the rows, in their order. N rows, M anchor rows, D hidden."""

    representations: Any = None  # (N, D), see cosines.Matrix
    anchors: Any = None  # (M, D)
    avg_n: int = 1
    seed: int = 42


def score_rows(name: str, rows: Sequence[Row], inputs: Inputs) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The scores of a whole pool of ``rows`` by the scorer ``name``, (N,) float32. All ranks call it.

    Raises ``UserError``: unknown name, something it needs is missing, not one finite number per row, a scorer that is
    no function of rows and inputs (see `run.RowScoring`).
    """
    import numpy as np

    function = SCORERS.load(name)
    if isinstance(function, type):
        raise UserError(
            f"scorer {name} works through a model of its own; use similarity/score_rows.py --scorers {name}"
        )
    missing = [need for need in SCORERS.facts(name).get("needs", ()) if getattr(inputs, need, None) is None]
    if missing:
        raise UserError(f"scorer {name} needs {' and '.join(missing)}; give them or choose another scorer")
    scores = np.asarray(function(rows, inputs), dtype=np.float32)
    if scores.shape != (len(rows),):
        raise UserError(
            f"scorer {name} gave numbers of shape {scores.shape} for {len(rows)} rows; expected one per row"
        )
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise UserError(f"scorer {name} gave no finite number for {len(bad)} rows (first: {rows[bad[0]]['id']})")
    return scores
