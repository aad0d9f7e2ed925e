"""GPUs of a study are leased: a job sees only those that it holds, and no other job holds them meanwhile.

A job asks for all GPUs of its schedule ("all": training, whose ranks are in its key), for ``per_job`` of them ("one")
or for none. A lease is a lock (flock) on one file per GPU in a folder of this user and node, so that two studies
respect each other as well. The stage inherits the locks: however a job ends, its GPUs are free when its processes are
gone. Launchers do not hand open files to their ranks, so what a stage leaves running is found by the lease's token in
its environment and ended, when the job ends or before somebody else takes the GPU.

In a SLURM job of its own (workflow/profiles/slurm) nothing is leased: a job uses what it was given.

Known limits: jobs of other users, and processes that are no job of a study, are not seen. The GPUs of other nodes
(HOSTFILE) are not leased: two studies must not name the same ones.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import signal
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from guardrail.core.cli import log
from guardrail.core.errors import UserError
from guardrail.core.gpus import SLURM_JOB, choose, listed

TOKEN_VARIABLE = "GUARDRAIL_LEASE"
FOLDER_VARIABLE = "GUARDRAIL_LOCKS"
NO_GPU = {"DEVICE": "cpu", "CUDA_VISIBLE_DEVICES": "", "GPUS": "", "NUM_PROCESSES": "1"}
GRACE_SEC = 10.0


@dataclass(frozen=True)
class Machine:
    """Where a schedule was made: its GPUs (none: a CPU machine), how many "one" is, its SLURM job, and how many nodes
    a training job takes, each with as many GPUs."""

    gpus: tuple[str, ...] = ()
    per_job: int = 1
    slurm_job: str | None = None
    nodes: int = 1

    def needed(self, gpus: str) -> int:
        """GPUs of a job that says "all", "one" or "none"."""
        return {"all": len(self.gpus), "one": min(self.per_job, len(self.gpus)), "none": 0}[gpus]


class Wants(Protocol):
    """Who asks for GPUs: a job or a process of several."""

    @property
    def name(self) -> str: ...

    @property
    def gpus(self) -> str: ...


CPU_MACHINE = Machine()


@contextlib.contextmanager
def devices_of(job: Wants, machine: Machine, ranks: int, shell: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """The variables with which the stage of ``job`` sees its GPUs and no other; waits until they are free.

    Only a job that takes all GPUs takes other nodes as well: those of HOSTFILE, or of its SLURM job
    (`guardrail.study.allocation`).
    Raises ``UserError`` where the scheduler gave others than the schedule counted on.
    """
    with _gpus_of(job, machine, ranks, shell) as variables:
        yield variables if job.gpus == "all" or not shell.get("HOSTFILE") else {**variables, "HOSTFILE": ""}


@contextlib.contextmanager
def _gpus_of(job: Wants, machine: Machine, ranks: int, shell: Mapping[str, str]) -> Iterator[dict[str, str]]:
    submitted = SLURM_JOB in shell and shell[SLURM_JOB] != machine.slurm_job
    if submitted and job.gpus != "none":
        yield allocated(job, machine, ranks, shell)
    elif not machine.gpus:
        yield {}
    elif job.gpus == "none":
        yield dict(NO_GPU)
    else:
        uuids = listed()
        keys = {gpu: uuids.get(gpu) or f"gpu{gpu}" for gpu in machine.gpus}
        with lease(lock_folder(shell), keys, machine.needed(job.gpus), job.name) as (gpus, token):
            yield {**seen(gpus), TOKEN_VARIABLE: token}


def seen(gpus: Sequence[str]) -> dict[str, str]:
    """The variables of a stage on these GPUs; the launchers of scripts/setup.sh read GPUS, everything else CUDA's."""
    return {"DEVICE": "gpu", "GPUS": ",".join(gpus), "CUDA_VISIBLE_DEVICES": ",".join(gpus)}


def allocated(job: Wants, machine: Machine, ranks: int, shell: Mapping[str, str]) -> dict[str, str]:
    """The variables of a stage that is a SLURM job of its own: all GPUs of the allocation."""
    given = choose({name: value for name, value in shell.items() if name != "GPUS"}, listed())
    if not machine.gpus:
        if given and shell.get("DEVICE") != "cpu":
            raise UserError(
                f"{job.name} was given GPUs, but the study was scheduled for a machine without one; "
                "start it with DEVICE=gpu GPUS=0,1,2,3 (as many as a training job gets), or DEVICE=cpu"
            )
        return {}
    if not given:
        raise UserError(f"{job.name} needs a GPU and its SLURM job has none; give its stage a gres in the profile")
    if job.gpus == "all" and not shell.get("HOSTFILE") and len(given) * machine.nodes != ranks:
        node = f" on each of {machine.nodes} nodes" if machine.nodes > 1 else ""
        raise UserError(
            f"{job.name} is scheduled with {ranks} processes and its SLURM job has {len(given)} GPUs{node}; make gres "
            "in the profile and GPUS of the study name as many (the number decides the result)"
        )
    return seen(given)


def lock_folder(shell: Mapping[str, str]) -> Path:
    """Where the locks of this user on this node are: `GUARDRAIL_LOCKS`, or a folder in /tmp, which every login shares.

    Not TMPDIR or XDG_RUNTIME_DIR, which differ between logins: two studies would not see each other.
    Raises ``UserError`` for a folder that belongs to somebody else.
    """
    named = shell.get(FOLDER_VARIABLE)
    folder = Path(named or f"/tmp/guardrail-locks-{os.getuid()}-{socket.gethostname()}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder} belongs to another user; set {FOLDER_VARIABLE} to a folder of your own")
    return folder


@contextlib.contextmanager
def lease(folder: Path, keys: Mapping[str, str], count: int, holder: str) -> Iterator[tuple[list[str], str]]:
    """Hold ``count`` of the GPUs in ``keys`` (name -> name of its lock): their names and the lease's token.

    Raises ``UserError`` when there are fewer.
    """
    if count > len(keys):
        raise UserError(f"{holder} needs {count} GPUs, but the study has {len(keys)}: {','.join(keys)}")
    token = uuid.uuid4().hex
    files = {gpu: folder / f"{key}.lock" for gpu, key in keys.items()}
    held = _all(files, holder) if count == len(files) else _some(files, count, holder)
    try:
        for descriptor in held.values():
            before = _content(descriptor).get("token")
            if before and (left := end_processes(before)):
                raise UserError(f"process {left[0]} of an earlier job cannot be ended and may use its GPU; end it")
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"token": token, "job": holder, "pid": os.getpid()}).encode(), 0)
            os.set_inheritable(descriptor, True)
        yield [gpu for gpu in keys if gpu in held], token
    finally:
        if left := end_processes(token):
            log(f"{holder} has ended, but its process {left[0]} cannot be ended")
        for descriptor in held.values():
            os.close(descriptor)


def _all(files: Mapping[str, Path], holder: str) -> dict[str, int]:
    """Every lock, taken one after the other in an order that is the same for everybody, so that nobody waits forever:
    a free GPU is kept while the others end their work, and many small jobs cannot hold up a large one."""
    held: dict[str, int] = {}
    for gpu in sorted(files, key=lambda gpu: files[gpu].name):
        descriptor = _try(files[gpu])
        if descriptor is None:
            _say_waiting(holder, {gpu: files[gpu]})
            descriptor = _open(files[gpu])
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        held[gpu] = descriptor
    return held


def _some(files: Mapping[str, Path], count: int, holder: str) -> dict[str, int]:
    """``count`` locks at once or none: holding some while waiting for others could block two jobs for ever."""
    told, pause = False, 0.05
    while True:
        held: dict[str, int] = {}
        for gpu, file in files.items():
            descriptor = _try(file)
            if descriptor is not None:
                held[gpu] = descriptor
            if len(held) == count:
                return held
        for descriptor in held.values():
            os.close(descriptor)
        if not told:
            _say_waiting(holder, files)
            told = True
        time.sleep(random.uniform(pause / 2, pause))  # two that met do not meet again
        pause = min(2 * pause, 2.0)


def _open(file: Path) -> int:
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try(file: Path) -> int | None:
    descriptor = _open(file)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _content(descriptor: int) -> dict[str, str]:
    try:
        value = json.loads(os.pread(descriptor, 4096, 0) or b"{}")
    except ValueError:  # its writer was killed in between; then nothing had been started
        return {}
    return value if isinstance(value, dict) else {}


def _say_waiting(holder: str, files: Mapping[str, Path]) -> None:
    users = []
    for gpu, file in files.items():
        descriptor = _open(file)
        users.append(f"GPU {gpu}: {_content(descriptor).get('job', 'in use')}")
        os.close(descriptor)
    log(f"{holder} waits for {'; '.join(users)}")


def processes_of(token: str) -> list[int]:
    """Processes that were started under a lease: its token is in their environment. Empty where there is no /proc."""
    mark, found = f"{TOKEN_VARIABLE}={token}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile, or of another user
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def end_processes(token: str) -> list[int]:
    """End what is left of a lease's job: asked first, killed after ``GRACE_SEC``. What stays after twice that time."""
    asked: set[int] = set()
    deadline = time.monotonic() + GRACE_SEC
    while left := processes_of(token):
        late = time.monotonic() > deadline
        for process in left if late else set(left) - asked:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL if late else signal.SIGTERM)
        asked.update(left)
        if time.monotonic() > deadline + GRACE_SEC:
            return left
        time.sleep(0.05)
    return []
