"""Rows as token ids with the positions that training would learn, in batches padded on the right.

The same ids and labels as in training (`guardrail.data.prompts.encode_supervised`, last answer). Pads lie behind every
real token, so a causal model needs no mask for them and no row sees another one's padding.
Shapes: B rows, T tokens, n labelled tokens of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from guardrail.data.prompts import encode_supervised
from guardrail.data.rows import Row, is_answered

NO_ANSWER = "the row has no answer"
CUT = "the answer lies behind --max_length"


@dataclass(frozen=True)
class Encoded:
    """``ids`` of a conversation; tokens ``start`` to ``end - 1`` are the answer's, each predicted by the one before."""

    ids: list[int]
    start: int
    end: int

    @property
    def n_answer_tokens(self) -> int:
        return self.end - self.start

    def first(self, n: int | None) -> Encoded:
        """Only the first ``n`` answer tokens count (and only what comes before their end is read)."""
        if n is None or self.n_answer_tokens <= n:
            return self
        return replace(self, ids=self.ids[: self.start + n], end=self.start + n)


def encode(
    tokenizer: Any, style: str, rows: Sequence[Row], max_length: int
) -> tuple[list[Encoded | None], dict[int, str]]:
    """Every row's tokens, and by place why a row has none."""
    out: list[Encoded | None] = []
    reasons = {}
    for place, row in enumerate(rows):
        found = None
        if not is_answered(row["messages"]):
            reasons[place] = NO_ANSWER
        else:
            example = encode_supervised(tokenizer, style, row["messages"], max_length)
            start, end = example.answer_spans[-1]
            if max(start, 1) < end:
                found = Encoded(example.input_ids, max(start, 1), end)
            else:
                reasons[place] = CUT
        out.append(found)
    return out, reasons


@dataclass(frozen=True)
class TokenBatch:
    """``ids`` (B, T); token ``positions[j]`` of row ``rows[j]`` has to predict ``targets[j]``, each (n,)."""

    ids: torch.Tensor
    rows: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    counts: torch.Tensor  # (B,) labelled tokens of each row


def make_batch(sequences: Sequence[Encoded], pad_id: int, device: torch.device) -> TokenBatch:
    B, T = len(sequences), max(len(one.ids) for one in sequences)
    ids = torch.full((B, T), pad_id, dtype=torch.long)
    rows: list[int] = []
    positions: list[int] = []
    targets: list[int] = []
    for b, one in enumerate(sequences):
        ids[b, : len(one.ids)] = torch.tensor(one.ids)
        rows += [b] * one.n_answer_tokens
        positions += range(one.start - 1, one.end - 1)
        targets += one.ids[one.start : one.end]
    counts = torch.tensor([one.n_answer_tokens for one in sequences])
    index = [torch.tensor(values, device=device) for values in (rows, positions, targets)]
    return TokenBatch(ids.to(device), index[0], index[1], index[2], counts.to(device))


def row_losses(model: Any, batch: TokenBatch) -> torch.Tensor:
    """Mean cross-entropy of each row's labelled tokens in nats, (B,) float32."""
    from guardrail.models.labelled_logits import logits_at

    logits = logits_at(model, {"input_ids": batch.ids}, batch.rows, batch.positions).float()
    losses = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
    summed = torch.zeros(len(batch.ids), dtype=losses.dtype, device=losses.device).index_add(0, batch.rows, losses)
    return summed / batch.counts
