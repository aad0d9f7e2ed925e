"""Attention inside packed sequences: no row sees another.

A packed batch is one line of tokens, (1, T), with row borders in ``cu_seq_lens_q``. Where the model's attention is the
plain kind, ``packed_attention`` runs causal attention per row, rows of similar length together, at the cost of the rows
and not of T x T. With flash-attention 2 its variable-length kernel does the same. Models with sliding windows or capped
scores keep transformers' own block mask, made from the restarting position ids.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

NAME = "guardrail_packed"


def enable_packed_attention(model: Any) -> str:
    """Switch ``model`` to an attention that keeps rows apart; returns its name."""
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
    settings = {"dropout_p": dropout, "scale": scaling, "is_causal": True, "enable_gqa": query.shape[1] != key.shape[1]}
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
    gather, scatter = [], np.empty(starts[-1], dtype=np.int64)
    offset = 0
    for group in length_groups(lengths):
        width = max(lengths[row] for row in group)
        index = np.empty((len(group), width), dtype=np.int64)
        for i, row in enumerate(group):
            # a short row's tail repeats its last token: under the causal mask no real token sees it
            index[i] = starts[row] + np.minimum(np.arange(width), lengths[row] - 1)
            scatter[starts[row] : starts[row + 1]] = offset + i * width + np.arange(lengths[row])
        gather.append(torch.from_numpy(index).to(device))
        offset += index.size
    result = (gather, torch.from_numpy(scatter).to(device))
    _last = (borders, result)
    return result
