"""Which GPUs a command uses: variables of the user and of SLURM against what a made-up nvidia-smi lists."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.core.gpus import LINE, choose

FOUR = {str(number): f"GPU-{number}a-b" for number in range(4)}
EIGHT = {str(number): f"GPU-{number}a-b" for number in range(8)}
SLURM = {"SLURM_JOB_ID": "7"}


@pytest.mark.parametrize(
    ("shell", "present", "expected"),
    [
        ({}, FOUR, "0123"),
        ({}, {"0": ""}, "0"),
        ({}, EIGHT, "0123"),  # the paper's number
        ({}, {}, ""),
        ({"GPUS": "4,5"}, EIGHT, "45"),
        ({"GPUS": "0,1,2,3,4,5,6,7"}, EIGHT, "01234567"),
        ({"GPUS": "0,1"}, {}, "01"),  # a login node
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, FOUR, "23"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-3a,GPU-0a-b"}, FOUR, "30"),
        ({"CUDA_VISIBLE_DEVICES": ""}, FOUR, ""),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, FOUR, ""),
        ({"CUDA_VISIBLE_DEVICES": "2,3", "GPUS": "3"}, FOUR, "3"),
        ({"CUDA_VISIBLE_DEVICES": "MIG-1/2"}, FOUR, ("MIG-1/2",)),
        ({**SLURM, "CUDA_VISIBLE_DEVICES": "5"}, EIGHT, "5"),
        ({**SLURM, "CUDA_VISIBLE_DEVICES": "5", "GPUS": "0,1,2,3"}, EIGHT, "5"),  # the allocation decides
        ({**SLURM, "CUDA_VISIBLE_DEVICES": "4,5", "GPUS": "5"}, EIGHT, "5"),
        ({**SLURM, "SLURM_JOB_GPUS": "6,7"}, EIGHT, "67"),
        ({**SLURM, "SLURM_JOB_GPUS": "6,7", "SLURM_STEP_GPUS": "7"}, EIGHT, "7"),
        ({**SLURM, "CUDA_VISIBLE_DEVICES": "NoDevFiles"}, EIGHT, ""),
        ({"SLURM_JOB_GPUS": "6,7"}, FOUR, "0123"),  # left over from another shell
    ],
)
def test_choice(shell, present, expected):
    assert choose(shell, present) == list(expected)


@pytest.mark.parametrize(
    ("shell", "words"),
    [
        ({"GPUS": "0,4"}, "GPUS names GPU 4, but this machine has 0,1,2,3"),
        ({"GPUS": "0,1", "CUDA_VISIBLE_DEVICES": "1,2"}, "GPU 0, but CUDA_VISIBLE_DEVICES shows only 1,2"),
        ({"CUDA_VISIBLE_DEVICES": "9"}, "CUDA_VISIBLE_DEVICES names GPU 9"),
        ({"GPUS": "1,1"}, "not a list of different GPUs"),
        ({"GPUS": "0,,1"}, "not a list of different GPUs"),
    ],
)
def test_what_is_not_there_is_refused(shell, words):
    with pytest.raises(UserError, match=words):
        choose(shell, FOUR)


def test_lines_of_nvidia_smi():
    text = (
        "GPU 0: NVIDIA H200 (UUID: GPU-0a1b)\n  MIG 1g.18gb     Device  0: (UUID: MIG-77)\n"
        "GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-ffff-1)\nGPU 10: something\n"
    )
    assert dict(LINE.findall(text)) == {"0": "GPU-0a1b", "1": "GPU-ffff-1", "10": ""}


def setup(folder: Path, n_gpus: int | None, **variables: str) -> str:
    """DEVICE, GPUS, processes and CUDA_VISIBLE_DEVICES after scripts/setup.sh on a machine with ``n_gpus``."""
    binaries = folder / "bin"
    binaries.mkdir()
    lines = "".join(f"GPU {number}: Made up (UUID: GPU-{number})\\n" for number in range(n_gpus or 0))
    failing = n_gpus is None  # a driver that does not answer
    (binaries / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{lines}'\n" + ("exit 9\n" if failing else ""))
    (binaries / "nvidia-smi").chmod(0o755)
    shell = {
        name: value for name, value in os.environ.items() if name not in ("CUDA_VISIBLE_DEVICES", "DEVICE", "GPUS")
    }
    show = 'echo "$DEVICE ${GPUS:-} $NUM_PROCESSES ${CUDA_VISIBLE_DEVICES-unset} ${DEEPSPEED_WHERE[*]}"'
    done = subprocess.run(
        ["bash", "-c", f"source scripts/setup.sh; {show}"],
        cwd=REPOSITORY,
        env={**shell, "PATH": f"{binaries}:{shell['PATH']}", **variables},
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() if done.returncode == 0 else f"{done.returncode} {done.stderr.strip()}"


@pytest.mark.parametrize(
    ("n_gpus", "variables", "expected"),
    [
        (4, {}, "gpu 0,1,2,3 4 unset --include localhost:0,1,2,3"),
        (1, {}, "gpu 0 1 unset --include localhost:0"),
        (8, {"CUDA_VISIBLE_DEVICES": "6,7"}, "gpu 6,7 2 6,7 --include localhost:6,7"),
        (4, {"CUDA_VISIBLE_DEVICES": ""}, "cpu  1  --num_gpus 1"),
        (None, {}, "cpu  1  --num_gpus 1"),
        (4, {"DEVICE": "cpu", "NUM_PROCESSES": "2"}, "cpu  2  --num_gpus 2"),
        (None, {"DEVICE": "gpu"}, "gpu 0,1,2,3 4 unset --include localhost:0,1,2,3"),
        (4, {"GPUS": "7"}, "2 error: GPUS names GPU 7, but this machine has 0,1,2,3; choose among them"),
        (
            4,
            {"DEVICE": "gpu", "CUDA_VISIBLE_DEVICES": ""},
            "2 error: DEVICE=gpu, but CUDA_VISIBLE_DEVICES shows no GPU",
        ),
    ],
)
def test_scripts_use_that_choice(n_gpus, variables, expected, tmp_path):
    assert setup(tmp_path, n_gpus, **variables).startswith(expected)
