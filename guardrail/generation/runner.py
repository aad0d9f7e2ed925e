"""Run a backend over many requests, as resumable units of work (`guardrail.core.units`).

A unit is always the same batch, so a resumed run and a run on another number of processes give the same completions as
an uninterrupted one, bit for bit on the same machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guardrail.core.errors import UserError
from guardrail.core.files import hash_json
from guardrail.core.ranks import world_size
from guardrail.core.units import Units
from guardrail.generation.interface import Backend, Completion, Request, check_complete, plan_units
from guardrail.generation.options import SamplingOptions


def generate_resumable(
    backend: Backend,
    requests: Sequence[Request],
    options: SamplingOptions,
    folder: str | Path,
    key: str,
    desc: str = "generate",
) -> list[Completion]:
    """All completions, in the order of ``requests``, on every rank. Call inside ``process_group()``.

    Args:
        folder: where finished units are kept until ``guardrail.core.units.clear_units(folder, key)``.
        key: what decides the completions besides the requests and options: model hash, backend, dtype
            (``guardrail.core.provenance.fingerprint``). Units of another key are never read.

    Raises ``UserError`` for double (id, sample) pairs and for vLLM or a server under several processes.
    """
    requests = list(requests)
    if len({request.key for request in requests}) != len(requests):
        raise UserError("two requests share id and sample; ids must be unique within a run")
    if world_size() > 1 and not backend.many_processes:
        raise UserError(
            f"generation backend {backend.name} does its own parallelism, but there are {world_size()} processes; "
            "start it with plain python (vLLM: --tensor_parallel_size, --data_parallel_size)"
        )
    decoding = dataclasses.asdict(options)

    def identity(request: Request) -> list[Any]:
        return [request.id, request.sample, hash_json(request.prompt_ids), decoding]

    def work(unit: list[Request]) -> list[dict[str, Any]]:
        return [dataclasses.asdict(one) for one in check_complete(unit, backend.generate(unit, options))]

    groups = plan_units(requests, options.max_new_tokens, backend.unit_tokens, backend.unit_rows)
    rows = Units(groups, folder, key, identity).run(work, desc)
    return check_complete(requests, [Completion(**row) for row in rows])
