"""The training loop and the evaluation loss: plans in, losses out.

Loss of a step: with ``loss_average tokens`` the mean over every labelled token of the step, whatever rank and
micro-batch it is on, so that ranks and accumulation change nothing; with ``micro_batch`` the mean of the micro-batches'
means, as align-anything and the Trainer of old did.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from guardrail.core.errors import UserError
from guardrail.core.ranks import rank, world_size
from guardrail.training.batches import NAME, Batch, packed_batch, padded_batch, summed_loss, token_losses
from guardrail.training.config import SFTConfig
from guardrail.training.data import TokenisedRows
from guardrail.training.defences import Defence, NoDefence
from guardrail.training.steps import MicroBatch, Step, deal, plan_epoch


@dataclass
class Totals:
    """Counts since training began, this rank."""

    n_real_tokens: int = 0
    n_tokens: int = 0
    n_rows: int = 0


@dataclass
class Trainer:
    """One run.

    ``on_log(step, losses, lr, totals)`` gets the losses since the last call, every ``logging_steps`` and before
    every pause; ``on_pause(step)`` is called after the steps in ``pauses`` (saving, evaluation). ``attention``:
    the model's for micro-batches that are one line of tokens (`batches.line_attention`); None: they are padded.
    """

    engine: Any
    data: TokenisedRows
    config: SFTConfig
    pad_id: int
    on_log: Callable[[int, list[float], float, Totals], None]
    on_pause: Callable[[int], None]
    defence: Defence = field(default_factory=NoDefence)
    attention: str | None = None
    losses: list[float] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)

    def plan(self, epoch: int) -> list[Step]:
        config = self.config
        return plan_epoch(
            self.data.lengths,
            batching=config.batching,
            batch_size=config.per_device_train_batch_size,
            accumulation=config.gradient_accumulation_steps,
            world_size=world_size(),
            max_length=config.model_max_length,
            seed=config.data_seed,
            epoch=epoch,
            reshuffle=config.reshuffle,
        )

    def steps_per_epoch(self) -> list[int]:
        """Optimizer steps of each epoch (packing may need one more or less with another order)."""
        return [len(self.plan(epoch)) for epoch in range(self.config.epochs)]

    def train(self, n_steps: int, pauses: frozenset[int] = frozenset(), start_step: int = 0) -> list[float]:
        """Run optimizer steps ``start_step + 1`` to ``n_steps``; returns the losses of all of them."""
        step, unlogged = 0, []
        trained = self.data.trained_counts
        for epoch in range(self.config.epochs):
            for micro_batches in self.plan(epoch):
                step += 1
                if step > n_steps:
                    break
                if step <= start_step:
                    continue
                unlogged.append(self._step(micro_batches, trained))
                self.defence.after_step(self.engine, step)
                if step % self.config.logging_steps == 0 or step == n_steps or step in pauses:
                    self._flush(step, unlogged)
                    unlogged = []
                if step in pauses:
                    self.on_pause(step)
        return self.losses

    def batch(self, micro: MicroBatch, of_rank: int) -> Batch:
        """The tensors of one rank's part of a micro-batch."""
        sequences = micro.sequences[of_rank]
        counted = self.config.loss_average == "micro_batch"
        repeated = tuple(flag and not counted for flag in micro.repeated[of_rank])
        if self.attention is not None:
            share = self.config.batching == "padding_free" and self.attention == NAME and not self.defence.reads_states
            return packed_batch(self.data, sequences, repeated, self.engine.device, share)
        return padded_batch(self.data, sequences, repeated, self.pad_id, self.engine.device)

    def _step(self, micro_batches: Step, trained: Any) -> Any:
        """Forward, backward, update; returns this rank's part of the step's loss as a tensor (no host sync)."""
        n_micro = len(micro_batches)
        step_tokens = sum(int(trained[row]) for micro in micro_batches for row in micro.counted_rows())
        total = None
        for position, micro in enumerate(micro_batches):
            batch = self.batch(micro, rank())
            self.engine.set_gradient_accumulation_boundary(position == n_micro - 1)
            loss = self._summed_loss(batch)
            if self.config.loss_average == "tokens":  # DeepSpeed averages gradients over ranks: undo that
                loss = loss * (world_size() / max(step_tokens, 1))
            else:
                loss = loss / (batch.targets != -100).sum().clamp(min=1) / n_micro
            loss = self.defence.loss(loss, self.engine, batch)
            self.engine.backward(loss, scale_wrt_gas=False)
            if position == n_micro - 1:
                self.defence.gradients(self.engine)
            self.engine.step()
            total = loss.detach() if total is None else total + loss.detach()
            self.totals.n_real_tokens += batch.n_real_tokens
            self.totals.n_tokens += batch.n_tokens
            self.totals.n_rows += sum(len(sequence) for sequence in micro.sequences[rank()])
        return total

    def _summed_loss(self, batch: Batch) -> Any:
        """The defence sees single tokens only where it asks for them: a sum in one kernel rounds differently."""
        if type(self.defence).token_losses is Defence.token_losses:
            return summed_loss(self.engine, batch)
        return self.defence.token_losses(token_losses(self.engine, batch), self.engine, batch).sum()

    def _flush(self, step: int, unlogged: list[Any]) -> None:
        """Bring losses to the host, averaged over ranks; stop at the first one that is no number."""
        import torch

        stacked = torch.stack(unlogged).float()
        if world_size() > 1:
            torch.distributed.all_reduce(stacked)
            stacked = stacked / world_size()
        values = stacked.tolist()
        for offset, value in enumerate(values):
            if not math.isfinite(value):
                raise UserError(
                    f"the loss became {value} at step {step - len(values) + 1 + offset}; nothing was saved after it: "
                    "lower --learning_rate, use --bf16 True instead of fp16, or look at the rows of that step"
                )
        self.losses += values
        self.on_log(step, values, self.engine.optimizer.param_groups[0]["lr"], self.totals)


def evaluation_loss(engine: Any, data: TokenisedRows, config: SFTConfig, pad_id: int) -> float:
    """Mean cross-entropy per labelled token over all ranks' rows, in the rows' own order. Collective."""
    import torch

    engine.eval()
    total = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for micro in deal([(i,) for i in range(len(data))], config.per_device_eval_batch_size, world_size()):
            batch = padded_batch(data, micro.sequences[rank()], micro.repeated[rank()], pad_id, engine.device)
            total += summed_loss(engine, batch).double().cpu()
    engine.train()
    total = total.to(engine.device)
    if world_size() > 1:
        torch.distributed.all_reduce(total)
    return float(total) / max(int(data.trained_counts.sum()), 1)
