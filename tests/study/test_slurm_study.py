"""A study of real stages on a SLURM cluster of this machine (`slurm_cluster`), through the shipped profile to its end.

The block of docs/howto_4gpu_node.md that starts it, with another study and two GPUs. The GPUs are made up: inside a
SLURM job scripts/setup.sh is told to take a CPU rank in the place of each. Everything else is what a user runs: toy
models (`toy_world`), every script, the tables and the report. The same study is then run without a cluster.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy_world
from docs.test_blocks import BLOCKS
from toys import REPOSITORY

from guardrail.core.files import read_json

from . import slurm_cluster
from .slurm_cluster import Cluster

PLUGIN = "snakemake_executor_plugin_slurm"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("GUARDRAIL_LONG_TESTS"), reason="minutes; set GUARDRAIL_LONG_TESTS=1"),
    pytest.mark.skipif(slurm_cluster.missing() is not None, reason=str(slurm_cluster.missing())),
    pytest.mark.skipif(importlib.util.find_spec(PLUGIN) is None, reason=f"needs {PLUGIN.replace('_', '-')}"),
]
MARK = ("run by", "tests/study/test_slurm_study.py")
DECISION = 'case "$DEVICE" in\n'
RANKS_FOR_GPUS = """
if [[ -n "${{SLURM_JOB_ID:-}}" ]]; then
    echo "$SLURM_JOB_ID ${{0##*/}} DEVICE=$DEVICE GPUS=${{GPUS:-}}" >>{log}
    if [[ "$DEVICE" == gpu ]]; then
        IFS=, read -ra GPU_LIST <<<"$GPUS"
        DEVICE=cpu NUM_PROCESSES="${{#GPU_LIST[@]}}"
    fi
fi
"""
"""What replaces each GPU of a job with a CPU rank, and notes which it was given."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    try:
        started = Cluster().__enter__()
    except slurm_cluster.Impossible as reason:
        pytest.skip(str(reason))
    yield started
    started.__exit__()


def make_checkout(folder: Path, log: Path) -> Path:
    """A copy of the project in which jobs of SLURM run on CPU ranks."""
    for name in ("guardrail", "configs", "workflow", "scripts", "similarity", "beavertails_moderation"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (*REPOSITORY.glob("*.py"), REPOSITORY / "pyproject.toml"):
        shutil.copy(file, folder)
    (folder / "datasets").mkdir()
    shutil.copy(REPOSITORY / "datasets" / "mix.py", folder / "datasets")
    setup = folder / "scripts" / "setup.sh"
    text = setup.read_text()
    assert text.count(DECISION) == 1
    setup.write_text(text.replace(DECISION, RANKS_FOR_GPUS.format(log=log) + DECISION))
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A study file, and beside it in `alone` what it gives on this machine with two ranks."""
    folder = tmp_path_factory.mktemp("world")
    study = toy_world.write_study(folder / "toy.yaml", toy_world.make_world(folder / "world"))
    alone = toy_world.finish(study, folder / "alone", shell={"NUM_PROCESSES": "2", "PYTHONPATH": str(REPOSITORY)})
    assert alone["code"] == 0, alone["stderr"]
    return study


def the_block(words: str, study: Path, gpus: str) -> str:
    """The page's command for a cluster that has ``words`` in it, with this study and these GPUs.

    And with a look at the queue every four seconds.
    """
    blocks = [block for block in BLOCKS if block.page == "docs/howto_4gpu_node.md" and block.mark == MARK]
    (text,) = (block.text for block in blocks if words in block.text)
    text, n_sizes = re.subn(r"GPUS=0,1,2,3", f"GPUS={gpus}", text)
    text, n_names = re.subn(r"configs/studies/paper_llama2_7b\.yaml", str(study), text)
    assert (n_sizes, n_names) == (1, 1)
    return text.rstrip() + " --slurm-init-seconds-before-status-checks 4"


@pytest.mark.parametrize(("words", "gpus", "nodes"), [("DEVICE=gpu GPUS=", "0,1", 1), ("NODES=2", "0", 2)])
def test_a_study_of_real_stages_runs_through_the_profile_to_its_report(cluster, world, tmp_path, words, gpus, nodes):
    """Two ranks of a training: two GPUs of one node, or one of each of two."""
    log = tmp_path / "jobs.txt"
    checkout = make_checkout(tmp_path / "checkout", log)
    if nodes == 2:
        profile = checkout / "workflow" / "profiles" / "slurm" / "config.yaml"
        profile.write_text(profile.read_text().replace('# slurm_partition: "gpu"', 'slurm_partition: "two"'))
    hidden = ("CUDA_VISIBLE_DEVICES", "JOBS", "HOSTFILE", "GPUS", "NODES", "DEVICE")
    shell = {name: value for name, value in os.environ.items() if name not in hidden}
    shell |= {"PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1", "OUTPUTS": str(tmp_path / "outputs")}
    shell |= cluster.environment | {"MASTER_ADDR": "127.0.0.1"}  # both nodes are this machine, whatever their names
    with open(tmp_path / "study.err", "w") as errors:
        command = ["bash", "-euo", "pipefail", "-c", the_block(words, world, gpus)]
        done = subprocess.run(command, cwd=checkout, env=shell, stdout=subprocess.PIPE, stderr=errors, text=True)
    said = (tmp_path / "study.err").read_text()
    assert done.returncode == 0 and "some stages failed" not in said, said[-3000:]
    outputs = tmp_path / "outputs" / toy_world.NAME
    result = read_json(outputs / "study.json")
    assert {cell["status"] for cell in result["cells"]} == {"done"}
    for name in ("report.html", "tables/arms.tex", "tables/arms.csv"):
        assert (outputs / name).stat().st_size > 100, name
    runs = [read_json(file)["run"] for file in outputs.rglob("run.json")]
    assert runs and {run["inputs"]["world_size"] for run in runs} == {2}
    given = [line.split("GPUS=")[1] for line in log.read_text().splitlines()]
    counts = {len(text.split(",")) if text else 0 for text in given}
    assert counts == ({0, 1} if nodes == 2 else {0, 1, 2}), given  # on each node: mixing, evaluations, training
    hosts = [file.read_text() for file in (outputs / ".steps").glob("hosts-*")]
    assert set(hosts) == ({"node1 slots=1\nnode2 slots=1\n"} if nodes == 2 else set())
    assert len(hosts) in (0, len(runs))
    assert toy_world.comparable(tmp_path / "outputs") == toy_world.comparable(world.parent / "alone")
