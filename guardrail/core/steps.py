"""Several stages in one process, one after the other: imports and models are loaded once.

    python -m guardrail.core.steps steps.json

A step is a stage's module and the flags of its command line; its files are those of the stage alone. The file holds
``{"status": FILE, "steps": [...]}``; `Step` has the fields. How each step ended is added to the status file at once.

* A step with a user error is over, the next one begins; steps that need it are left out.
* Any other error ends the process, and so does every error of one of several ranks: nobody knows in which state the
  others are. What had ended is done; the caller starts the rest again.

Several ranks (accelerate) share the work of a step; a step with ``one_process`` runs on the first of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import json
import os
import sys
import time
import traceback
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.core import provenance
from guardrail.core.cli import run
from guardrail.core.errors import UserError
from guardrail.core.files import read_json, write_json, write_text
from guardrail.core.loaded import kept_loaded
from guardrail.core.ranks import alone, barrier, is_main, process_group, world_size

STARTED, DONE, FAILED, LEFT_OUT = "started", "done", "failed", "left out"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One stage to run. ``module`` has a ``main(argv)``; ``needs`` names earlier steps; ``key`` is that of the result.

    ``log``: the file that gets what the step prints; None: it is printed.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    log: str | None = None
    key: str | None = None
    needs: tuple[str, ...] = ()
    one_process: bool = False


@dataclass(frozen=True, kw_only=True)
class Status:
    """What happened to a step: ``started``, ``done``, ``failed`` or ``left out`` (what it needs failed).

    ``result`` is what the stage gave back.
    """

    step: str
    state: str
    reason: str = ""
    wall_sec: float = 0.0
    cpu_sec: float = 0.0
    result: dict[str, Any] | None = None


def run_steps(steps: Sequence[Step], report: Callable[[Status], None]) -> list[Status]:
    """Run ``steps`` in order, all on every rank; ``report`` is called on the first one. How each ended, in order."""
    ended: dict[str, Status] = {}

    def note(status: Status) -> None:
        ended[status.step] = status
        if is_main():
            report(status)

    with kept_loaded(), process_group() if world_size() > 1 else contextlib.nullcontext():
        for step in steps:
            missing = next((n for n in step.needs if n in ended and ended[n].state != DONE), None)
            if missing is not None:
                note(Status(step=step.name, state=LEFT_OUT, reason=f"it needs {missing}"))
                continue
            note(Status(step=step.name, state=STARTED))
            wall, cpu = time.time(), time.process_time()
            reason, result = "", None
            try:
                with _surroundings(step):
                    result = _run(step)
            except UserError as error:
                if world_size() > 1:
                    sys.exit(2)
                reason = str(error)
            seconds = {"wall_sec": round(time.time() - wall, 3), "cpu_sec": round(time.process_time() - cpu, 3)}
            note(Status(step=step.name, state=FAILED if reason else DONE, reason=reason, result=result, **seconds))
    return [ended[step.name] for step in steps]


def _run(step: Step) -> dict[str, Any] | None:
    result: dict[str, Any] | None = None
    try:
        main = importlib.import_module(step.module).main
        if not step.one_process:
            result = main(list(step.arguments))
        elif is_main():
            with alone():
                result = main(list(step.arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise
    except Exception:
        sys.stdout.flush()  # what the stage said stands before its end
        traceback.print_exc()
        sys.stderr.flush()
        raise
    if step.one_process:
        barrier()
    if is_main() and result is not None:
        print(json.dumps(result, ensure_ascii=False, default=str), flush=True)
    return result


@contextlib.contextmanager
def _surroundings(step: Step) -> Iterator[None]:
    """Inside, the step's key is in the environment, its time counts from now and its output goes to its log."""
    kept = os.environ.pop(provenance.JOB_KEY_VARIABLE, None)
    if step.key is not None:
        os.environ[provenance.JOB_KEY_VARIABLE] = step.key
    provenance.restart_clock()
    try:
        with _output_to(step.log) if step.log is not None else contextlib.nullcontext():
            yield
    finally:
        os.environ.pop(provenance.JOB_KEY_VARIABLE, None)
        if kept is not None:
            os.environ[provenance.JOB_KEY_VARIABLE] = kept


@contextlib.contextmanager
def _output_to(log: str) -> Iterator[None]:
    """Inside, stdout and stderr of this process (of libraries written in C, too) are added to ``log``, in order."""
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    kept = {number: os.dup(number) for number in (1, 2)}
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    by_line = getattr(sys.stdout, "line_buffering", None)
    try:
        for number in kept:
            _flush()
            os.dup2(file, number)
        if by_line is False:  # a file is written in blocks: what is said on stderr meanwhile would stand before it
            typing.cast(io.TextIOWrapper, sys.stdout).reconfigure(line_buffering=True)
        yield
    finally:
        _flush()
        if by_line is False:
            typing.cast(io.TextIOWrapper, sys.stdout).reconfigure(line_buffering=False)
        for number, before in kept.items():
            os.dup2(before, number)
            os.close(before)
        os.close(file)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def write_steps(path: Path, steps: Sequence[Step]) -> Path:
    """Write the file that ``main`` reads and begin its status file; returns the latter."""
    status = path.with_suffix(".status.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(status, "")
    write_json(path, {"status": str(status), "steps": [dataclasses.asdict(step) for step in steps]})
    return status


def read_status(file: Path, offset: int) -> tuple[list[Status], int]:
    """What was added to a status file after ``offset`` bytes, in whole lines, and where to go on."""
    with open(file, "rb") as handle:
        handle.seek(offset)
        lines = handle.read()
    whole = lines[: lines.rfind(b"\n") + 1]
    return [Status(**json.loads(line)) for line in whole.splitlines()], offset + len(whole)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line: one argument, the file of steps."""
    given = list(sys.argv[1:] if argv is None else argv)
    if len(given) != 1 or not Path(given[0]).is_file():
        raise UserError("expected one file of steps; usage: python -m guardrail.core.steps steps.json")
    content = read_json(given[0])
    steps = [
        Step(**{**raw, "arguments": tuple(raw["arguments"]), "needs": tuple(raw["needs"])}) for raw in content["steps"]
    ]

    def report(status: Status) -> None:
        line = json.dumps(dataclasses.asdict(status), ensure_ascii=False, default=str)
        with open(content["status"], "a", encoding="utf-8") as handle:
            handle.write(line + "\n")

    ended = run_steps(steps, report)
    return {"steps": len(ended), "failed": [status.step for status in ended if status.state != DONE]}


if __name__ == "__main__":
    run(main)
