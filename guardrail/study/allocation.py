"""Nodes that a SLURM job of several was given, as the hostfile with which its training starts on all of them.

For a study whose training jobs take several nodes (NODES=2 and a SLURM profile, scripts/study.sh). Nodes are taken
whole: processes use the GPUs 0, 1, ... of each. The launcher starts them as steps of the job (`guardrail.core.nodes`).
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from guardrail.core.errors import UserError
from guardrail.core.files import write_text
from guardrail.core.gpus import SLURM_JOB


def names_of_nodes(job: str) -> list[str]:
    """The nodes of a SLURM job, asked for: the variables of a step name only the nodes of that step."""
    listed = _said("squeue", "--noheader", f"--jobs={job}", "--format=%N")
    return _said("scontrol", "show", "hostnames", listed).split() if listed else []


def _said(*command: str) -> str:
    """What a command of SLURM says; nothing where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def nodes_of_job(folder: Path, n_nodes: int, ranks: int, shell: Mapping[str, str]) -> dict[str, str]:
    """The variables of a stage that trains with ``ranks`` processes on the nodes of its SLURM job.

    Writes the hostfile into ``folder``. Raises ``UserError`` outside a SLURM job, and for another number of nodes than
    the study was scheduled with.
    """
    job = shell.get(SLURM_JOB)
    if not job:
        raise UserError(f"a training on {n_nodes} nodes runs as a SLURM job; start the study with --profile")
    names = names_of_nodes(job)
    if len(names) != n_nodes:
        raise UserError(
            f"the training is scheduled on {n_nodes} nodes and its SLURM job {job} has {len(names)}: "
            f"{' '.join(names) or 'squeue does not say which'}; let NODES of the study decide, not the profile (the "
            "number of processes is in the result's key)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    hosts = folder / f"hosts-{job}"
    write_text(hosts, "".join(f"{name} slots={ranks // n_nodes}\n" for name in names))
    return {"HOSTFILE": str(hosts.resolve()), "GUARDRAIL_REMOTE": shell.get("GUARDRAIL_REMOTE") or "srun"}
