"""Memory, operations and speed of a stage, from a model's shape.

    python -m guardrail.bench --shape llama2-7b --stage sft --n_gpus 4 --gpu_gib 80
    python -m guardrail.bench --shape path/to/model --stage extract
    guardrail bench --shape sandbox --stage sft --dtype float32 --batch_size 8 --row_tokens 128 --run always

Prints what each part needs per GPU (for training: under ZeRO 0 to 3, with and without checkpointing and LoRA) and the
operations of a step. Where there is a GPU, or a CPU is enough, the stage runs with random weights: tokens per second,
utilisation, the peak against the estimate, and the rate of plain matrix products beside it. On more than one GPU start
it with `deepspeed --num_gpus N --module guardrail.bench ...`. Known limits: dense decoder-only models; rows all have
the same length; memory of NCCL and of kernels' work spaces is not estimated.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardrail.bench.estimate import Estimate, estimate, fits
from guardrail.bench.settings import STAGES, GiB, Settings
from guardrail.bench.shapes import find_shape
from guardrail.core.cli import Parser, log, positive_int, run
from guardrail.core.errors import UserError
from guardrail.core.files import write_json
from guardrail.core.options import add_options, option, read_options
from guardrail.models.memory import free_bytes

if TYPE_CHECKING:
    import torch

RUNS = ("auto", "always", "never")
CPU_FLOPS = 2e11  # auto: a CPU does a step of at most so many operations in some seconds


@dataclass(frozen=True, kw_only=True)
class BenchConfig(Settings):
    """The options of the command."""

    shape: str = option(help="llama2-7b, llama3-8b, gemma2-9b, ... (docs/bench.md), a hub name, or a model folder")
    stage: str = option(help="what is done with the model", choices=STAGES)
    run: str = option(
        "auto",
        "run it for real: where it fits on a GPU, or is small enough for this CPU; always; or never, arithmetic alone",
        choices=RUNS,
    )
    steps: int = option(10, "steps that are timed", parse=positive_int)
    gpu_gib: float | None = option(None, "memory of a GPU, for the verdict; default: this machine's, if it has one")
    output: str | None = option(None, "also write the result to this file", decides=False)


def build_parser() -> Parser:
    parser = Parser(prog="guardrail.bench", description=(__doc__ or "").splitlines()[0])
    add_options(parser, BenchConfig)
    parser.add_argument("--local_rank", type=int, default=-1, help=argparse.SUPPRESS)  # the launcher adds it
    return parser


def grid(found: Estimate) -> list[dict[str, Any]]:
    """A training under every ZeRO stage, with and without checkpointing and LoRA: bytes per GPU."""
    rows = []
    for use_lora in (False, True):
        for checkpointing in (True, False):
            for stage in range(4):
                changes: dict[str, Any] = {
                    "zero_stage": stage,
                    "gradient_checkpointing": checkpointing,
                    "use_lora": use_lora,
                    "offload": "none",
                }
                one = estimate(found.shape, "sft", found.settings, **changes)
                part_bytes = {f"{name}_bytes": size for name, size in one.parts.items()}
                rows.append({**changes, **part_bytes, "peak_bytes": one.peak_bytes})
    return rows


def table(found: Estimate, rows: Sequence[dict[str, Any]]) -> str:
    """The estimate for people, GiB per GPU."""
    head = f"{found.shape.name}, {found.stage}: {found.n_parameters:,} parameters"
    settings = found.settings
    size = f"{settings.batch_size} rows of {settings.row_tokens} tokens, {settings.dtype}, {settings.n_gpus} GPUs"
    lines = [
        f"{head}; {size}",
        f"{found.flops.model:.3g} operations per step, {found.flops.hardware:.3g} computed",
        "GiB per GPU: "
        + ", ".join(f"{name} {value / GiB:.2f}" for name, value in found.parts.items())
        + f"; peak {found.peak_bytes / GiB:.2f}",
    ]
    if rows:
        names = [name for name in rows[0] if name.endswith("_bytes")]
        lines.append(f"{'ZeRO':>4} {'recompute':>9} {'LoRA':>5}" + "".join(f"{n[:-6]:>13}" for n in names))
        for row in rows:
            flags = f"{row['zero_stage']:>4} {row['gradient_checkpointing']!s:>9} {row['use_lora']!s:>5}"
            lines.append(flags + "".join(f"{row[name] / GiB:>13.2f}" for name in names))
    return "\n".join(lines)


def gpu_bytes() -> int | None:
    """Memory of this machine's first GPU, as nvidia-smi says it; None without one."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.split()
    return int(lines[0]) * 2**20 if done.returncode == 0 and lines and lines[0].isdigit() else None


def reason_not_to_run(config: BenchConfig, found: Estimate, device: torch.device) -> str | None:
    """Why the stage is not run here; None: it is. Raises ``UserError`` where it was asked for and cannot be."""
    import torch

    from guardrail.core.ranks import world_size

    reason = None
    if found.stage == "sft" and world_size() != config.n_gpus:
        reason = f"--n_gpus {config.n_gpus} needs as many processes: deepspeed --num_gpus {config.n_gpus} --module ..."
    elif found.stage == "generate" and config.n_gpus > 1:
        reason = "several GPUs for one model are vLLM's; the Hugging Face backend that runs here takes one"
    elif device.type == "cuda":
        verdict = fits(found, torch.cuda.get_device_properties(device).total_memory)
        reason = None if verdict.fits else verdict.message()
    elif found.flops.hardware > CPU_FLOPS and config.run == "auto":
        reason = f"no GPU here, and {found.flops.hardware:.1g} operations per step are too many for a CPU"
    elif found.peak_bytes > free_bytes():
        reason = f"it needs {found.peak_bytes / GiB:.1f} GiB, and {free_bytes() / GiB:.1f} GiB are free here"
    if reason and config.run == "always":
        raise UserError(f"--run always, but {reason}")
    return reason


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The estimate, and what was measured here; see the head of this module."""
    config = read_options(BenchConfig, build_parser().parse_args(argv))
    settings = Settings(**{field.name: getattr(config, field.name) for field in dataclasses.fields(Settings)})
    found = estimate(find_shape(config.shape), config.stage, settings)
    rows = grid(found) if config.stage == "sft" else []
    log(table(found, rows))
    result: dict[str, Any] = {"estimate": found.as_dict()}
    if rows:
        result["grid"] = rows
    memory = int(config.gpu_gib * GiB) if config.gpu_gib is not None else gpu_bytes()
    if memory is not None:
        verdict = fits(found, memory)
        log(verdict.message())
        hints = [{"text": s.text, "changes": dict(s.changes), "peak_bytes": s.peak_bytes} for s in verdict.suggestions]
        result["fit"] = {"fits": verdict.fits, "usable_bytes": verdict.usable_bytes, "suggestions": hints}
    if config.run != "never":
        result |= run_here(config, found)
    if config.output:
        write_json(Path(config.output), result)
        log(f"written: {config.output}")
    return result


def run_here(config: BenchConfig, found: Estimate) -> dict[str, Any]:
    """What transformers builds of the shape, and the stage's run on this device or why there was none."""
    from guardrail.bench.build import meta_parameters
    from guardrail.models.loading import pick_device

    device = pick_device()
    reason = reason_not_to_run(config, found, device)
    if reason is not None:
        n = meta_parameters(found.shape, found.stage)
        assert n == found.n_parameters, f"transformers builds {n} parameters, the shape says {found.n_parameters}"
        log(f"not run: {reason}")
        return {"not_run": reason, "n_parameters_built": n}
    from guardrail.bench.measure import measure

    measured = measure(found, device, config.steps)
    log(
        f"{measured['tokens_per_sec']:.0f} tokens/s, {measured['share_of_matrix_product_rate_fraction']:.0%} of the "
        f"matrix-product rate; peak {measured['peak_memory_bytes'] / GiB:.2f} GiB, "
        f"estimate {measured['estimate_over_peak']:.2f} of it"
    )
    return {"measured": measured}


def main_and_leave() -> dict[str, Any]:
    """``main``, then leave the process group that a training may have joined."""
    result = main()
    import sys

    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        distributed.destroy_process_group()
    return result


if __name__ == "__main__":
    run(main_and_leave)
