"""The moderation probability of a training row itself, as a scorer (`guardrail.similarity.scorers`)."""

from __future__ import annotations

import numpy as np

from guardrail.data.rows import is_answered
from guardrail.evaluation.judges.answers import Answer
from guardrail.evaluation.judges.moderation import ModerationModel
from guardrail.similarity.scorers.interface import Batch, Scorer, Scores
from guardrail.similarity.scorers.tokens import NO_ANSWER


class Moderated(Scorer):
    """Largest of Beaver-Dam's 14 probabilities for the row's last question and answer, in [0, 1]; of a long answer the
    largest over windows of it. Source: PKU-Alignment/beavertails (Ji et al. 2023, arXiv 2307.04657, section 5)."""

    def prepare(self) -> None:
        config = self.resources.config
        self.model = ModerationModel(str(config.moderation_model), dtype=config.torch_dtype, shows_progress=False)

    def score(self, batch: Batch) -> Scores:
        values, reasons, places, asked = np.full(len(batch), np.nan), {}, [], []
        for place, row in enumerate(batch.rows):
            if not is_answered(row["messages"]):
                reasons[place] = NO_ANSWER
                continue
            users = [message["content"] for message in row["messages"] if message["role"] == "user"]
            places.append(place)
            asked.append(Answer(row["id"], 0, users[-1] if users else "", row["messages"][-1]["content"]))
        for place, found in zip(places, self.model.score(asked, windows=True) if asked else [], strict=True):
            values[place] = max(found.window_probabilities or found.probabilities)
        return Scores.of(values, reasons)
