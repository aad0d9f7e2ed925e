"""The evaluation loss during training: mean over all labelled tokens of the evaluation rows."""

from __future__ import annotations

from typing import Any

from guardrail.core.ranks import rank, world_size
from guardrail.training.batches import padded_batch, summed_loss
from guardrail.training.batching import deal
from guardrail.training.config import SFTConfig
from guardrail.training.data import TokenisedRows


def evaluation_loss(engine: Any, data: TokenisedRows, config: SFTConfig, pad_id: int) -> float:
    """Mean cross-entropy per labelled token over all ranks' rows, in the rows' own order. Collective."""
    import torch

    engine.eval()
    total = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for micro in deal([(i,) for i in range(len(data))], config.per_device_eval_batch_size, world_size()):
            batch = padded_batch(data, micro.sequences[rank()], micro.repeated[rank()], pad_id, engine.device)
            total += summed_loss(engine(**batch.inputs, use_cache=False).logits, batch.targets).double().cpu()
    engine.train()
    total = total.to(engine.device)
    if world_size() > 1:
        torch.distributed.all_reduce(total)
    return float(total) / max(int(data.trained_counts.sum()), 1)
