"""How many bytes of tensors are alive at most, on a GPU or a CPU.

    with MemoryMeter(device) as meter:
        work = make()
        meter.restart()              # from here on: the peak
        work.step()
    meter.peak_bytes

On a GPU these are torch's own counters. On a CPU, which has none, every tensor that an operator gives is seen as it is
made and as it goes, so the number is what a GPU's counters would say of the same operators (their kernels may take
work space of their own). Measure time outside: seeing every operator costs some.
"""

from __future__ import annotations

import gc
import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryMeter:
    """Bytes of ``device`` that were allocated since it was entered; what was there before does not count."""

    def __init__(self, device: torch.device) -> None:
        self.device = torch.device(device)
        self._live = None if self.device.type == "cuda" else _Live(self.device.type)
        self._before = 0
        self.peak_bytes = 0

    def __enter__(self) -> MemoryMeter:
        gc.collect()
        if self._live is not None:
            self._live.__enter__()
        else:
            for dtype in (torch.float32, torch.bfloat16):  # cuBLAS takes its work space at the first product
                torch.ones((64, 64), device=self.device, dtype=dtype).matmul(torch.ones(64, 64).to(self.device, dtype))
            self._before = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        return self

    def restart(self) -> None:
        """Forget the peak so far; what is alive stays counted."""
        gc.collect()
        if self._live is not None:
            self._live.peak = self._live.now
        else:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)

    @property
    def live_bytes(self) -> int:
        """What is alive now."""
        return self._live.now if self._live is not None else torch.cuda.memory_allocated(self.device) - self._before

    def __exit__(self, *error: Any) -> None:
        if self._live is not None:
            self._live.__exit__(*error)
            self.peak_bytes = self._live.peak
        else:
            torch.cuda.synchronize(self.device)
            self.peak_bytes = torch.cuda.max_memory_allocated(self.device) - self._before


class _Live(TorchDispatchMode):
    """Storages that operators made and that are still alive, by their address."""

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self.device_type = device_type
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == self.device_type:
                self._see(leaf)
        return out
