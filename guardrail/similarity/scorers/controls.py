"""Scores that know nothing of similarity: what a similarity score has to beat."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from guardrail.data.rows import Row
from guardrail.similarity.scorers import Inputs
from guardrail.similarity.selection.composition import length_chars

Array = np.ndarray[Any, Any]


def score_length(rows: Sequence[Row], inputs: Inputs) -> Array:
    """Characters of the response."""
    return np.asarray([length_chars(row) for row in rows], dtype=np.float32)


def score_random(rows: Sequence[Row], inputs: Inputs) -> Array:
    """Uniform in [0, 1), by the seed and the row's id: the same in any batch and order."""
    seeds = (hashlib.sha256(f"{inputs.seed}:{row['id']}".encode("utf-8", "surrogatepass")) for row in rows)
    return np.asarray([int.from_bytes(seed.digest()[:3], "big") / 2**24 for seed in seeds], dtype=np.float32)
