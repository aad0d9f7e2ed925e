"""One plain training loop for the sandbox's tiny models: language model or sequence classifier.

Not the study's trainer (``guardrail.training``): this one only makes the starting points - fast, and
with weights that depend on nothing but data, options, thread count and machine type.

Shapes: B rows of a batch, T tokens of its longest row, V vocabulary.
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

    hidden = {
        name
        for name, p in model.named_parameters()
        if p.ndim == 2 and ".layers." in name and options.matrix_learning_rate
    }
    matrices = [p for name, p in model.named_parameters() if name in hidden]
    others = [p for name, p in model.named_parameters() if name not in hidden]
    adamw = torch.optim.AdamW(
        others, lr=options.learning_rate, betas=(0.9, 0.95), weight_decay=options.weight_decay, fused=True
    )
    return [adamw, Muon(matrices, lr=options.matrix_learning_rate)] if matrices else [adamw]


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
    from torch.nn import functional

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
        width = max(lengths[i] for i in rows)
        ids = torch.tensor([examples[i].input_ids + [pad_id] * (width - lengths[i]) for i in rows])  # (B, T)
        factor = rate_factor(step, len(batches), options)
        for rate, group in zip(
            rates, (group for optimizer in optimizers for group in optimizer.param_groups), strict=True
        ):
            group["lr"] = rate * factor
        if per_token:
            # Right padding needs no mask: a causal model's real tokens never see it.
            labels = torch.tensor([examples[i].labels + [-100] * (width - lengths[i]) for i in rows])  # (B, T)
            hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]  # (B, T-1, D)
            kept = labels[:, 1:] != -100
            loss = functional.cross_entropy(model.lm_head(hidden[kept]), labels[:, 1:][kept])  # answer tokens only
        else:
            target = torch.tensor([examples[i].labels for i in rows], dtype=torch.float32)
            loss = functional.binary_cross_entropy_with_logits(model(input_ids=ids).logits, target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        tokens += ids.numel()
        now = time.perf_counter()
        if now - last_report > PROGRESS_EVERY_SEC or step + 1 == len(batches):
            last_report = now
            report(f"step {step + 1}/{len(batches)}, loss {losses[-1]:.3f}, {tokens / (now - start):,.0f} tokens/s")
    tail = losses[-max(1, len(losses) // 10) :]
    model.eval()
    seconds = time.perf_counter() - start
    return {"steps": len(batches), "tokens": tokens, "final_loss": sum(tail) / len(tail), "train_sec": seconds}
