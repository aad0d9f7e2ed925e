"""Run a stage for real on this device and set it against its estimate and against the rate of matrix products here."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from guardrail.bench.estimate import Estimate
from guardrail.bench.meter import MemoryMeter
from guardrail.bench.rate import matrix_product_rate, synchronize
from guardrail.bench.workloads import WORKLOADS, Workload
from guardrail.core.cli import log
from guardrail.models.loading import torch_dtype
from guardrail.training.logs import peak_flops


def seconds_of(step: Callable[[], Any], device: torch.device, count: int) -> list[float]:
    """Seconds of each of ``count`` calls, the device's work included."""
    out = []
    for _ in range(count):
        synchronize(device)
        started = time.perf_counter()
        step()
        synchronize(device)
        out.append(time.perf_counter() - started)
    return out


def measured_peak(found: Estimate, device: torch.device) -> tuple[int, Workload]:
    """The most bytes that one step holds on ``device`` once optimizer states exist, and the workload, warmed up."""
    with MemoryMeter(device) as meter:
        work = WORKLOADS[found.stage](found.shape, found.settings, device)
        for _ in range(2):
            work.step()
        meter.restart()
        work.step()
    return meter.peak_bytes, work


def measure(found: Estimate, device: torch.device, steps: int = 10, reference: bool = True) -> dict[str, Any]:
    """Speed, utilisation and peak memory of ``found``'s stage on ``device``; medians over ``steps``.

    ``reference``: also do the rows of one step one at a time, once, where the stage has that habit.
    """
    settings = found.settings
    log(f"{found.shape.name}: building random weights on {device}, three steps for the peak, {steps} for the time")
    peak, work = measured_peak(found, device)
    sec = statistics.median(seconds_of(work.step, device, steps))
    rate = matrix_product_rate(device, torch_dtype(settings.dtype))
    flops = found.flops
    accumulated = settings.gradient_accumulation_steps if found.stage == "sft" else 1
    out: dict[str, Any] = {
        "device": rate.device,
        "steps": steps,
        "step_sec": sec,
        "tokens_per_sec": work.n_tokens / sec,
        "model_flops_per_sec": flops.model * accumulated / sec,
        "hardware_flops_per_sec": flops.hardware * accumulated / sec,
        "matrix_product_flops_per_sec": rate.flops_per_sec,
        "matrix_product_size": rate.size,
        "peak_memory_bytes": peak,
        "estimated_peak_memory_bytes": found.peak_bytes,
        "estimate_over_peak": found.peak_bytes / max(peak, 1),
    }
    out["share_of_matrix_product_rate_fraction"] = out["model_flops_per_sec"] / rate.flops_per_sec
    if found.stage == "generate":
        assert settings.batch_size is not None
        out["new_tokens_per_sec"] = settings.batch_size * settings.new_tokens / sec
    sheet = peak_flops()
    if sheet and settings.dtype == "bfloat16" and device.type == "cuda":
        out["mfu_fraction"] = out["model_flops_per_sec"] / sheet
        out["data_sheet_flops_per_sec"] = sheet
    if reference and work.reference is not None and settings.batch_size != 1:
        one_by_one = seconds_of(work.reference, device, 1)[0]
        out["one_row_at_a_time_sec"] = one_by_one
        out["times_one_row_at_a_time"] = one_by_one / sec
    return out
