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
from typing import Any

PROGRESS_EVERY_SEC = 5.0


@dataclass(frozen=True)
class TrainOptions:
    """Options of one run. Batches hold up to ``tokens_per_batch`` padded tokens of rows of similar length.

    ``learning_rate`` is AdamW's; with ``matrix_learning_rate`` the hidden matrices are trained by Muon at that rate.
    """

    learning_rate: float
    matrix_learning_rate: float | None = None
    epochs: int = 1
    tokens_per_batch: int = 2048
    warmup_fraction: float = 0.05
    decay_fraction: float = 0.4
    weight_decay: float = 0.01
    clip_norm: float = 1.0
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


def make_optimizers(model: Any, options: TrainOptions) -> list[Any]:
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
    return [adamw, Muon(matrices, lr=rate)] if rate else [adamw]


def rank_of_ranks() -> tuple[int, int]:
    """This process's rank and the number of ranks; ``(0, 1)`` without a process group."""
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def n_targets(batch: list[Example], per_token: bool) -> int:
    """How many terms the loss of a whole batch is the mean of: answer tokens, or rows times labels."""
    if per_token:
        return sum(label != -100 for example in batch for label in example.labels[1:])
    return sum(len(example.labels) for example in batch)


def summed_loss(model: Any, part: list[Example], pad_id: int, per_token: bool) -> Any:
    """The loss of this rank's rows, summed over tokens (or rows and labels)."""
    import torch
    from torch.nn import functional

    width = max(len(example.input_ids) for example in part)
    # Right padding needs no mask: a causal model's real tokens never see it.
    ids = torch.tensor([e.input_ids + [pad_id] * (width - len(e.input_ids)) for e in part])  # (B, T)
    if not per_token:
        target = torch.tensor([example.labels for example in part], dtype=torch.float32)
        logits = model(input_ids=ids).logits
        return functional.binary_cross_entropy_with_logits(logits, target, reduction="sum")
    labels = torch.tensor([e.labels + [-100] * (width - len(e.labels)) for e in part])  # (B, T)
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]  # (B, T-1, D)
    kept = labels[:, 1:] != -100
    logits = model.lm_head(hidden[kept])  # answer tokens only
    return functional.cross_entropy(logits, labels[:, 1:][kept], reduction="sum")


def share_gradients(model: Any, loss: float) -> float:
    """Sum all gradients over the ranks in one message; returns the summed loss."""
    import torch
    import torch.distributed as dist

    parameters = list(model.parameters())
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([*(p.grad.flatten() for p in parameters), torch.tensor([loss])])
    dist.all_reduce(flat)
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

    rank, ranks = rank_of_ranks()
    torch.manual_seed(options.seed)
    rng = random.Random(options.seed)
    lengths = [len(example.input_ids) for example in examples]
    epochs = [make_batches(lengths, options.tokens_per_batch, rng) for _ in range(options.epochs)]
    batches = [batch for epoch in epochs for batch in epoch]
    optimizers = make_optimizers(model, options)
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
        loss = 0.0
        if part := [examples[i] for i in rows[rank::ranks]]:
            total = summed_loss(model, part, pad_id, per_token) / n_targets([examples[i] for i in rows], per_token)
            total.backward()
            loss = float(total.detach())
        losses.append(share_gradients(model, loss) if ranks > 1 else loss)
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
