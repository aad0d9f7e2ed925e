"""What a training run reports while it runs: a line on stderr, a line in a file, Weights & Biases or TensorBoard."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from guardrail.core.cli import log
from guardrail.core.ranks import is_main, world_size
from guardrail.training.config import SFTConfig
from guardrail.training.loop import Totals

LOG_FILE = "train_log.jsonl"
# Dense bf16 peak in FLOP/s by a part of the device name (vendors' data sheets).
PEAK_FLOPS = (
    *(("H200", 989e12), ("H100 PCIe", 756e12), ("H100", 989e12), ("B200", 2250e12), ("A100", 312e12)),
    *(("A800", 312e12), ("L40S", 362e12), ("A6000", 155e12), ("L4", 121e12), ("4090", 165e12), ("V100", 125e12)),
)


def peak_flops() -> float | None:
    """This GPU's dense bf16 peak where it is known."""
    import torch

    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((flops for part, flops in PEAK_FLOPS if part in name), None)


def peak_memory_bytes() -> int:
    """GPU: most bytes allocated on this device; CPU: largest resident set of this process."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def flops_per_token(model_config: Any, n_parameters: int, mean_length: float) -> float:
    """Forward and backward of one token: 6 per parameter used in a matrix product, 12 L D per position attended to.

    Kaplan et al. 2020 (arXiv 2001.08361), table 1 times three; half the positions under a causal mask.
    """
    vocabulary = model_config.vocab_size * model_config.hidden_size
    dense = n_parameters - (0 if model_config.tie_word_embeddings else vocabulary)
    return 6 * dense + 6 * model_config.num_hidden_layers * model_config.hidden_size * mean_length


class RunLog:
    """Writes metrics on rank 0; the other ranks' calls do nothing."""

    def __init__(self, config: SFTConfig, n_steps: int, flops: float, start_step: int = 0) -> None:
        self.config, self.n_steps, self.flops = config, n_steps, flops
        self.start_step = start_step
        self.started = self.last = time.perf_counter()
        self.last_tokens = self.last_step = 0
        self.peak = peak_flops()
        self.backend: Any = None
        self.seconds_not_training = 0.0
        if is_main():
            self.file = open(Path(config.output_dir) / LOG_FILE, "a", encoding="utf-8")  # noqa: SIM115
            self.backend = _open_backend(config)

    def train(self, step: int, losses: list[float], lr: float, totals: Totals) -> None:
        """One line for the steps since the last call."""
        now = time.perf_counter()
        seconds = max(now - self.last, 1e-9)
        tokens = (totals.n_real_tokens - self.last_tokens) * world_size()  # ranks' shares are close to equal
        done = step - self.start_step
        metrics = {
            "train/loss": sum(losses) / len(losses),
            "train/lr": lr,
            "train/tokens_per_sec": round(tokens / seconds, 1),
            "train/steps_per_sec": round(len(losses) / seconds, 3),
            "train/padding_fraction": round(1 - totals.n_real_tokens / max(totals.n_tokens, 1), 4),
            "train/peak_memory_bytes": peak_memory_bytes(),
            "train/eta_sec": round((now - self.started) / done * (self.n_steps - step), 1),
        }
        if self.peak:
            metrics["train/mfu_fraction"] = round(tokens / seconds * self.flops / self.peak / world_size(), 4)
        self.last, self.last_tokens = now, totals.n_real_tokens
        self.write(step, metrics)
        mfu = f" mfu {metrics['train/mfu_fraction']:.2f}" if self.peak else ""
        log(
            f"step {step}/{self.n_steps} loss {metrics['train/loss']:.4f} lr {lr:.2e} "
            f"{metrics['train/tokens_per_sec']:.0f} tokens/s padding {metrics['train/padding_fraction']:.0%}"
            f"{mfu} eta {metrics['train/eta_sec']:.0f} s"
        )

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        if not is_main():
            return
        self.file.write(json.dumps({"step": step, **metrics}) + "\n")
        self.file.flush()
        if self.config.log_type == "wandb":
            self.backend.log(metrics, step=step)
        elif self.config.log_type == "tensorboard":
            for name, value in metrics.items():
                self.backend.add_scalar(name, value, global_step=step)

    def resume_clock(self) -> None:
        """Call after saving or evaluating: that time is no training time."""
        self.last = time.perf_counter()

    def close(self) -> None:
        if not is_main():
            return
        self.file.close()
        if self.config.log_type == "wandb":
            self.backend.finish()
        elif self.config.log_type == "tensorboard":
            self.backend.close()


def _open_backend(config: SFTConfig) -> Any:
    if config.log_type == "wandb":
        if not os.environ.get("WANDB_API_KEY"):
            os.environ.setdefault("WANDB_MODE", "offline")
        import wandb

        return wandb.init(
            project=config.log_project, name=config.log_run_name, dir=config.output_dir, config=config.as_dict()
        )
    if config.log_type == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(config.output_dir)
    return None
