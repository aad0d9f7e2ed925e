"""Run a backend over many requests: sharded over ranks, every finished unit on disk, nothing lost or repeated.

The units of work are planned from the requests alone (the same for 1 or N processes), each is written as one complete
file, and a restarted run does the missing ones. Because a unit is always the same batch, a resumed run and a run on
another number of processes give the same completions as an uninterrupted one, bit for bit on the same machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from guardrail.core.cli import log
from guardrail.core.errors import UserError
from guardrail.core.files import hash_json, write_jsonl
from guardrail.core.progress import progress
from guardrail.core.ranks import barrier, broadcast, is_main, shard, world_size
from guardrail.generation.interface import Backend, Completion, Request, SamplingOptions, check_complete, plan_units

PARTS = ".parts"


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
        folder: where finished units are kept until ``clear_parts`` (``.parts/<key>``).
        key: what decides the completions besides the requests and options: model hash, backend, dtype
            (``guardrail.core.provenance.fingerprint``). Parts of another key are never read.

    Raises ``UserError`` for double (id, sample) pairs and for vLLM or a server under several processes.
    """
    requests = list(requests)
    if len({request.key for request in requests}) != len(requests):
        raise UserError("two requests share id and sample; ids must be unique within a run")
    if world_size() > 1 and backend.name != "hf":
        raise UserError(
            f"generation backend {backend.name} does its own parallelism, but there are {world_size()} processes; "
            "start it with plain python (vLLM: --tensor_parallel_size, --data_parallel_size)"
        )
    units = plan_units(requests, options.max_new_tokens, backend.unit_tokens, backend.unit_rows)
    parts = parts_folder(folder, key, units, options)
    missing = broadcast([i for i in range(len(units)) if _read_unit(parts, i, units[i]) is None])
    if len(missing) < len(units):
        log(f"{desc}: {len(units) - len(missing)} of {len(units)} batches are there from an earlier run")
    mine = shard(missing)
    if mine:
        todo = sum(len(units[i]) for i in mine)
        with progress(total=todo, desc=desc, unit="row") as bar:
            for index in mine:
                done = check_complete(units[index], backend.generate(units[index], options))
                write_jsonl(_unit_file(parts, index), (dataclasses.asdict(one) for one in done))
                bar.update(len(done))
    barrier()
    out: list[Completion] = []
    for index, unit in enumerate(units):
        found = _read_unit(parts, index, unit)
        if found is None:
            raise UserError(
                f"batch {index} is missing in {parts}; with several machines the output folder must be on a file "
                "system that all of them share"
            )
        out += found
    return check_complete(requests, out)


def parts_folder(folder: str | Path, key: str, units: Sequence[Sequence[Request]], options: SamplingOptions) -> Path:
    """Where the finished units of exactly this work lie."""
    plan = [[(r.id, r.sample, hash_json(r.prompt_ids)) for r in unit] for unit in units]
    return Path(folder) / PARTS / key / hash_json({"plan": plan, "options": dataclasses.asdict(options)})


def clear_parts(folder: str | Path, key: str) -> None:
    """Remove the finished units of ``key`` once the result that holds them is written (rank 0).

    Runs beside it in the same folder keep theirs.
    """
    if is_main():
        shutil.rmtree(Path(folder) / PARTS / key, ignore_errors=True)
        with contextlib.suppress(OSError):  # another run's units are there, or it was never made
            (Path(folder) / PARTS).rmdir()


def _unit_file(parts: Path, index: int) -> Path:
    return parts / f"unit-{index:06d}.jsonl"


def _read_unit(parts: Path, index: int, unit: Sequence[Request]) -> list[Completion] | None:
    """The completions of one finished unit; None when it is not there."""
    file = _unit_file(parts, index)
    if not file.is_file():
        return None
    found = [Completion(**json.loads(line)) for line in file.read_text(encoding="utf-8").split("\n") if line]
    return check_complete(unit, found)
