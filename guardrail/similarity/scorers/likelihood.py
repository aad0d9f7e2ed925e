"""Perplexity of a row's answer under the model: a control that knows of the model and of no anchor."""

from __future__ import annotations

import numpy as np

from guardrail.similarity.scorers.interface import Batch, Scorer, Scores


class Perplexity(Scorer):
    """``exp`` of the mean cross-entropy per answer token: what training on the row would have to change most."""

    def not_applicable(self) -> str | None:
        return "an encoder gives no likelihood" if self.resources.is_encoder else None

    def score(self, batch: Batch) -> Scores:
        losses, reasons = batch.losses
        with np.errstate(over="ignore"):
            return Scores.of(np.exp(losses), reasons)
