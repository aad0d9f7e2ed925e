"""Scores from a row's gradient: how large it is, and where it points.

A row's loss is the mean cross-entropy of its answer tokens; the weights are those of ``--gradient_parameters``. The
model is the one that would be fine-tuned, before it is.
"""

from __future__ import annotations

import numpy as np

from guardrail.similarity.scorers.interface import Batch, Scorer, Scores


class _Gradient(Scorer):
    def not_applicable(self) -> str | None:
        return "an encoder has no loss to differentiate" if self.resources.is_encoder else None

    def prepare(self) -> None:
        self.resources.gradients  # noqa: B018 - raises where the model has nothing to look at


class SelfInfluence(_Gradient):
    """Self-Inf-N: ``log(|g|^2 + 1) + log(answer tokens + 1)`` (Guan et al. 2025, arXiv 2505.06843, section 4).

    The second term takes out that short answers have large gradients of their mean loss.
    """

    def score(self, batch: Batch) -> Scores:
        found, reasons = batch.gradients
        return Scores.of(np.log1p(found.squared_norm) + np.log1p(found.n_answer_tokens), reasons)


class GradientCosine(_Gradient):
    """Cosine of the row's gradient and the mean unit gradient of the harmful anchors (He et al. 2024, arXiv 2404.01099,
    section 3.1, gradient matching; they read the first 10 answer tokens: ``--gradient_tokens 10``)."""

    def prepare(self) -> None:
        direction = self.resources.set_gradient("anchors")
        self.length = sum(float(part.double().square().sum()) for part in direction.values()) ** 0.5
        self.resources.gradients.directions["anchors"] = direction

    def score(self, batch: Batch) -> Scores:
        found, reasons = batch.gradients
        lengths = np.sqrt(found.squared_norm) * self.length
        return Scores.of(found.products["anchors"].sum(axis=1) / np.maximum(lengths, 1e-30), reasons)


class GradientProjection(_Gradient):
    """Cosine of the row's projected gradient and the anchors' mean projected unit gradient.

    LESS (Xia et al. 2024, arXiv 2402.04333, section 4) at one checkpoint and without Adam's state: gradients of
    low-rank adapters, multiplied with random signs to ``--projection_dim`` numbers. Adapters and signs come from the
    seed; a row's projection does not depend on its batch.
    """

    def prepare(self) -> None:
        self.resources.gradients.projection_dim = self.resources.config.projection_dim
        self.anchor = self.resources.set_sketch("anchors")

    def score(self, batch: Batch) -> Scores:
        found, reasons = batch.gradients
        assert found.sketches is not None
        lengths = np.linalg.norm(found.sketches, axis=1) * np.linalg.norm(self.anchor)
        return Scores.of(np.einsum("nk,k->n", found.sketches, self.anchor) / np.maximum(lengths, 1e-30), reasons)


class GradientModules(_Gradient):
    """Difference of projections on a danger and a safety direction, with every layer counting the same.

    After SQSD (Wang et al. 2026, arXiv 2605.04572): the risk of a row is how much further the update that it induces
    goes along the direction of harmful fine-tuning than along the direction of safe fine-tuning, module by module. Here
    the directions are mean unit gradients of the anchors and of the safe anchors (both updates are minus these), and a
    module's part is the difference of two cosines, ``cos(g_m, D_m) - cos(g_m, S_m)``: a large module, or one with large
    gradients, weighs no more than a small one. SQSD takes the directions from weights of trained models.
    """

    def prepare(self) -> None:
        for name in ("anchors", "safe_anchors"):
            self.resources.gradients.directions[name] = self.resources.set_gradient(name)

    def score(self, batch: Batch) -> Scores:
        found, reasons = batch.gradients
        if not found.layers:
            return Scores.of(np.full(len(batch), np.nan), reasons)
        lengths = np.sqrt(found.norms)
        parts = []
        for name in ("anchors", "safe_anchors"):
            directions = self.resources.gradients.directions[name]
            of_layers = np.array([float(directions[layer].double().norm()) for layer in found.layers])
            parts.append(found.products[name] / np.maximum(lengths * of_layers, 1e-30))
        return Scores.of((parts[0] - parts[1]).mean(axis=1), reasons)
