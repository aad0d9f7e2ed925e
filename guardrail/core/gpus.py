"""Which GPUs of this machine a command may use: decided here, for the scripts (`scripts/setup.sh`) and for studies.

    python -m guardrail.core.gpus --device auto       # prints 0,1,2,3; nothing on a machine without a GPU

GPUs are named as `nvidia-smi -L` names them. In this order:

* ``CUDA_VISIBLE_DEVICES``: only what it shows, nothing where it is empty;
* in a SLURM job without it, ``SLURM_STEP_GPUS`` or ``SLURM_JOB_GPUS``;
* ``GPUS``: a choice among those; in a SLURM job the allocation wins where it does not hold the choice;
* without any of them the first four that nvidia-smi lists, the paper's number: rows of an optimizer step grow with it.

A UUID (``GPU-...``) is translated to its number, which is what the launchers take.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping

from guardrail.core.cli import Parser, run
from guardrail.core.errors import UserError

N_DEFAULT = 4
SLURM_JOB = "SLURM_JOB_ID"
LINE = re.compile(r"^GPU (\d+): (?:.*\(UUID: (GPU-[^)]+)\))?", re.MULTILINE)


def listed() -> dict[str, str]:
    """GPU number -> UUID (empty where it has none), as nvidia-smi lists them; nothing without a working one."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return dict(LINE.findall(done.stdout)) if done.returncode == 0 else {}


def split_names(text: str, source: str) -> list[str]:
    """`0,1` as names. Raises ``UserError`` for one that is there twice, or an empty one."""
    names = [part.strip() for part in text.split(",")] if text.strip() else []
    if len(set(names)) != len(names) or "" in names:
        raise UserError(f"{source}={text} is not a list of different GPUs; expected numbers with commas, as 0,1")
    return names


def numbered(name: str, present: Mapping[str, str]) -> str:
    """The number of a GPU that may be named by the beginning of its UUID; other names as they are."""
    found = [number for number, uuid in present.items() if name.startswith("GPU-") and uuid.startswith(name)]
    return found[0] if len(found) == 1 else name


def offered_names(shell: Mapping[str, str]) -> tuple[list[str] | None, str]:
    """What the user or the scheduler shows of the machine, and the variable that says so; None where none does."""
    variables = ["CUDA_VISIBLE_DEVICES"]
    if SLURM_JOB in shell:
        variables += ["SLURM_STEP_GPUS", "SLURM_JOB_GPUS"]
    for variable in variables:
        if variable in shell:
            text = shell[variable].strip()
            hidden = text in ("-1", "NoDevFiles")  # as CUDA and SLURM write "none"
            return ([] if hidden else split_names(text, variable)), variable
    return None, ""


def choose(shell: Mapping[str, str], present: Mapping[str, str]) -> list[str]:
    """The GPUs that a command of ``shell`` uses, of those that are ``present`` (empty: not known here).

    Raises ``UserError`` for one that is not there or not shown.
    """
    offered, variable = offered_names(shell)
    named = split_names(shell.get("GPUS", ""), "GPUS")
    if offered is None:
        allowed = list(present)
        default = allowed[:N_DEFAULT]
    else:
        default = allowed = [numbered(name, present) for name in offered]
        # A MIG slice is in no plain list.
        missing = [name for name in allowed if present and name not in present and not name.startswith("MIG-")]
        if missing:
            raise UserError(f"{variable} names GPU {missing[0]}, but this machine has {','.join(present)}")
    if not named or (offered is None and not present):
        return named or default
    chosen = [numbered(name, present) for name in named]
    outside = [name for name in chosen if name not in allowed]
    if outside and SLURM_JOB in shell:
        return default
    if outside:
        where = f"{variable} shows only" if variable else "this machine has"
        raise UserError(f"GPUS names GPU {outside[0]}, but {where} {','.join(allowed) or 'none'}; choose among them")
    return chosen


def settled(shell: Mapping[str, str]) -> bool:
    """Are numbers given that need no look at the machine? So for every stage of a study, which starts many."""
    offered = offered_names(shell)[0] or []
    named = split_names(shell.get("GPUS", ""), "GPUS")
    return bool(named) and set(named) <= set(offered) and all(name.isdigit() for name in named)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="guardrail.core.gpus", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="auto", choices=["auto", "gpu"], help="gpu: an error without a GPU")
    args = parser.parse_args(argv)
    present = {} if args.device == "gpu" and settled(os.environ) else listed()
    if args.device == "auto" and not present:
        return
    names = choose(os.environ, present)
    if args.device == "gpu" and not names:
        if offered_names(os.environ)[0] is not None:
            raise UserError(f"DEVICE=gpu, but {offered_names(os.environ)[1]} shows no GPU; unset it, or use DEVICE=cpu")
        names = [str(number) for number in range(N_DEFAULT)]  # a login node: the GPUs are elsewhere
    print(",".join(names))


if __name__ == "__main__":
    run(main)
