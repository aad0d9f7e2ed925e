"""`scripts/install.sh` adds vLLM by itself where `nvidia-smi -L` works: the real script on a made-up machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from toys import REPOSITORY


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def machine(tmp_path):
    """A checkout whose install_vllm.sh only says that it ran, and an environment whose python only exits."""
    repo = tmp_path / "repo"
    (repo / "scripts").mkdir(parents=True)
    for name in ("scripts/install.sh", "scripts/help.sh", "requirements.txt", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, repo / name)
    for file in REPOSITORY.glob("requirements*.txt"):
        shutil.copy(file, repo / file.name)
    executable(repo / "scripts" / "install_vllm.sh", 'echo "$DEVICE" >"$(dirname "$0")/../ran"; exit "${BROKEN:-0}"')
    executable(tmp_path / "env" / "bin" / "python", 'case "$2" in *find_spec*vllm*) exit "${HAS_VLLM:-1}";; esac')
    executable(tmp_path / "bin" / "nvidia-smi", 'exit "${NO_GPU:-0}"')

    def install(**shell: str) -> tuple[str | None, subprocess.CompletedProcess[str]]:
        (repo / "ran").unlink(missing_ok=True)
        binaries = f"{tmp_path / 'env' / 'bin'}:{tmp_path / 'bin'}:{os.environ['PATH']}"
        environment = {"PATH": binaries, "HOME": str(tmp_path), "VIRTUAL_ENV": str(tmp_path / "env"), **shell}
        command = ["bash", str(repo / "scripts" / "install.sh")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        return ((repo / "ran").read_text().strip() if (repo / "ran").exists() else None), done

    return install


def test_vllm_comes_with_a_gpu_and_only_there(machine):
    assert machine()[0] == "gpu"
    assert machine(NO_GPU="9")[0] is None
    assert machine(HAS_VLLM="0")[0] is None  # it is there already
    assert machine(VLLM="no")[0] is None


def test_the_environment_is_whole_without_vllm(machine):
    ran, done = machine(BROKEN="1")
    assert ran == "gpu" and done.returncode == 0
    assert "bash scripts/install_vllm.sh" in done.stderr.splitlines()[-1]
