"""Run one process of a study: take away what is stale, run its jobs in an explicit environment, record what they made.

    python -m guardrail.study.run_job outputs/quickstart/jobs.json evaluate.base
    python -m guardrail.study.run_job outputs/quickstart/jobs.json align.random_sim_1000.seed42

Called by the scheduler (workflow/Snakefile). On a GPU machine the process waits here for its GPUs, and sees only those
(`guardrail.study.leases`). Each job's own output goes to its log; a failure leaves one line there and in
`records/<job>/failed.json`, at once. Whatever happens, an old result is gone before the new one is begun.

Of several jobs in a process (`guardrail.study.processes`) each is recorded as soon as it has ended. One that fails
leaves the others alone: where it took the process with it, the rest is started again. A job that is named instead of a
process runs alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from guardrail.core.cli import Parser, log, run
from guardrail.core.errors import UserError, unknown
from guardrail.core.files import read_json
from guardrail.core.places import RESOURCES, WORK
from guardrail.core.provenance import JOB_KEY_VARIABLE
from guardrail.core.steps import DONE, FAILED, LEFT_OUT, STARTED, Status, Step, read_status, write_steps
from guardrail.study.allocation import nodes_of_job
from guardrail.study.disk import room
from guardrail.study.environment import stage_environment
from guardrail.study.jobs import Job
from guardrail.study.keep import KEEP_ALL, Weights, clear_training_state, remove_used, trains
from guardrail.study.leases import CPU_MACHINE, Machine, devices_of
from guardrail.study.planning.times import note_process
from guardrail.study.processes import Process, single
from guardrail.study.records import (
    clear_failure,
    clear_product,
    product_state,
    record_file,
    run_alone,
    write_failure,
    write_record,
)
from guardrail.study.schedule import read_machine, read_schedule, read_weights

LAST_LINES = 400
POLL_SEC = 0.2
STEPS = ".steps"  # not with the scheduler's markers: a process outlives its scheduler on a cluster
StepEnd = Callable[[Status], None]


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
    if not job.stage.startswith("judge_") or job.gpus != "none":  # one that needs a GPU runs here
        return False
    summary = read_json(root / job.products[0].files[0])["summary"]
    return float(summary.get("judge_error_percent") or 0.0) > 0


def execute(
    root: Path, process: Process, jobs: Sequence[Job], variables: dict[str, str], shell: dict[str, str], ended: StepEnd
) -> int:
    """Start the process of ``jobs``, tell ``ended`` what becomes of each, return the exit code.

    ``variables``: the GPUs that it holds.
    """
    if jobs[0].is_script:
        (job,) = jobs
        ended(Status(step=job.name, state=STARTED))
        started = time.time()
        environment = {**job.variables, **variables, JOB_KEY_VARIABLE: job.products[0].key.value}
        done = start(job.command, root / job.log, stage_environment(shell, environment)).wait()
        if done == 0:
            ended(Status(step=job.name, state=DONE, wall_sec=time.time() - started))
        return done
    file = (root / STEPS / f"{process.name}.json").resolve()
    status = write_steps(file, [step_of(root, job) for job in jobs])
    for job in jobs:  # steps add to their logs, from all ranks
        (root / job.log).parent.mkdir(parents=True, exist_ok=True)
        (root / job.log).write_bytes(b"")
    one = {"ONE_PROCESS": str(all(job.one_process for job in jobs))}
    child = start(
        ("scripts/stages.sh", str(file)), process_log(root, process), stage_environment(shell, one | variables)
    )
    offset = 0
    code: int | None = None
    while code is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = child.wait(POLL_SEC)
        found, offset = read_status(status, offset)
        for one_status in found:
            ended(one_status)
    return code


def start(command: Sequence[str], log_file: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a script with its log."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    script, *arguments = command
    interpreter = [sys.executable] if script.endswith(".py") else ["bash"]
    with open(log_file, "wb") as handle:
        return subprocess.Popen(
            [*interpreter, str(RESOURCES / script), *arguments],
            cwd=WORK,
            env=environment,
            stdout=handle,
            stderr=handle,
            close_fds=False,  # the locks of its GPUs, which are open for children, live as long as the stage
        )


def step_of(root: Path, job: Job) -> Step:
    module, *arguments = job.command
    return Step(
        name=job.name,
        module=module,
        arguments=tuple(arguments),
        log=str((root / job.log).resolve()),
        key=job.products[0].key.value,
        needs=job.needs,
        one_process=job.one_process,
    )


def process_log(root: Path, process: Process) -> Path:
    """What a process of several jobs says before, between and after them."""
    return root / "logs" / f"{process.name}.log"


def open_need(root: Path, jobs: dict[str, Job], job: Job, inside: set[str]) -> str | None:
    """What ``job`` needs and is not done, in words; needs ``inside`` its process are made before it."""
    for need in job.needs:
        for product in () if need in inside else jobs[need].products:
            state = product_state(root, need, product)
            if not state.done:
                return f"{need}, which is {state.status} ({state.reason})"
            if state.absent:
                return f"{need}, whose weights were removed after use; start the study again to make them again"
    return None


def is_settled(root: Path, job: Job) -> bool:
    """Is nothing left to do? An earlier attempt at the process has done it."""
    states = [product_state(root, job.name, product) for product in job.products]
    return all(state.done and not state.unanswered and not state.absent for state in states)


class Run:
    """One attempt at a process: which of its jobs are still to do, what failed, what could not begin."""

    def __init__(self, root: Path, jobs: dict[str, Job], process: Process, weights: Weights = KEEP_ALL) -> None:
        self.root, self.process, self.jobs, self.weights = root, process, jobs, weights
        self.failed: dict[str, str] = {}
        self.blocked: dict[str, str] = {}
        self.pending: dict[str, Job] = {}
        self.begun: str | None = None
        for name in process.jobs:
            job = jobs[name]
            if is_settled(root, job):
                continue
            need = open_need(root, jobs, job, set(self.pending))
            if need is not None:
                self.blocked[name] = f"{name} needs {need}"
                continue
            clear_failure(root, name)
            if finished_before(root, job):
                self.record(job, 0.0)
            else:
                self.pending[name] = job

    def record(self, job: Job, wall_sec: float) -> None:
        if trains(job):
            clear_training_state(self.root, job)
        for product in job.products:
            facts = {"wall_sec": round(wall_sec, 3), "unanswered": has_open_answers(self.root, job)}
            write_record(self.root, job.name, product, **facts)
        remove_used(self.root, self.jobs, list(job.needs), self.weights.keep)

    def fail(self, job: Job, reason: str) -> None:
        self.pending.pop(job.name, None)
        self.failed[job.name] = f"{job.title} failed: {reason}; see {self.root / job.log}"
        write_failure(self.root, job.name, job.products, reason, str(self.root / job.log))
        if len(self.process.jobs) > 1:
            log(self.failed[job.name])

    def hear(self, status: Status) -> None:
        """Record at once what is known of a job."""
        job = self.pending[status.step]
        if status.state == STARTED:
            self.begun = job.name
            if len(self.process.jobs) > 1:
                log(f"{time.strftime('%H:%M:%S')}    {job.title}")
            return
        self.begun = None
        if status.state == LEFT_OUT:
            del self.pending[job.name]
            self.blocked[job.name] = f"{job.name}: {status.reason}, which failed"
        elif status.state == FAILED:
            self.fail(job, status.reason[:300])
        else:
            try:
                self.record(job, status.wall_sec)
            except UserError as error:  # it left no file
                self.fail(job, str(error))
            else:
                del self.pending[job.name]

    def after(self, code: int) -> None:
        """The process has ended: what it was at has failed, or everything has, where it never began."""
        if self.begun is not None:
            job = self.pending[self.begun]
            self.begun = None
            self.fail(job, why(self.root / job.log, code))
        elif code != 0:
            self.fail_all(why(process_log(self.root, self.process), code))

    def fail_all(self, reason: str) -> None:
        for job in list(self.pending.values()):
            self.fail(job, reason)

    def error(self) -> str | None:
        """One line for everything that is not done."""
        told = [*self.failed.values(), *self.blocked.values()]
        if len(told) < 2:
            return told[0] if told else None
        return f"{self.process.title}: {len(told)} of {len(self.process.jobs)} are not done; {told[0]}"


def processor_seconds() -> float:
    """Processor time, user and system, of every process that this one has started and that has ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_process(
    root: Path,
    jobs: dict[str, Job],
    process: Process,
    shell: dict[str, str],
    machine: Machine = CPU_MACHINE,
    ranks: int = 1,
    weights: Weights = KEEP_ALL,
) -> dict[str, Any]:
    """Run the jobs of ``process`` and record their products; waits for those that still run from an earlier start, for
    room on the disk and for GPUs.

    Raises ``UserError`` when one of them, or what it needs, failed, and when their weights have no room.
    """
    with contextlib.ExitStack() as held:
        for name in sorted(process.jobs):  # in one order, whoever shares a process with whom
            held.enter_context(run_alone(root, name))
        return _run_held(root, jobs, process, shell, machine, ranks, weights)


def _run_held(
    root: Path,
    jobs: dict[str, Job],
    process: Process,
    shell: dict[str, str],
    machine: Machine,
    ranks: int,
    weights: Weights,
) -> dict[str, Any]:
    started, cpu_before = time.time(), processor_seconds()
    run_now = Run(root, jobs, process, weights)
    begun = tuple(run_now.pending)
    if begun:
        wanted = "none" if all(job.gpus == "none" for job in run_now.pending.values()) else process.gpus
        with contextlib.ExitStack() as held:
            held.enter_context(space(root, run_now, weights))
            devices = held.enter_context(devices_of(dataclasses.replace(process, gpus=wanted), machine, ranks, shell))
            if wanted == "all" and machine.nodes > 1:
                devices |= nodes_of_job(root / STEPS, machine.nodes, ranks, shell)
            started = time.time()  # waiting for a GPU is not the job's time
            while run_now.pending:
                todo = list(run_now.pending.values())
                for job in todo:
                    for product in job.products:
                        if not product_state(root, job.name, product).done:
                            clear_product(root, job.name, product)
                code = execute(root, process, todo, devices, shell, run_now.hear)
                run_now.after(code)
                if list(run_now.pending.values()) == todo:
                    run_now.fail_all("it was not run")
    if told := run_now.error():
        raise UserError(told)
    if begun:
        seconds = {"wall_sec": round(time.time() - started, 3), "cpu_sec": round(processor_seconds() - cpu_before, 3)}
        note_process(root, dataclasses.replace(process, jobs=begun), seconds)
    return {"process": process.name, "seconds": round(time.time() - started, 1)}


@contextlib.contextmanager
def space(root: Path, run_now: Run, weights: Weights) -> Iterator[None]:
    """Room on the disk for what the jobs of a process store, as long as they run; a failure of theirs without it."""
    needed = sum(weights.bytes.get(name, 0) for name in run_now.pending)
    training = next((job for job in run_now.pending.values() if trains(job)), None)
    output = None if training is None else root / Path(training.products[0].files[0]).parent
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(room(root, run_now.process.name, needed, output))
        except UserError as error:
            for job in run_now.pending.values():
                (root / job.log).parent.mkdir(parents=True, exist_ok=True)
                (root / job.log).write_text(f"error: {error}\n", encoding="utf-8")
            run_now.fail_all(str(error))
            raise
        yield


def run_job(
    root: Path,
    jobs: dict[str, Job],
    name: str,
    shell: dict[str, str],
    machine: Machine = CPU_MACHINE,
    ranks: int = 1,
    weights: Weights = KEEP_ALL,
) -> dict[str, Any]:
    """`run_process` with the job ``name`` alone."""
    if name not in jobs:
        raise unknown("job", name, jobs)
    return run_process(root, jobs, single(jobs[name]), shell, machine, ranks, weights)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = Parser(prog="guardrail.study.run_job", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("jobs", help="jobs.json, written by guardrail.study.schedule")
    parser.add_argument("process", help="name of the process, or of a job that runs alone")
    args = parser.parse_args(argv)
    root, jobs, processes = read_schedule(Path(args.jobs))
    if args.process not in processes and args.process not in jobs:
        raise unknown("process", args.process, [*processes, *jobs])
    process = processes.get(args.process) or single(jobs[args.process])
    log(f"{time.strftime('%H:%M:%S')}  {process.title}")
    machine, ranks = read_machine(Path(args.jobs))
    weights = read_weights(Path(args.jobs))
    return run_process(root, jobs, process, dict(os.environ), machine, ranks, weights)


if __name__ == "__main__":
    run(main)
