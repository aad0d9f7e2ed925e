"""Token tensors of a micro-batch, and the loss on them.

Rows are padded on the right, so under causal attention no real token ever sees a pad: no attention mask is needed,
and a pad id that is also a real token (EOS, unk) does no harm. Logits are computed only where some row has a label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from guardrail.data.prompts import IGNORE_INDEX
from guardrail.training.batching import Sequence
from guardrail.training.data import TokenisedRows

if TYPE_CHECKING:
    import torch


@dataclass
class Batch:
    """One rank's micro-batch. ``targets`` (B, K) are the labels of the K positions in ``inputs['logits_to_keep']``."""

    inputs: dict[str, Any]
    targets: torch.Tensor
    n_real_tokens: int
    n_tokens: int


def padded_batch(
    data: TokenisedRows, sequences: tuple[Sequence, ...], repeated: tuple[bool, ...], pad_id: int, device: Any
) -> Batch:
    """One row per sequence, (B, T), padded on the right. Repeated rows get no labels."""
    rows = [sequence[0] for sequence in sequences]
    lengths = data.lengths[rows]
    width = int(lengths.max())
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    labels = np.full((len(rows), width), IGNORE_INDEX, dtype=np.int64)
    for i, (row, skip) in enumerate(zip(rows, repeated, strict=True)):
        ids[i, : lengths[i]] = data.input_ids(row)
        if not skip:
            labels[i, : lengths[i]] = data.labels(row)
    return _batch({"input_ids": ids}, labels, int(lengths.sum()), device)


def packed_batch(
    data: TokenisedRows, sequences: tuple[Sequence, ...], repeated: tuple[bool, ...], device: Any
) -> Batch:
    """All rows of all sequences in one line, (1, T): nothing is padded.

    ``position_ids`` start again at 0 with each row and ``cu_seq_lens`` mark the borders, so that attention stays
    inside a row; the first token of a row is nobody's target.
    """
    rows = [row for sequence in sequences for row in sequence]
    skips = [skip for sequence, skip in zip(sequences, repeated, strict=True) for _ in sequence]
    parts = []
    for row, skip in zip(rows, skips, strict=True):
        labels = data.labels(row)
        labels[0] = IGNORE_INDEX
        if skip:
            labels[:] = IGNORE_INDEX
        parts.append(labels)
    lengths = data.lengths[rows]
    arrays = {
        "input_ids": np.concatenate([data.input_ids(row) for row in rows])[None].astype(np.int64),
        "position_ids": np.concatenate([np.arange(length) for length in lengths])[None],
    }
    batch = _batch(arrays, np.concatenate(parts)[None], int(lengths.sum()), device)
    import torch

    borders = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)).to(device)
    longest = int(lengths.max())
    batch.inputs |= dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), borders)
    batch.inputs |= dict.fromkeys(("max_length_q", "max_length_k"), longest)
    return batch


def _batch(arrays: dict[str, np.ndarray], labels: np.ndarray, n_real_tokens: int, device: Any) -> Batch:
    import torch

    columns = np.flatnonzero((labels[:, 1:] != IGNORE_INDEX).any(axis=0))
    if len(columns) == 0:  # nothing to learn here (only repeated rows): one position keeps the graph alive
        columns = np.array([0])
    targets = labels[:, columns + 1] if labels.shape[1] > 1 else np.full((len(labels), 1), IGNORE_INDEX)
    tensors: dict[str, Any] = {
        name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in arrays.items()
    }
    tensors["logits_to_keep"] = torch.from_numpy(columns).to(device, non_blocking=True)
    return Batch(
        tensors,
        torch.from_numpy(np.ascontiguousarray(targets)).to(device, non_blocking=True),
        n_real_tokens,
        arrays["input_ids"].size,
    )


def summed_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum of the cross-entropies over labelled positions, in float32. ``logits`` (B, K, V), ``targets`` (B, K)."""
    import torch.nn.functional as F

    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")
