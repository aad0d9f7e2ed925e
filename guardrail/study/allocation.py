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

NODE_LIST = "SLURM_JOB_NODELIST"


def nodes_of_job(folder: Path, n_nodes: int, ranks: int, shell: Mapping[str, str]) -> dict[str, str]:
    """The variables of a stage that trains with ``ranks`` processes on the nodes of its SLURM job.

    Writes the hostfile into ``folder``. Raises ``UserError`` outside a SLURM job, and for another number of nodes than
    the study was scheduled with.
    """
    if not shell.get(SLURM_JOB) or not shell.get(NODE_LIST):
        raise UserError(f"a training on {n_nodes} nodes runs as a SLURM job; start the study with --profile")
    done = subprocess.run(["scontrol", "show", "hostnames", shell[NODE_LIST]], capture_output=True, text=True)
    names = done.stdout.split() if done.returncode == 0 else []
    if len(names) != n_nodes:
        raise UserError(
            f"the training is scheduled on {n_nodes} nodes and its SLURM job has {len(names)} ({shell[NODE_LIST]}); "
            "remove nodes from the profile: NODES of the study decides (the number of processes is in the result's key)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    hosts = folder / f"hosts-{shell[SLURM_JOB]}"
    write_text(hosts, "".join(f"{name} slots={ranks // n_nodes}\n" for name in names))
    return {"HOSTFILE": str(hosts.resolve()), "GUARDRAIL_REMOTE": shell.get("GUARDRAIL_REMOTE") or "srun"}
