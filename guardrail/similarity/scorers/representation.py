"""Scores from a row's hidden state beside the paper's: mean cosine to anchors, to the alignment set, bi-anchor.

All are cosines at one layer and position (``--layer``, ``--position``), in [-1, 1] (bi-anchor: [-2, 2]). Sums are exact
(`cosines.mean_scores`), so that neither batch nor order moves a score.
"""

from __future__ import annotations

from typing import Any

from guardrail.similarity.scorers.cosines import mean_scores, score_pool
from guardrail.similarity.scorers.interface import Batch, Scorer, Scores


class _Cosines(Scorer):
    """A score from the batch's vectors at the main view."""

    def values(self, vectors: Any) -> Any:
        raise NotImplementedError

    def score(self, batch: Batch) -> Scores:
        vectors, reasons = batch.vectors
        return Scores.of(self.values(vectors[self.resources.main_view]), reasons)


class MeanSimilarity(_Cosines):
    """Mean cosine to all anchors: ``top_n_score`` with n = number of anchors (He et al. 2024, arXiv 2404.01099,
    section 3.1, representation matching)."""

    def values(self, vectors: Any) -> Any:
        return mean_scores(vectors, self.resources.set_vectors("anchors"))


class AlignmentSimilarity(_Cosines):
    """Largest cosine to the alignment set, mean of ``--avg_n``: rows alike to what alignment was trained on wear it off
    more (arXiv 2506.05346, section 3)."""

    def values(self, vectors: Any) -> Any:
        return score_pool(vectors, self.resources.set_vectors("alignment"), self.resources.config.avg_n)


class BiAnchor(_Cosines):
    """Mean cosine to the harmful anchors minus mean cosine to the safe ones (LARF: Li et al. 2025, arXiv 2507.18631,
    section 4; He et al. 2024 have the same difference of gradients). LARF reads a middle layer: ``--layer``."""

    def values(self, vectors: Any) -> Any:
        harmful = mean_scores(vectors, self.resources.set_vectors("anchors")).astype("float64")
        return harmful - mean_scores(vectors, self.resources.set_vectors("safe_anchors"))
