"""The rate of matrix products on this device: the most that any model can reach here, measured rather than read.

Square matrices, several sizes, the best of several repeats after a warm-up: 2 m^3 operations each. Data sheets give
more than any kernel does (clocks fall under load), so shares of this rate say more about software than MFU does.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

GPU_SIZES = (4096, 8192)
CPU_SIZES = (384, 768)


@dataclass(frozen=True)
class Rate:
    """Operations per second of products of ``size`` x ``size`` matrices of ``dtype``."""

    flops_per_sec: float
    size: int
    dtype: str
    device: str


def synchronize(device: torch.device) -> None:
    """Wait for what a GPU still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_product_rate(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> Rate:
    """The best rate over sizes and repeats; a repeat takes about 20 ms or more."""
    best = Rate(0.0, 0, str(dtype).removeprefix("torch."), device_name(device))
    for size in GPU_SIZES if device.type == "cuda" else CPU_SIZES:
        left, right = (torch.randn((size, size), device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(left)
        seconds = _seconds(left, right, out, 1)
        count = max(1, int(0.02 / max(seconds, 1e-9)))
        for _ in range(repeats):
            rate = 2 * size**3 * count / _seconds(left, right, out, count)
            if rate > best.flops_per_sec:
                best = Rate(rate, size, best.dtype, best.device)
    return best


def _seconds(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor, count: int) -> float:
    torch.matmul(left, right, out=out)  # warm-up
    synchronize(left.device)
    started = time.perf_counter()
    for _ in range(count):
        torch.matmul(left, right, out=out)
    synchronize(left.device)
    return time.perf_counter() - started


def device_name(device: torch.device) -> str:
    """The GPU's name; of a CPU the number of threads that torch uses."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
