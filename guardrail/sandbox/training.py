"""One plain training loop for the sandbox's tiny models: language model or sequence classifier.

Not the study's trainer (``guardrail.training``): this one only makes the starting points - fast, and
with weights that depend on nothing but data, options, the numbers of ranks and threads and the machine type.

Several ranks (a gloo group that is up already) share each batch: one thread each is faster than threads in one
process, which wait for one another in every small operation.

Shapes: B rows of this rank's part of a batch, T tokens of its longest row, V vocabulary.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from guardrail.core.ranks import gather, shard

if TYPE_CHECKING:
    from guardrail.sandbox.exchange import Exchange

PROGRESS_EVERY_SEC = 5.0
T = TypeVar("T")


@dataclass(frozen=True)
class TrainOptions:
    """Options of one run. Batches hold up to ``tokens_per_batch`` padded tokens of rows of similar length.

    ``learning_rate`` is AdamW's; with ``matrix_learning_rate`` the hidden matrices are trained by Muon at that rate.

    With ``learnt_loss`` (classifiers), rows whose loss per label is below it are left out of the backward pass once
    ``learnt_after`` of the steps are done: two thirds of a step's work for gradients that are next to nothing. They
    keep counting in the mean.
    """

    learning_rate: float
    matrix_learning_rate: float | None = None
    epochs: int = 1
    tokens_per_batch: int = 2048
    warmup_fraction: float = 0.05
    decay_fraction: float = 0.4
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    learnt_loss: float | None = None
    learnt_after: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class Example:
    """``labels`` are per token (-100 = no loss) for a language model, per row (multi-hot) for a classifier."""

    input_ids: list[int]
    labels: list[int]


def make_batches(lengths: list[int], tokens_per_batch: int, rng: random.Random) -> list[list[int]]:
    """Row numbers in batches of similar length, shuffled; every row exactly once."""
    noisy = sorted(range(len(lengths)), key=lambda i: lengths[i] + rng.random() * 4)
    batches: list[list[int]] = []
    batch: list[int] = []
    for row in noisy:
        if batch and max(lengths[row], *(lengths[i] for i in batch)) * (len(batch) + 1) > tokens_per_batch:
            batches.append(batch)
            batch = []
        batch.append(row)
    if batch:
        batches.append(batch)
    rng.shuffle(batches)
    return batches


def rate_factor(step: int, total: int, options: TrainOptions) -> float:
    """Linear warm-up, flat, then linear to a twentieth."""
    warmup = max(1, int(total * options.warmup_fraction))
    decay = max(1, int(total * options.decay_fraction))
    return min(1.0, (step + 1) / warmup, max(0.05, (total - step) / decay))


def make_optimizers(model: Any, options: TrainOptions, exchange: Exchange) -> list[Any]:
    """AdamW for everything, or AdamW for embeddings, norms and heads and Muon for the hidden matrices."""
    import torch

    from guardrail.sandbox.optimizer import Muon

    rate = options.matrix_learning_rate
    hidden = {name for name, p in model.named_parameters() if rate and p.ndim == 2 and ".layers." in name}
    matrices = [p for name, p in model.named_parameters() if name in hidden]
    others = [p for name, p in model.named_parameters() if name not in hidden]
    adamw = torch.optim.AdamW(
        others, lr=options.learning_rate, betas=(0.9, 0.95), weight_decay=options.weight_decay, fused=True
    )
    return [adamw, Muon(matrices, exchange, lr=rate)] if rate else [adamw]


def shared(rows: list[Any], work: Callable[[list[Any]], list[T]]) -> list[T]:
    """``work(rows)``, a value per row, of which every rank does its part. Collective."""
    parts = gather(work(shard(rows)))
    return [parts[i % len(parts)][i // len(parts)] for i in range(len(rows))]


def n_targets(batch: list[Example], per_token: bool) -> int:
    """How many terms the loss of a whole batch is the mean of: answer tokens, or rows times labels."""
    if per_token:
        return sum(label != -100 for example in batch for label in example.labels[1:])
    return sum(len(example.labels) for example in batch)


def states_at(body: Any, ids: Any, read: Any) -> Any:
    """``body(ids).last_hidden_state[read]``, (n, D), of a ``LlamaModel`` for ``ids`` and a mask ``read``, both (B, T).

    In the last block only keys and values of the other positions count: its output projection and its feed-forward
    part are left out there: by count, a tenth of the work of the language models and a fifth of the judge's.
    """
    import torch
    from torch.nn import functional
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    hidden = body.embed_tokens(ids)  # (B, T, D)
    angles = body.rotary_emb(hidden, position_ids=torch.arange(ids.shape[1])[None])
    for block in body.layers[:-1]:
        hidden = block(hidden, attention_mask=None, position_embeddings=angles)
    block = body.layers[-1]
    attention, inputs = block.self_attn, block.input_layernorm(hidden)
    heads = (*ids.shape, -1, attention.head_dim)
    query, key, value = (
        part(inputs).view(heads).transpose(1, 2) for part in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = apply_rotary_pos_emb(query, key, *angles)
    mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=attention.scaling)
    states = hidden[read] + attention.o_proj(mixed.transpose(1, 2).flatten(2)[read])
    return body.norm(states + block.mlp(block.post_attention_layernorm(states)))


def unlearnt(model: Any, part: list[Example], pad_id: int, learnt_loss: float) -> list[Example]:
    """Those rows of a classifier's ``part`` whose loss per label is at least ``learnt_loss``."""
    import torch

    with torch.no_grad():
        losses = row_losses(model, part, pad_id).mean(1)
    return [example for example, loss in zip(part, losses.tolist(), strict=True) if loss >= learnt_loss]


def row_losses(model: Any, part: list[Example], pad_id: int) -> Any:
    """A classifier's losses (B, labels)."""
    import torch
    from torch.nn import functional

    width = max(len(example.input_ids) for example in part)
    ids = torch.tensor([e.input_ids + [pad_id] * (width - len(e.input_ids)) for e in part])  # (B, T)
    target = torch.tensor([example.labels for example in part], dtype=torch.float32)
    last = torch.tensor([len(example.input_ids) - 1 for example in part])
    logits = model.score(states_at(model.model, ids, torch.arange(width) == last[:, None]))
    return functional.binary_cross_entropy_with_logits(logits, target, reduction="none")


def summed_loss(model: Any, part: list[Example], pad_id: int, per_token: bool) -> Any:
    """The loss of this rank's rows, summed over tokens (or rows and labels)."""
    import torch
    from torch.nn import functional

    if not per_token:
        return row_losses(model, part, pad_id).sum()
    width = max(len(example.input_ids) for example in part)
    # Right padding needs no mask: a causal model's real tokens never see it.
    ids = torch.tensor([e.input_ids + [pad_id] * (width - len(e.input_ids)) for e in part])  # (B, T)
    # a position's target is the token behind it; the last position has none
    targets = torch.tensor([e.labels[1:] + [-100] * (width - len(e.labels) + 1) for e in part])  # (B, T)
    read = targets != -100
    logits = model.lm_head(states_at(model.model, ids, read))  # answer tokens only
    return functional.cross_entropy(logits, targets[read], reduction="sum")


def share_gradients(model: Any, loss: float, exchange: Exchange) -> float:
    """Sum all gradients over the ranks; returns the summed loss."""
    import torch

    parameters = list(model.parameters())
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = exchange.sums(torch.cat([*(p.grad.flatten() for p in parameters), torch.tensor([loss])]))
    pieces = flat[:-1].split([p.numel() for p in parameters])
    for parameter, piece in zip(parameters, pieces, strict=True):
        parameter.grad.copy_(piece.view_as(parameter))
    return float(flat[-1])


def train(
    model: Any,
    examples: list[Example],
    options: TrainOptions,
    pad_id: int,
    per_token: bool,
    report: Callable[[str], None],
) -> dict[str, float]:
    """Train ``model`` in place. Returns steps, tokens, the mean loss of the last tenth and seconds."""
    import torch

    from guardrail.sandbox.exchange import Exchange

    torch.manual_seed(options.seed)
    rng = random.Random(options.seed)
    lengths = [len(example.input_ids) for example in examples]
    epochs = [make_batches(lengths, options.tokens_per_batch, rng) for _ in range(options.epochs)]
    batches = [batch for epoch in epochs for batch in epoch]
    exchange = Exchange(sum(p.numel() for p in model.parameters()) + 1)
    optimizers = make_optimizers(model, options, exchange)
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    model.train()
    start = last_report = time.perf_counter()
    losses: list[float] = []
    tokens = 0
    for step, rows in enumerate(batches):
        factor = rate_factor(step, len(batches), options)
        for rate, group in zip(
            rates, (group for optimizer in optimizers for group in optimizer.param_groups), strict=True
        ):
            group["lr"] = rate * factor
        loss, part = 0.0, [examples[i] for i in shard(rows)]
        if options.learnt_loss is not None and part and step >= options.learnt_after * len(batches):
            part = unlearnt(model, part, pad_id, options.learnt_loss)
        if part:
            total = summed_loss(model, part, pad_id, per_token) / n_targets([examples[i] for i in rows], per_token)
            total.backward()
            loss = float(total.detach())
        losses.append(share_gradients(model, loss, exchange) if exchange.ranks > 1 else loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        tokens += sum(lengths[i] for i in rows)
        now = time.perf_counter()
        if now - last_report > PROGRESS_EVERY_SEC or step + 1 == len(batches):
            last_report = now
            report(f"step {step + 1}/{len(batches)}, loss {losses[-1]:.3f}, {tokens / (now - start):,.0f} tokens/s")
    tail = losses[-max(1, len(losses) // 10) :]
    model.eval()
    seconds = time.perf_counter() - start
    return {"steps": len(batches), "tokens": tokens, "final_loss": sum(tail) / len(tail), "train_sec": seconds}
