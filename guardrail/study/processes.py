"""Which jobs of a study share a process: imports and models are loaded once for all of them.

    evaluate.<checkpoint>     every answer of a checkpoint and its losses, from one load of the model
    evaluate.<kind>.<number>  on a machine without GPUs: several checkpoints, one after the other
    harmfulness, judge_*      all checkpoints' judgements, from one load of the judge (one process per GPU)
    subsets                   representations and selections; on a machine without GPUs the mixtures as well
    mix                       mixtures, on a machine with GPUs: they need none
    scores.<alignment>        scores of rows by one aligned model; `scores`: by scorers that look at none

Every other job has a process of its own. What is done, stale or failed is said of each job and product, not of the
process; a process runs those of its jobs that have to run, and one that fails leaves the others alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from guardrail.study.jobs import Job
from guardrail.study.leases import CPU_MACHINE, Machine

SUBSETS, MIX, EVALUATE = "subsets", "mix", "evaluate"
CHECKPOINTS_PER_START = 4  # more would save little, and hold more back when one of them is not there
TITLES = {
    SUBSETS: "subsets",
    MIX: "mix",
    EVALUATE: "evaluate",
    "harmfulness": "harmfulness of all answers",
    "scores": "scores of rows",
}


@dataclass(frozen=True)
class Process:
    """One process of a study: the names of its jobs, in order; ``needs`` are processes; ``gpus`` as in `Job`."""

    name: str
    stage: str
    title: str
    jobs: tuple[str, ...]
    needs: tuple[str, ...]
    gpus: str


def make_processes(jobs: dict[str, Job], names: Sequence[str], machine: Machine = CPU_MACHINE) -> dict[str, Process]:
    """The processes that run the jobs ``names``, each after those that it needs."""
    members: dict[str, list[str]] = {}
    for name in names:
        members.setdefault(jobs[name].process, []).append(name)
    if not machine.gpus:
        members = share_starts(members)
    for judge in [process for process, inside in members.items() if jobs[inside[0]].is_judge]:
        shares = split(members[judge], slots(jobs[members[judge][0]], machine))
        if len(shares) > 1:
            del members[judge]
            members |= {f"{judge}.{number}": share for number, share in enumerate(shares, 1)}
    home = {name: process for process, inside in members.items() for name in inside}
    unordered = {}
    for process, inside in members.items():
        own = [jobs[name] for name in inside]
        needs = dict.fromkeys(home[need] for job in own for need in job.needs if need in home)
        stage = own[0].stage if process in jobs else process.split(".")[0]
        gpus = next((wanted for wanted in ("all", "one") if any(job.gpus == wanted for job in own)), "none")
        title = own[0].title if len(own) == 1 else process_title(stage, process, len(own))
        unordered[process] = Process(
            process, stage, title, tuple(inside), tuple(n for n in needs if n != process), gpus
        )
    return in_order(unordered)


def share_starts(members: dict[str, list[str]]) -> dict[str, list[str]]:
    """Fewer and larger processes, for a machine without GPUs: a start costs as much as evaluating a small checkpoint.

    Mixtures join the subsets; aligned checkpoints, and fine-tuned ones, are evaluated a few by each process.
    """
    out: dict[str, list[str]] = {}
    kinds: dict[str, list[str]] = {}  # `evaluate.aligned` -> the processes of these checkpoints
    for process, inside in members.items():
        kind = ".".join(process.split(".")[:2])
        if process == MIX and SUBSETS in members:
            out[SUBSETS] = [*members[SUBSETS], *inside]
        elif process.startswith(f"{EVALUATE}.") and kind != process:
            kinds.setdefault(kind, []).append(process)
        else:
            out.setdefault(process, inside)
    for kind, processes in kinds.items():
        shares = split(processes, -(-len(processes) // CHECKPOINTS_PER_START))
        for number, share in enumerate(shares, 1):
            name = share[0] if len(share) == 1 else f"{kind}.{number}"
            out[name] = [job for process in share for job in members[process]]
    return out


def slots(job: Job, machine: Machine) -> int:
    """How many jobs of this kind the machine runs side by side, each on its GPUs."""
    return max(1, len(machine.gpus) // machine.per_job) if job.gpus == "one" else 1


def split(names: list[str], n: int) -> list[list[str]]:
    """``names`` in at most ``n`` shares of neighbours, as equal as can be."""
    n = min(n, len(names))
    cuts = [round(i * len(names) / n) for i in range(n + 1)]
    return [names[a:b] for a, b in itertools.pairwise(cuts)]


def process_title(stage: str, process: str, n_jobs: int) -> str:
    place = process.removeprefix(stage).strip(".")
    what = TITLES.get(stage, stage.replace("_", " "))
    return f"{what}{': ' + place if place else ''} ({n_jobs} jobs)"


def in_order(processes: dict[str, Process]) -> dict[str, Process]:
    """``processes``, each after those that it needs, otherwise as they come."""
    out: dict[str, Process] = {}

    def visit(name: str) -> None:
        if name not in out:
            for need in processes[name].needs:
                visit(need)
            out[name] = processes[name]

    for name in processes:
        visit(name)
    return out


def single(job: Job) -> Process:
    """A process for one job alone."""
    return Process(job.name, job.stage, job.title, (job.name,), (), job.gpus)
