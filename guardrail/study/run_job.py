"""Run one job of a study: take away what is stale, run the script in an explicit environment, record what it made.

    python -m guardrail.study.run_job outputs/quickstart/jobs.json align.random_sim_1000.seed42

Called by the scheduler (workflow/Snakefile). On a GPU machine the job waits here for its GPUs, and sees only those
(`guardrail.study.leases`). The job's own output goes to its log; a failure leaves one line there and
in `records/<job>/failed.json`. Whatever happens, an old result is gone before the new one is begun.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from guardrail.core.cli import Parser, log, run
from guardrail.core.errors import UserError, unknown
from guardrail.core.files import read_json
from guardrail.core.places import RESOURCES, WORK
from guardrail.core.provenance import JOB_KEY_VARIABLE
from guardrail.study.environment import stage_environment
from guardrail.study.jobs import Job
from guardrail.study.leases import CPU_MACHINE, Machine, devices_of
from guardrail.study.records import (
    clear_failure,
    clear_product,
    product_state,
    record_file,
    write_failure,
    write_record,
)
from guardrail.study.schedule import read_machine, read_schedule

LAST_LINES = 400


def carried_key(file: Path) -> str | None:
    """The key that a finished result carries in its ``run`` block; None where it has none."""
    if file.suffix != ".json" or not file.is_file():
        return None
    try:
        value = read_json(file)
    except UserError:
        return None
    record = value.get("run", value) if isinstance(value, dict) else None
    return record.get("job_key") if isinstance(record, dict) else None


def finished_before(root: Path, job: Job) -> bool:
    """Did the job end and only its record is missing (it was killed in between)? Its results carry the key.

    Not for a result that has a record: its files were changed since, whatever key they carry.
    """
    return all(
        not record_file(root, job.name, product.name).exists()
        and any(carried_key(root / name) == product.key.value for name in product.files)
        and all((root / name).exists() for name in product.files)
        for product in job.products
    )


def why(log_file: Path, code: int) -> str:
    """The last error line of a log, or its last line."""
    try:
        lines = log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-LAST_LINES:]
    except OSError:
        lines = []
    told = [line for line in lines if line.startswith("error: ")] or lines
    return (told[-1][:300] if told else f"no output, exit code {code}").removeprefix("error: ")


def has_open_answers(root: Path, job: Job) -> bool:
    """Did a judge behind a server fail for some answers? Its failures are no verdict and are not final."""
    if not job.stage.startswith("judge_") or "openai" not in (job.variables["JUDGE"], job.variables["JUDGE_BACKEND"]):
        return False
    summary = read_json(root / job.products[0].files[0])["summary"]
    return float(summary.get("judge_error_percent") or 0.0) > 0


def execute(root: Path, job: Job, shell: dict[str, str]) -> int:
    """Run the job's script with its log; the exit code."""
    log_file = root / job.log
    log_file.parent.mkdir(parents=True, exist_ok=True)
    script, *arguments = job.command
    interpreter = [sys.executable] if script.endswith(".py") else ["bash"]
    environment = stage_environment(shell, {**job.variables, JOB_KEY_VARIABLE: job.products[0].key.value})
    with open(log_file, "wb") as handle:
        return subprocess.run(
            [*interpreter, str(RESOURCES / script), *arguments],
            cwd=WORK,
            env=environment,
            stdout=handle,
            stderr=handle,
            close_fds=False,  # the locks of its GPUs, which are open for children, live as long as the stage
        ).returncode


def run_job(
    root: Path, jobs: dict[str, Job], name: str, shell: dict[str, str], machine: Machine = CPU_MACHINE, ranks: int = 1
) -> dict[str, Any]:
    """Run ``name`` and record its products. Raises ``UserError`` when it, or what it needs, failed."""
    if name not in jobs:
        raise unknown("job", name, jobs)
    job = jobs[name]
    for need in job.needs:
        for product in jobs[need].products:
            state = product_state(root, need, product)
            if not state.done:
                raise UserError(f"{name} needs {need}, which is {state.status} ({state.reason})")
    started = time.time()
    clear_failure(root, name)
    if not finished_before(root, job):
        with devices_of(job, machine, ranks, shell) as devices:
            started = time.time()  # waiting for a GPU is not the job's time
            for product in job.products:
                if not product_state(root, name, product).done:
                    clear_product(root, name, product)
            code = execute(root, dataclasses.replace(job, variables={**job.variables, **devices}), shell)
        if code != 0:
            reason = why(root / job.log, code)
            write_failure(root, name, job.products, reason, str(root / job.log))
            raise UserError(f"{job.title} failed: {reason}; see {root / job.log}")
    for product in job.products:
        facts = {"wall_sec": round(time.time() - started, 3), "unanswered": has_open_answers(root, job)}
        write_record(root, name, product, **facts)
    return {"job": name, "seconds": round(time.time() - started, 1)}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = Parser(prog="guardrail.study.run_job", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("jobs", help="jobs.json, written by guardrail.study.schedule")
    parser.add_argument("job", help="name of the job")
    args = parser.parse_args(argv)
    root, jobs, _ = read_schedule(Path(args.jobs))
    if args.job in jobs:
        log(f"{time.strftime('%H:%M:%S')}  {jobs[args.job].title}")
    machine, ranks = read_machine(Path(args.jobs))
    return run_job(root, jobs, args.job, dict(os.environ), machine, ranks)


if __name__ == "__main__":
    run(main)
