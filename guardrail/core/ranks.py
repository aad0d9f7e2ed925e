"""Ranks as accelerate, torchrun and deepspeed set them in the environment; one process works without any of them."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    return rank() == 0


@contextlib.contextmanager
def process_group(timeout_hours: float = 24.0) -> Iterator[None]:
    """Join the group (nccl on GPU, gloo on CPU) when there are several ranks; leave it at the end.

    Inside another one only the end is waited for: a group is joined once per process.
    """
    if world_size() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        yield
        barrier()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(hours=timeout_hours))
    try:
        yield
        barrier()
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, this process is the only one: for what one rank does by itself after `process_group` has ended."""
    kept = {name: os.environ.pop(name) for name in ("RANK", "WORLD_SIZE") if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def barrier() -> None:
    """Wait for all ranks; nothing with one."""
    if world_size() > 1:
        import torch.distributed as dist

        dist.barrier()


def broadcast(value: Any) -> Any:
    """Rank 0's picklable ``value`` on every rank."""
    if world_size() == 1:
        return value
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: Any) -> list[Any]:
    """Every rank's picklable ``value``, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    import torch.distributed as dist

    out: list[Any] = [None] * world_size()
    dist.all_gather_object(out, value)
    return out


def shard(items: Sequence[T]) -> list[T]:
    """This rank's disjoint share (round robin: neighbours in a length-sorted list spread evenly)."""
    return list(items[rank() :: world_size()])
