"""A model that ZeRO 3 has spread over the ranks, in one piece on each of them for a while.

    check_room(engine)        # will that fit into memory? Before the training, and before an older result is removed
    with whole(engine):
        ...                   # engine.module is a usual model here, on every rank

A forward pass under ZeRO 3 fetches one layer after the other from all ranks, so that all of them have to make the same
passes, token by token; ranks that answer prompts of their own cannot. Inside `whole` every rank holds all weights, in
the dtype of the training and on its device, and DeepSpeed's hooks are off: a rank computes alone, what it would under
ZeRO 0 with these weights, to the last bit. Afterwards the weights are spread as they were and the hooks are back in
their places; the training goes on as if nothing had been. Under ZeRO 0 to 2 there is nothing to do.

It needs the bytes of all weights on every rank beside its share of the training (`guardrail.bench` has them in its
estimate, phase ``probe``). With ``offload_param`` the weights come from the host's memory and go back there.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

from guardrail.core.errors import UserError
from guardrail.core.ranks import gather
from guardrail.models.linear import plain_linear
from guardrail.models.memory import free_bytes


@contextlib.contextmanager
def whole(engine: Any) -> Iterator[None]:
    """Inside, every rank has all of ``engine.module`` and can use it without the others.

    Collective at the beginning. What is done to weights or to hooks inside is lost. Raises ``UserError`` as
    `check_room` does.
    """
    if engine.zero_optimization_stage() != 3:
        yield
        return
    import deepspeed

    engine.empty_partition_cache()  # nothing is on its way any more, and what was cached is free
    check_room(engine)
    with (
        _without_hooks(engine.optimizer.parameter_offload),
        deepspeed.zero.GatheredParameters(engine.module.parameters()),
        plain_linear(),
    ):
        yield


def check_room(engine: Any) -> None:
    """Raises ``UserError``, on every rank, where one of them cannot hold the whole model. Collective."""
    if engine.zero_optimization_stage() != 3:
        return
    needed = sum(one.ds_numel * one.element_size() for one in engine.module.parameters())
    found = gather((socket.gethostname(), free_bytes(engine.device)))
    on_cpu = engine.device.type == "cpu"  # the ranks of a host share its memory
    free = min(size // (sum(other == host for other, _ in found) if on_cpu else 1) for host, size in found)
    if needed > free:
        raise UserError(
            f"a look at a model under ZeRO 3 gathers it on every rank, {needed / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB are free beside the training; use more GPUs or --ds_cfgs "
            "ds_z3_offload_config.json, or leave the probes out and evaluate slices (--save_total_limit)"
        )


@contextlib.contextmanager
def _without_hooks(offload: Any) -> Iterator[None]:
    """Inside, ``offload`` (DeepSpeed's ``DeepSpeedZeRoOffload``) hears of no forward pass.

    Not removed and registered anew: then it would have to learn the order of the layers again, and its hooks would
    run after those of others that were there behind them.
    """
    handles = [offload.fwd_pre_hook, *offload.forward_hooks, *offload.backward_hooks]
    kept = []
    for handle in handles:
        table = handle.hooks_dict_ref()  # a module's hooks by number, in the order in which they run
        if table is not None and handle.id in table:
            kept.append((table, dict(table)))
            del table[handle.id]
    try:
        yield
    finally:
        for table, before in reversed(kept):  # the first copy of a table is the whole one
            table.clear()
            table.update(before)
