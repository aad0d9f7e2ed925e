"""Training loss of a model on held-out rows: teacher-forced negative log-likelihood of the last assistant turn.

The rows are encoded exactly as in training (``encode_supervised``: same ids, same mask), so that the number is the
loss that the trainer would log for them. It lets arms be compared at matched capability, not only at equal epochs.
Batches are length-sorted and left-padded: answers lie at the end of a row, so logits are computed for the last
positions only. B batch, T tokens, A answer tokens, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from guardrail.core.batches import length_order
from guardrail.core.errors import UserError
from guardrail.core.progress import progress
from guardrail.core.ranks import gather, shard
from guardrail.data.prompts import SupervisedExample, encode_supervised
from guardrail.data.rows import Row
from guardrail.models.loading import load_causal_lm
from guardrail.models.memory import Budget

BATCH_TOKENS = 8192


@dataclass(frozen=True)
class RowLoss:
    """Summed loss (nats) over the ``n_tokens`` answer tokens of row ``id``; ``truncated`` if its end was cut."""

    id: str
    nll_nats: float
    n_tokens: int
    truncated: bool


def encode_rows(tokenizer: Any, style: str, rows: list[Row], max_length: int | None) -> list[SupervisedExample]:
    """Rows with ``messages`` (prompt) and ``reference`` as training examples."""
    answers = [{"role": "assistant", "content": row["reference"]} for row in rows]
    return [
        encode_supervised(tokenizer, style, [*row["messages"], answer], max_length)
        for row, answer in zip(rows, answers, strict=True)
    ]


def heldout_losses(
    model_name_or_path: str,
    tokenizer: Any,
    style: str,
    rows: list[Row],
    *,
    torch_dtype: str = "float32",
    max_length: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    model: Any = None,
    trust_remote_code: bool = False,
) -> list[RowLoss]:
    """Losses of all rows, in order, on every rank (each computes its share). Call inside ``process_group()``.

    A row whose answer was cut away entirely at ``max_length`` has ``n_tokens`` 0. Batches that do not fit into memory
    are halved. Raises ``UserError`` where one row alone does not fit.
    """
    examples = encode_rows(tokenizer, style, rows, max_length)
    lengths = [len(example.input_ids) for example in examples]
    mine = shard(length_order(lengths))
    if model is None and mine:
        model = load_causal_lm(model_name_or_path, torch_dtype, trust_remote_code=trust_remote_code)
    sums: dict[int, tuple[float, int]] = {}

    def compute(places: list[int]) -> list[tuple[float, int]]:
        return _batch_nll(model, [examples[mine[place]] for place in places])

    def too_long(place: int) -> str:
        return (
            f"the model does not fit in memory with one held-out row of {lengths[mine[place]]} tokens; cut it shorter"
        )

    with progress(total=len(mine), desc="held-out loss") as bar:
        for places, found in Budget(batch_tokens).run([lengths[i] for i in mine], compute, too_long):
            sums.update(zip((mine[place] for place in places), found, strict=True))
            bar.update(len(places))
    merged: dict[int, tuple[float, int]] = {}
    for part in gather(sums):
        merged.update(part)
    assert sorted(merged) == list(range(len(rows))), "a held-out row has no loss"
    return [RowLoss(row["id"], merged[i][0], merged[i][1], examples[i].truncated) for i, row in enumerate(rows)]


def _batch_nll(model: Any, examples: list[SupervisedExample]) -> list[tuple[float, int]]:
    """``(summed nll, answer tokens)`` of each example of one batch."""
    import torch

    device = next(model.parameters()).device
    T = max(len(example.input_ids) for example in examples)
    spans = [example.answer_spans[-1] for example in examples]
    # every answer token needs the logits of the position before it
    keep = max(1, max(len(e.input_ids) - s[0] for e, s in zip(examples, spans, strict=True)) + 1)
    keep = min(keep, T)
    ids = torch.zeros((len(examples), T), dtype=torch.long)
    mask = torch.zeros_like(ids)
    wanted = torch.zeros((len(examples), T), dtype=torch.bool)
    for i, (example, (start, end)) in enumerate(zip(examples, spans, strict=True)):
        offset = T - len(example.input_ids)
        ids[i, offset:] = torch.tensor(example.input_ids)
        mask[i, offset:] = 1
        wanted[i, offset + max(start, 1) : offset + end] = True
    positions = (mask.cumsum(1) - 1).clamp_(min=0)
    with torch.inference_mode():
        logits = model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            use_cache=False,
            logits_to_keep=keep,
        ).logits  # (B, keep, V)
        targets = ids[:, T - keep + 1 :].to(device)  # (B, keep - 1)
        nll = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), targets.flatten(), reduction="none"
        ).view_as(targets)
        chosen = wanted[:, T - keep + 1 :].to(device)
        sums = (nll * chosen).double().sum(1).tolist()
    return list(zip(sums, chosen.sum(1).tolist(), strict=True))


def summarise_losses(losses: list[RowLoss], seed: int = 0) -> dict[str, Any]:
    """Mean loss per answer token with a 95% bootstrap interval over rows, the mean over rows, perplexity, counts.

    ``loss_nats_per_token`` weighs tokens alike (what a trainer logs over large batches), ``..._per_row`` rows.
    Raises ``UserError`` when no row kept an answer token, or a loss is not finite.
    """
    from guardrail.statistics.resampling import bootstrap_ratio

    scored = [loss for loss in losses if loss.n_tokens]
    if not scored:
        raise UserError("no held-out row has an answer within the model's context; give shorter rows")
    bad = [loss.id for loss in scored if not math.isfinite(loss.nll_nats)]
    if bad:
        raise UserError(f"the loss of {len(bad)} held-out rows is not finite (first: {bad[0]!r}); is the model intact?")
    sums, tokens = [loss.nll_nats for loss in scored], [loss.n_tokens for loss in scored]
    estimate = bootstrap_ratio(sums, tokens, seed=seed)
    mean = estimate.value
    return {
        "loss_nats_per_token": mean,
        "loss_interval_nats_per_token": [estimate.low, estimate.high],
        "loss_nats_per_token_mean_of_rows": sum(s / t for s, t in zip(sums, tokens, strict=True)) / len(scored),
        "perplexity": math.exp(min(mean, 700.0)),
        "n": len(scored),
        "n_answer_tokens": sum(tokens),
        "n_truncated": sum(loss.truncated for loss in losses),
        "n_without_answer_tokens": len(losses) - len(scored),
    }
