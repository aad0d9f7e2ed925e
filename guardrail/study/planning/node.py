"""The machine that a plan is for: its kind of GPU and how many, or the cores of a CPU machine.

`PLAN_GPU=h100 PLAN_GPUS=4` names another than this one; `PLAN_GPU=cpu` a machine without GPUs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from guardrail.core.errors import UserError
from guardrail.study.leases import CPU_MACHINE, Machine
from guardrail.study.planning.devices import DEFAULT_KIND, Gpu, kind, this_machines

N_DEFAULT_GPUS = 4  # the paper's node
CPU_JOBS = 2  # scripts/study.sh
TRAINING_FIRST = 0
OTHERS = 1


@dataclass(frozen=True)
class Node:
    """``gpu`` None: a CPU machine with ``jobs`` jobs side by side. ``here``: it is this machine. ``why``: how known."""

    gpu: Gpu | None
    n_gpus: int
    jobs: int
    per_job: int = 1
    cpu_jobs: int = CPU_JOBS
    here: bool = False
    why: str = ""

    @property
    def name(self) -> str:
        return f"{self.n_gpus} x {self.gpu.name}" if self.gpu else f"CPU, {self.jobs} jobs side by side"

    @property
    def limits(self) -> dict[str, int]:
        """What the scheduler shares out (scripts/study.sh)."""
        return {"jobs": self.jobs, "gpus": self.n_gpus if self.gpu else 0, "cpu_jobs": self.cpu_jobs}

    @property
    def machine(self) -> Machine:
        """The machine as a schedule describes it."""
        return Machine(tuple(map(str, range(self.n_gpus))), self.per_job) if self.gpu else CPU_MACHINE

    def holds(self, gpus_wanted: str) -> dict[str, int]:
        """What a process that wants "all", "one" or "none" takes of `limits`, as workflow/Snakefile says it."""
        if self.gpu is None:
            return {"jobs": 1}
        gpus = self.machine.needed(gpus_wanted)
        return {"jobs": 1, "gpus": gpus} if gpus else {"jobs": 1, "cpu_jobs": 1}


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _number(shell: Mapping[str, str], name: str, otherwise: int) -> int:
    text = shell.get(name, "").strip()
    if not text:
        return otherwise
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"{name}={text} is not a number of at least 1")
    return int(text)


def node_of(sandbox: bool, shell: Mapping[str, str], here: Machine = CPU_MACHINE) -> Node:
    """The node that ``shell``'s variables name, or this one with the GPUs ``here``; for a sandbox study on a machine
    without GPUs its cores.

    Raises ``UserError`` for an unknown kind of GPU or a count that is none.
    """
    named = shell.get("PLAN_GPU", "").strip()
    cpu_jobs, per_job = _number(shell, "CPU_JOBS", CPU_JOBS), _number(shell, "TENSOR_PARALLEL", here.per_job)
    if named == "cpu" or (sandbox and not named and not here.gpus):
        return Node(None, 0, _number(shell, "JOBS", cores()), here=True, why="cores of this machine")
    found = this_machines() if here.gpus and not named else None
    if named:
        gpu, why = kind(named), "PLAN_GPU"
    elif found is not None:
        gpu, why = found, "nvidia-smi"
    else:
        gpu = kind(DEFAULT_KIND)
        unlisted = "its GPU is in no table here" if here.gpus else "no GPU here"
        why = f"assumed: {unlisted}; name another with PLAN_GPU=h100"
    n_gpus = _number(shell, "PLAN_GPUS", N_DEFAULT_GPUS if named else len(here.gpus) or N_DEFAULT_GPUS)
    if per_job > n_gpus:
        raise UserError(f"TENSOR_PARALLEL={per_job} is more than the {n_gpus} GPUs of the plan; set PLAN_GPUS")
    is_here = bool(here.gpus) and not named and n_gpus == len(here.gpus)
    return Node(gpu, n_gpus, _number(shell, "JOBS", n_gpus + cpu_jobs), per_job, cpu_jobs, is_here, why)
