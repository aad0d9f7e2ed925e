"""Projections on a compliance direction, and on the subspace on which layers and prompts agree.

A pair is one harmful prompt with a compliant and with a refusing answer. Where no refusing answers to the anchors'
prompts are given, answers of the safe rows are put to these prompts (seeded), which is recorded.

The direction at a layer is the mean over pairs of (mean hidden state over the compliant answer - over the refusing
one); a row's score is the shift that its answer makes along it, ``(mean over the answer - last prompt token) . v/|v|``
(DataShield: Zhang et al. 2026, arXiv 2606.00160, compliance shift score; the difference of means is Arditi et al.'s,
arXiv 2406.11717). The layer is the one at which the direction separates the pairs best, by DataShield's
compliance-aware score: between-class variance along v over total variance along v, of standardised states.

The consensus subspace is spanned by the first right singular vectors of all pairs' unit differences at all layers
(stacked, pairs x layers by D): the residual stream has one basis, so layers can agree. Each vector points where the
mean difference has a positive part; a score is the shift's coordinates there, weighted with the singular values' shares
and averaged over layers after each layer's shifts are scaled to the pairs' mean difference length.

Shapes: P pairs, L layers, D hidden.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from guardrail.core.errors import UserError
from guardrail.data.rows import Row
from guardrail.similarity.scorers.interface import Batch, Scorer, Scores

ANSWER, PROMPT = "completion_mean", "prompt_last"
Array = np.ndarray[Any, Any]


class _Shift(Scorer):
    """What both scorers read: the mean state over the answer and the last one of the prompt, at every layer."""

    positions = (ANSWER, PROMPT)
    every_layer = True

    def not_applicable(self) -> str | None:
        if self.resources.config.representations:
            return "it needs hidden states of prompts and answers, not one stored vector"
        return "an encoder has no last prompt token" if self.resources.is_encoder else None

    @property
    def layers(self) -> range:
        """Layer 0, the embeddings, says nothing of the prompt."""
        return range(1, self.resources.facts.n_layers + 1)

    def states(self, vectors: dict[str, Any], position: str) -> Array:
        """(L, n, D) float64."""
        views = [vectors[self.resources.view(layer, position)] for layer in self.layers]
        return np.stack([one.double().numpy() for one in views])

    def differences(self) -> tuple[Array, Array, Array]:
        """(L, P, D) compliant minus refusing, and the two."""
        compliant, refusing = pair_rows(
            self.resources.set_rows("anchors"),
            self.resources.set_rows("refusals"),
            bool(self.resources.config.refusals),
            self.resources.config.seed,
        )
        both = []
        for rows in (compliant, refusing):
            vectors, reasons = self.resources.vectors(rows)
            assert not reasons
            both.append(self.states(vectors, ANSWER))
        return both[0] - both[1], both[0], both[1]

    def shifts(self, batch: Batch) -> Array:
        """(L, n, D): where the answer moves the state to."""
        return self.states(batch.vectors[0], ANSWER) - self.states(batch.vectors[0], PROMPT)


class Compliance(_Shift):
    """Shift along the compliance direction at the layer that separates best (module docstring)."""

    def prepare(self) -> None:
        differences, compliant, refusing = self.differences()
        directions = unit(differences.mean(axis=1))  # (L, D)
        separation = [separates(d, a, b) for d, a, b in zip(directions, compliant, refusing, strict=True)]
        self.best = int(np.argmax(separation))
        self.direction = directions[self.best]

    def score(self, batch: Batch) -> Scores:
        return Scores.of(np.einsum("nd,d->n", self.shifts(batch)[self.best], self.direction), batch.vectors[1])


class ComplianceSubspace(_Shift):
    """Shift inside the consensus subspace of layers and prompts (module docstring)."""

    def prepare(self) -> None:
        differences, _, _ = self.differences()
        L, P, D = differences.shape
        lengths = np.linalg.norm(differences, axis=2).mean(axis=1)  # (L,)
        self.scale = np.maximum(lengths, 1e-12)
        _, values, vectors = np.linalg.svd(unit(differences).reshape(L * P, D), full_matrices=False)
        k = min(self.resources.config.subspace_dim, len(values))
        mean = unit(differences).reshape(L * P, D).mean(axis=0)
        signs = np.where(vectors[:k] @ mean < 0, -1.0, 1.0)
        self.basis = vectors[:k] * signs[:, None]  # (k, D)
        self.weights = values[:k] / max(float(values[:k].sum()), 1e-12)

    def score(self, batch: Batch) -> Scores:
        scaled = self.shifts(batch) / self.scale[:, None, None]
        return Scores.of(np.einsum("lnd,kd,k->n", scaled, self.basis, self.weights) / len(scaled), batch.vectors[1])


def unit(vectors: Array) -> Array:
    """Length 1 along the last axis; zero stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def separates(direction: Array, compliant: Array, refusing: Array) -> float:
    """Between-class over total scatter along ``direction``, in [0, 1], of states standardised over both classes."""
    both = np.concatenate([compliant, refusing])
    along = (both - both.mean(axis=0)) / np.maximum(both.std(axis=0), 1e-12) @ direction
    total = float(np.square(along - along.mean()).sum())
    between = sum(len(part) * (part.mean() - along.mean()) ** 2 for part in np.split(along, [len(compliant)]))
    return float(between / total) if total > 0 else 0.0


def pair_rows(anchors: list[Row], refusing: list[Row], to_the_same: bool, seed: int) -> tuple[list[Row], list[Row]]:
    """Rows with one prompt each: the anchor, and the same prompt refused.

    Args:
        to_the_same: ``refusing`` answers the anchors' own prompts, joined by the conversation before the answer; else
            its answers are dealt to the anchors' prompts, by the seed.

    Raises ``UserError``: no anchor's prompt occurs among ``refusing``.
    """
    if to_the_same:
        answers = {repr(row["messages"][:-1]): row["messages"][-1] for row in refusing}
        found = [(row, answers[key]) for row in anchors if (key := repr(row["messages"][:-1])) in answers]
        if not found:
            raise UserError(
                "--refusals: none of its prompts is a prompt of --anchors; expected the same prompts, refused"
            )
    else:
        order = np.random.default_rng(seed).permutation(len(refusing))
        found = [(row, refusing[order[i % len(order)]]["messages"][-1]) for i, row in enumerate(anchors)]
    return [row for row, _ in found], [{**row, "messages": [*row["messages"][:-1], answer]} for row, answer in found]
