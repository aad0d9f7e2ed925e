"""What a scorer is, what it gives, and what a batch of rows offers it.

    class Shouting(Scorer):
        def score(self, batch):
            return Scores.of([text.isupper() for text in batch.answers])

A scorer is made once for a run and sees the rows batch by batch, in any order: a row's score depends on the row and on
what the scorer has prepared (anchors, directions), never on the other rows of the batch. What several scorers use is
computed once per batch (`Batch.vectors`, `Batch.losses`, `Batch.gradients`).

A row that a scorer does not apply to has no score: NaN and a reason, never zero.
Shapes: n rows of the batch, D hidden.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from guardrail.core import ranks
from guardrail.core.errors import UserError
from guardrail.data.rows import Row, response
from guardrail.similarity.scorers import SCORERS, Inputs

if TYPE_CHECKING:
    from guardrail.similarity.scorers.resources import Resources
    from guardrail.similarity.scorers.row_gradients import RowGradients
    from guardrail.similarity.scorers.tokens import Encoded

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Scores:
    """``values`` (n,) float64, NaN where there is no score; ``reasons`` says why, by place in the batch."""

    values: Array
    reasons: Mapping[int, str]

    @classmethod
    def of(cls, values: Any, reasons: Mapping[int, str] | None = None) -> Scores:
        """Scores of all rows but those that have a reason or no finite number."""
        out = np.array(values, dtype=np.float64)
        reasons = dict(reasons or {})
        reasons |= {place: NOT_FINITE for place in np.flatnonzero(~np.isfinite(out)).tolist() if place not in reasons}
        out[list(reasons)] = np.nan
        return cls(out, reasons)

    @classmethod
    def none(cls, n: int, reason: str) -> Scores:
        """No score for any of ``n`` rows."""
        return cls(np.full(n, np.nan), dict.fromkeys(range(n), reason))


NOT_FINITE = "the number overflowed; try --torch_dtype float32"


class Batch:
    """Some rows, and what their scorers share. Nothing is computed before it is asked for."""

    def __init__(self, rows: Sequence[Row], resources: Resources) -> None:
        self.rows, self.resources = rows, resources

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def answers(self) -> list[str]:
        """The last assistant message of every row; empty where there is none."""
        return [response(row) for row in self.rows]

    @functools.cached_property
    def encoded(self) -> tuple[list[Encoded | None], dict[int, str]]:
        """Token ids and trained positions of every row, as training sees it, and why a row has none."""
        return self.resources.encode(self.rows)

    @functools.cached_property
    def vectors(self) -> tuple[dict[str, Any], dict[int, str]]:
        """``{view: (n, D) float32 tensor}`` (zeros where a row has none), and why a row has none."""
        return self.resources.vectors(self.rows)

    @functools.cached_property
    def losses(self) -> tuple[Array, dict[int, str]]:
        """Mean cross-entropy per answer token in nats, (n,) float64, and why a row has none."""
        return self.resources.losses(*self.encoded)

    @functools.cached_property
    def gradients(self) -> tuple[RowGradients, dict[int, str]]:
        """What is known of each row's gradient, and why a row has none."""
        return self.resources.row_gradients(*self.encoded)


class Scorer:
    """The interface. ``name`` is the registered one; ``resources`` are the run's.

    ``positions`` and ``every_layer`` say which hidden states of a row are wanted beside those of the cosines
    (`Batch.vectors`). ``prepare`` is called once, before the first batch.
    """

    positions: tuple[str, ...] = ()
    every_layer: bool = False

    def __init__(self, name: str, resources: Resources) -> None:
        self.name, self.resources = name, resources

    def not_applicable(self) -> str | None:
        """Why this scorer can give nothing with this model, known before anything is loaded; None: it can."""
        return None

    def prepare(self) -> None:
        """What the anchors and other sets give."""

    def score(self, batch: Batch) -> Scores:
        raise NotImplementedError


class FunctionScorer(Scorer):
    """A function ``(rows, inputs) -> numbers``, called batch by batch: it must look at each row alone."""

    def score(self, batch: Batch) -> Scores:
        needs = SCORERS.facts(self.name).get("needs", ())
        config = self.resources.config
        given: dict[str, Any] = {}
        reasons: Mapping[int, str] = {}
        if "anchors" in needs:
            given["anchors"] = self.resources.set_vectors("anchors")
        if "representations" in needs:
            vectors, reasons = batch.vectors
            given["representations"] = vectors[self.resources.main_view]
        inputs = Inputs(avg_n=config.avg_n, seed=config.seed, **given)
        with ranks.alone():  # a function may share a whole pool over the ranks: these rows are this rank's
            values = np.asarray(SCORERS.load(self.name)(batch.rows, inputs), dtype=np.float64)
        if values.shape != (len(batch),):
            raise UserError(f"scorer {self.name} gave numbers of shape {values.shape} for {len(batch)} rows")
        return Scores.of(values, reasons)


def make_scorer(name: str, resources: Resources) -> Scorer:
    """The scorer ``name``, not prepared yet. Raises ``UserError`` for an unknown name."""
    found = SCORERS.load(name)
    kind: type[Scorer] = found if isinstance(found, type) else FunctionScorer
    return kind(name, resources)
