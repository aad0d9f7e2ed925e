"""Token tensors of a micro-batch, padded or in one line, the attention that keeps packed rows apart, and the loss.

Padded rows have their pads on the right, so under causal attention no real token ever sees one: no attention mask is
needed, and a pad id that is also a real token (EOS, unk) does no harm. Logits are computed for the tokens that have a
label and for no other: with rows of different lengths, no two answers lie at the same positions.

A batch of ``packed`` or ``padding_free`` is one line of tokens, (1, T), with row borders in ``cu_seq_lens_q``. Where
the model's attention is the plain kind, ``packed_attention`` runs causal attention per row, rows of similar length
together, at the cost of the rows and not of T x T; under ``padding_free`` what all rows of a line begin with is then
computed once. With flash-attention 2 its variable-length kernel keeps rows apart.
Models with sliding windows or capped scores keep transformers' own block mask, made from the restarting position ids,
under ``packed``, and their pads under ``padding_free``.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from guardrail.core.errors import UserError
from guardrail.data.prompts import IGNORE_INDEX
from guardrail.training.data import TokenisedRows
from guardrail.training.steps import Sequence

if TYPE_CHECKING:
    import torch

NAME = "guardrail_packed"


@dataclass
class Batch:
    """One rank's micro-batch. The token at ``(rows[i], positions[i])`` has to predict ``targets[i]``; all are (n,).

    ``only_read``: the last states of other tokens need not be right (`labelled_logits`).
    """

    inputs: dict[str, Any]
    rows: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    n_real_tokens: int
    n_tokens: int
    only_read: bool = field(default=False, init=False)


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
    data: TokenisedRows,
    sequences: tuple[Sequence, ...],
    repeated: tuple[bool, ...],
    device: Any,
    share_beginning: bool = False,
) -> Batch:
    """All rows of all sequences in one line, (1, T): nothing is padded.

    ``position_ids`` start again with each row and ``cu_seq_lens`` mark the borders, so that attention stays inside a
    row; the first token of a row is nobody's target.

    ``share_beginning``: what all rows begin with (a prompt style's frame and system text) is in the line once, before
    the first border, and belongs to every row; only `packed_attention` understands it. Under causal attention its
    states are the same in every row, and its gradient is the sum of theirs. The batch is then ``only_read``.
    """
    rows = [row for sequence in sequences for row in sequence]
    skips = [skip for sequence, skip in zip(sequences, repeated, strict=True) for _ in sequence]
    ids, labels = [data.input_ids(row) for row in rows], []
    for row, skip in zip(rows, skips, strict=True):
        of_row = data.labels(row)
        of_row[0] = IGNORE_INDEX
        if skip:
            of_row[:] = IGNORE_INDEX
        labels.append(of_row)
    shared = shared_beginning(ids, labels) if share_beginning else 0
    lengths = data.lengths[rows]
    arrays = {
        "input_ids": np.concatenate([ids[0][:shared], *(one[shared:] for one in ids)])[None].astype(np.int64),
        "position_ids": np.concatenate([np.arange(shared), *(np.arange(shared, n) for n in lengths)])[None],
    }
    of_line = np.concatenate([labels[0][:shared], *(one[shared:] for one in labels)])
    batch = _batch(arrays, of_line[None], int(lengths.sum()), device)
    batch.n_tokens, batch.only_read = batch.n_real_tokens, share_beginning
    import torch

    borders = torch.from_numpy((shared + np.concatenate([[0], np.cumsum(lengths - shared)])).astype(np.int32))
    longest = int(lengths.max())
    batch.inputs |= dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), borders.to(device))
    batch.inputs |= dict.fromkeys(("max_length_q", "max_length_k"), longest)
    return batch


def shared_beginning(ids: list[np.ndarray], labels: list[np.ndarray]) -> int:
    """How many tokens all rows begin with, of one row or more; each keeps a token of its own, and the first label of
    each is predicted by such a token (the shared ones would have to predict several)."""
    if len(ids) < 2:
        return 0
    shared = len(ids[0]) - 1
    for one, of_row in zip(ids, labels, strict=True):
        labelled = np.flatnonzero(of_row != IGNORE_INDEX)
        shared = min(shared, len(one) - 1, int(labelled[0]) - 1 if len(labelled) else len(one) - 1)
        other = np.flatnonzero(one[:shared] != ids[0][:shared])
        shared = int(other[0]) if len(other) else shared
    return max(shared, 0)


def _batch(arrays: dict[str, np.ndarray], labels: np.ndarray, n_real_tokens: int, device: Any) -> Batch:
    import torch

    rows, positions = np.nonzero(labels[:, 1:] != IGNORE_INDEX)
    if len(rows) == 0:  # nothing to learn here (only repeated rows): one token without a label keeps the graph alive
        rows, positions, targets = np.zeros(1, np.int64), np.zeros(1, np.int64), np.full(1, IGNORE_INDEX)
    else:
        targets = labels[rows, positions + 1]
    inputs, kept = (
        {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in group.items()}
        for group in (arrays, {"rows": rows, "positions": positions, "targets": targets})
    )
    return Batch(inputs, **kept, n_real_tokens=n_real_tokens, n_tokens=arrays["input_ids"].size)


def labelled_logits(engine: Any, batch: Batch) -> torch.Tensor:
    """Logits (n, V) of the tokens that have a label. ``engine`` is a causal LM, or wraps one as ``engine.module``.

    Of an ``only_read`` line the last block's feed-forward part sees these tokens alone, except where a backward pass
    would run the block again: by then it is whole again.
    """
    from guardrail.models.blocks import last_block
    from guardrail.models.labelled_logits import logits_at
    from guardrail.models.last_block import feed_forward_at

    model = getattr(engine, "module", engine)
    whole = not batch.only_read or getattr(model, "is_gradient_checkpointing", False)
    block = None if whole else last_block(model)
    with feed_forward_at(block, batch.positions[None]):
        return logits_at(engine, batch.inputs, batch.rows, batch.positions)


def summed_loss(engine: Any, batch: Batch) -> torch.Tensor:
    """Sum of the cross-entropies over labelled tokens, in float32."""
    import torch.nn.functional as F

    logits = labelled_logits(engine, batch).float()
    return F.cross_entropy(logits, batch.targets, ignore_index=IGNORE_INDEX, reduction="sum")


def token_losses(engine: Any, batch: Batch) -> torch.Tensor:
    """The cross-entropies (n,) of the labelled tokens, in float32; 0 for a target that does not count."""
    import torch.nn.functional as F

    logits = labelled_logits(engine, batch).float()
    return F.cross_entropy(logits, batch.targets, ignore_index=IGNORE_INDEX, reduction="none")


@contextlib.contextmanager
def attention_of(model: Any, name: str) -> Iterator[None]:
    """Inside, ``model`` attends as ``name`` does: to generate, with pads on the left and a cache, packed rows'
    attention would be wrong."""
    current = model.config._attn_implementation
    if current == name:
        yield
        return
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(current)


def line_attention(model: Any, batching: str) -> str | None:
    """The attention for micro-batches that are one line of tokens, switched on; None where they are padded.

    So are those of ``padding_free`` where a model's attention is not the plain kind: the rows of a step are the same,
    and the mask of a line would have the square of all its tokens.
    """
    plain = _is_plain(model.config) or model.config._attn_implementation == "flash_attention_2"
    if batching == "packed" or (batching == "padding_free" and plain and model._supports_attention_backend):
        return enable_packed_attention(model)
    return None


def enable_packed_attention(model: Any) -> str:
    """Switch ``model`` to an attention that keeps rows apart; returns its name.

    Raises ``UserError`` for a model that does not tell its attention where rows end.
    """
    if not model._supports_attention_backend:
        raise UserError(
            f"the attention of {type(model).__name__} cannot keep packed rows apart; use --batching length_grouped"
        )
    current = getattr(model.config, "_attn_implementation", "sdpa")
    if current == "flash_attention_2" or not _is_plain(model.config):
        return current
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)
    model.set_attn_implementation(NAME)
    return NAME


def _is_plain(config: Any) -> bool:
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return not windowed and not getattr(config, "attn_logit_softcapping", None)


def length_groups(lengths: list[int]) -> list[list[int]]:
    """Row numbers in groups whose longest is under 1.5 times the shortest plus 16: little padding, few calls."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    groups: list[list[int]] = []
    for row in order:
        if groups and lengths[row] <= 1.5 * lengths[groups[-1][0]] + 16:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each row. ``query`` (1, H, T, D), ``key`` and ``value`` (1, H', T, D) -> (1, T, H, D).

    Without ``cu_seq_lens_q`` (evaluation on padded rows) it is ordinary causal attention.
    """
    import torch.nn.functional as F

    borders = options.get("cu_seq_lens_q")
    settings: dict[str, Any] = {
        "dropout_p": dropout,
        "scale": scaling,
        "is_causal": True,
        "enable_gqa": query.shape[1] != key.shape[1],
    }
    if borders is None:
        out = F.scaled_dot_product_attention(query, key, value, **settings)
        return out.transpose(1, 2).contiguous(), None
    gather, scatter = _indices(borders, query.device)
    _, H, _, D = query.shape
    flat = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]  # (T, heads, D)
    parts = []
    for index in gather:  # (R, t) token numbers of R rows of similar length, short ones padded with a repeat
        q, k, v = (tensor[index].transpose(1, 2) for tensor in flat)  # (R, heads, t, D)
        parts.append(F.scaled_dot_product_attention(q, k, v, **settings).transpose(1, 2).reshape(-1, H, D))
    import torch

    out = torch.cat(parts)[scatter]  # (T, H, D), back in the line's order
    return out[None], None


_last: tuple[Any, Any] = (None, None)  # borders tensor -> its index tensors: every layer of a step asks for the same


def _indices(borders: torch.Tensor, device: Any) -> tuple[list[torch.Tensor], torch.Tensor]:
    global _last
    if _last[0] is borders:
        return _last[1]
    import numpy as np
    import torch

    starts = borders.tolist()
    lengths = [b - a for a, b in itertools.pairwise(starts)]
    shared = starts[0]  # tokens before the first border are the beginning of every row
    lengths = [shared + length for length in lengths]
    gather, scatter = [], np.empty(starts[-1], dtype=np.int64)
    offset = 0
    for group in length_groups(lengths):
        width = max(lengths[row] for row in group)
        index = np.empty((len(group), width), dtype=np.int64)
        for i, row in enumerate(group):
            # a short row's tail repeats its last token: under the causal mask no real token sees it
            place = np.minimum(np.arange(width), lengths[row] - 1)
            index[i] = np.where(place < shared, place, starts[row] + place - shared)
            here = offset + i * width + np.arange(lengths[row])
            scatter[starts[row] : starts[row + 1]] = here[shared:]
            scatter[:shared] = here[:shared]  # of whichever row: their outputs are equal
        gather.append(torch.from_numpy(index).to(device))
        offset += index.size
    result = (gather, torch.from_numpy(scatter).to(device))
    _last = (borders, result)
    return result
