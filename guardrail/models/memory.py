"""Run a model over items in batches of similar length; when memory runs out, go on with half as many tokens.

    budget = Budget(1024)
    for rows, logits in budget.run(lengths, lambda rows: model(pad([texts[i] for i in rows])), too_long):
        ...

The budget stays halved: a batch as large as the one that failed would fail again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from guardrail.core.batches import batch_end, length_order
from guardrail.core.cli import log
from guardrail.core.errors import UserError

T = TypeVar("T")
PHRASES = ("out of memory", "not enough memory", "can't allocate memory")  # CUDA, CPU (Windows), CPU (Linux)


def is_out_of_memory(error: BaseException) -> bool:
    """Did the GPU's or the CPU's allocator run out?"""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in PHRASES)


def free_bytes(device: Any = None) -> int:
    """Memory that this process can still have on ``device``: of a GPU what is free and what torch keeps there unused,
    of the host (also for None; Linux) what is free and what caches would give up."""
    if device is not None and device.type == "cuda":
        import torch

        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + unused)
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


@dataclass
class Budget:
    """How large a batch may be, for as long as this object lives. ``tokens`` may be changed between two batches.

    ``tokens``, ``rows`` and ``max_padding`` bound a batch as in ``guardrail.core.batches.batch_end``.
    """

    tokens: int
    rows: int | None = None
    max_padding: float | None = None
    halved: bool = False

    def run(
        self, lengths: Sequence[int], compute: Callable[[list[int]], T], too_long: Callable[[int], str]
    ) -> Iterator[tuple[list[int], T]]:
        """Yield ``(indices, compute(indices))`` batch by batch, longest first; every index exactly once.

        Args:
            lengths: tokens of every item, with all that grows along (prompt plus answer, say).
            compute: must keep nothing of a batch that failed.
            too_long: the text of the ``UserError`` when the item of this index does not fit in memory alone.
        """
        order = length_order(lengths)
        ordered = [lengths[i] for i in order]
        start = 0
        while start < len(order):
            end = batch_end(ordered, start, self.tokens, self.rows, self.max_padding)
            rows = order[start:end]
            failed = False
            try:
                value = compute(rows)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                failed = True
            if failed:  # outside the handler: the traceback would keep the failed batch's tensors in memory
                if len(rows) == 1:
                    raise UserError(too_long(rows[0]))
                self._halve(max(1, ordered[start]), len(rows))
                continue
            yield rows, value
            start = end

    def _halve(self, longest: int, count: int) -> None:
        import torch

        self.tokens, self.halved = longest * count // 2, True
        log(f"out of memory with {count} rows of up to {longest} tokens; now {self.tokens} tokens a batch")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
