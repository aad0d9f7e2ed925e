"""Leases of GPUs: never two holders, in the order that lets everybody through, free again however a job ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from guardrail.core.errors import UserError
from guardrail.study import leases, run_job
from guardrail.study.allocation import nodes_of_job
from guardrail.study.jobs import Job
from guardrail.study.leases import Machine, devices_of, lease
from guardrail.study.schedule import all_ranks, this_machine

from .toy_jobs import ToyStudy

KEYS = {gpu: f"GPU-{gpu}" for gpu in "0123"}
FOUR = Machine(tuple("0123"))
HOLDER = """
import json, subprocess, sys, time
from pathlib import Path
from guardrail.study.leases import TOKEN_VARIABLE, lease
import os
folder, count, seconds, events, name = sys.argv[1:]
keys = {gpu: f"GPU-{gpu}" for gpu in "0123"}
with lease(Path(folder), keys, int(count), name) as (gpus, token):
    start = time.time()
    child = subprocess.Popen(["sleep", seconds], env={**os.environ, TOKEN_VARIABLE: token}, close_fds=EVAL)
    with open(events + ".running", "a") as handle:
        handle.write(f"{name} {child.pid}\\n")
    child.wait()
    with open(events, "a") as handle:
        handle.write(json.dumps({"gpus": gpus, "start": start, "end": time.time()}) + "\\n")
"""


def job(gpus: str) -> Job:
    return Job("align.x", "align", "align", ("x",), {}, (), (), "log", gpus)


def hold(folder: Path, count: int, seconds: float, name: str = "job", inherit: bool = True) -> subprocess.Popen:
    code = HOLDER.replace("EVAL", str(not inherit))
    arguments = [str(folder), str(count), str(seconds), str(folder / "events"), name]
    return subprocess.Popen([sys.executable, "-c", code, *arguments], start_new_session=True, text=True)


def running(folder: Path, name: str) -> int:
    """The process of the stage of ``name``, once it runs."""
    file = folder / "events.running"
    for _ in range(600):
        for line in file.read_text().splitlines() if file.exists() else []:
            if line.split()[0] == name and len(line.split()) == 2:
                return int(line.split()[1])
        time.sleep(0.05)
    raise AssertionError(f"{name} did not start")


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/environ").read_bytes() != b""  # empty of one that has ended
    except OSError:
        return False


def test_jobs_of_two_studies_never_hold_one_gpu_together(tmp_path):
    processes = [hold(tmp_path, count, 0.2, f"{count}.{i}") for i in range(2) for count in (1, 4, 2, 1)]
    assert [process.wait(120) for process in processes] == [0] * len(processes)
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert sorted(len(event["gpus"]) for event in events) == [1, 1, 1, 1, 2, 2, 4, 4]
    for event in events:
        at = [other for other in events if other["start"] <= event["start"] < other["end"]]
        held = [gpu for other in at for gpu in other["gpus"]]
        assert len(held) == len(set(held))


def test_a_killed_jobs_gpu_is_free_again(tmp_path):
    process = hold(tmp_path, 4, 600, "killed")
    running(tmp_path, "killed")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    started = time.monotonic()
    with lease(tmp_path, KEYS, 4, "next") as (gpus, _):
        assert gpus == list("0123")
    assert time.monotonic() - started < 30


def test_a_stage_that_outlives_its_killed_job_keeps_the_gpu(tmp_path):
    """As after `kill -9` of the process that started it: the stage still computes there."""
    process = hold(tmp_path, 4, 600, "killed")
    stage = running(tmp_path, "killed")
    process.kill()
    process.wait()
    descriptor = leases._try(tmp_path / "GPU-0.lock")
    assert descriptor is None
    os.kill(stage, signal.SIGKILL)
    with lease(tmp_path, KEYS, 4, "next") as (gpus, _):
        assert len(gpus) == 4


def test_ranks_that_do_not_hold_the_lock_are_ended_before_the_gpu_is_given_on(tmp_path):
    """Launchers start their ranks without open files, in sessions of their own."""
    process = hold(tmp_path, 4, 600, "killed", inherit=False)
    rank = running(tmp_path, "killed")
    process.kill()
    process.wait()
    with lease(tmp_path, KEYS, 1, "next"):
        assert not is_running(rank)


def test_what_a_stage_leaves_running_is_ended_with_the_job(tmp_path):
    with lease(tmp_path, KEYS, 1, "job") as (_, token):
        left = subprocess.Popen(["sleep", "600"], env={**os.environ, leases.TOKEN_VARIABLE: token})
        assert leases.processes_of(token) == [left.pid]
    assert left.wait(5) == -signal.SIGTERM


def test_a_job_that_fails_gives_its_gpu_back(tmp_path):
    with pytest.raises(RuntimeError), lease(tmp_path, KEYS, 4, "job"):
        raise RuntimeError
    with lease(tmp_path, KEYS, 4, "next") as (gpus, _):
        assert len(gpus) == 4


def test_more_gpus_than_there_are_is_refused(tmp_path):
    with pytest.raises(UserError, match="needs 5 GPUs"), lease(tmp_path, KEYS, 5, "job"):
        pass
    with pytest.raises(UserError, match="TENSOR_PARALLEL=3 is more than the 2 GPUs"):
        this_machine("0,1", 3)


def test_what_a_stage_sees(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "listed", dict)
    shell = {leases.FOLDER_VARIABLE: str(tmp_path)}

    def seen(gpus: str, machine: Machine = FOUR) -> tuple[str | None, ...]:
        with devices_of(job(gpus), machine, 4, shell) as variables:
            assert ("GPUS" in variables) == bool(machine.gpus)
            return variables.get("DEVICE"), variables.get("CUDA_VISIBLE_DEVICES")

    assert seen("all") == ("gpu", "0,1,2,3")
    assert seen("one") == ("gpu", "0")
    assert seen("one", Machine(tuple("0123"), 2)) == ("gpu", "0,1")
    assert seen("none") == ("cpu", "")
    assert seen("all", Machine()) == seen("none", Machine()) == (None, None)


def test_only_training_takes_the_other_nodes(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "listed", dict)
    shell = {leases.FOLDER_VARIABLE: str(tmp_path), "HOSTFILE": "hosts"}
    for machine in (FOUR, Machine()):
        for gpus, expected in {"all": "hosts", "one": "", "none": ""}.items():
            with devices_of(job(gpus), machine, 8, shell) as variables:
                assert {**shell, **variables}["HOSTFILE"] == expected


def test_in_a_slurm_job_the_allocation_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "listed", dict)
    shell = {"SLURM_JOB_ID": "8", "CUDA_VISIBLE_DEVICES": "5", "GPUS": "0,1,2,3"}

    def seen(gpus: str, ranks: int = 4, machine: Machine = FOUR, **more: str) -> str:
        with devices_of(job(gpus), machine, ranks, {**shell, **more}) as variables:
            return variables.get("CUDA_VISIBLE_DEVICES", "as before")

    assert seen("one") == "5"
    assert seen("one", CUDA_VISIBLE_DEVICES="4,5") == "4,5"
    assert seen("all", CUDA_VISIBLE_DEVICES="4,5,6,7") == "4,5,6,7"
    assert seen("all", HOSTFILE="hosts", ranks=8, CUDA_VISIBLE_DEVICES="4,5,6,7") == "4,5,6,7"
    assert seen("none") == ""
    assert seen("all", machine=Machine(), DEVICE="cpu") == "as before"
    for words, arguments in {
        "scheduled with 4 processes and its SLURM job has 1 GPUs": {"gpus": "all"},
        "its SLURM job has none": {"gpus": "one", "CUDA_VISIBLE_DEVICES": ""},
        "start it with DEVICE=gpu": {"gpus": "one", "machine": Machine()},
    }.items():
        with pytest.raises(UserError, match=words):
            seen(**arguments)
    # the whole study inside one allocation: its jobs share it by leases
    inside = Machine(("5",), 1, "8")
    with devices_of(job("one"), inside, 1, {**shell, leases.FOLDER_VARIABLE: str(tmp_path)}) as variables:
        assert variables["GPUS"] == "5" and leases.TOKEN_VARIABLE in variables


def test_a_training_job_on_several_nodes(tmp_path, monkeypatch):
    """NODES=2 with a SLURM profile: as many GPUs on each, and a hostfile of the job's nodes."""
    monkeypatch.setattr(leases, "listed", dict)
    two = this_machine("0,1", 1, nodes=2)
    shell = {"SLURM_JOB_ID": "8", "CUDA_VISIBLE_DEVICES": "0,1"}
    with devices_of(job("all"), two, 4, shell) as variables:
        assert variables["GPUS"] == "0,1"
    with pytest.raises(UserError, match="has 2 GPUs on each of 2 nodes"), devices_of(job("all"), two, 8, shell):
        pass
    (tmp_path / "bin").mkdir()
    asked = {"squeue": "--noheader --jobs=8 --format=%N", "scontrol": "show hostnames node[1-2]"}
    for (name, words), answer in zip(asked.items(), ("node[1-2]", "node1\\nnode2"), strict=True):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\n[ "$*" = "{words}" ] && printf "{answer}\\n"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    variables = nodes_of_job(tmp_path / "steps", 2, 4, shell)
    assert Path(variables["HOSTFILE"]).read_text() == "node1 slots=2\nnode2 slots=2\n"
    assert variables["GUARDRAIL_REMOTE"] == "srun"
    with pytest.raises(UserError, match="scheduled on 3 nodes and its SLURM job 8 has 2: node1 node2"):
        nodes_of_job(tmp_path / "steps", 3, 6, shell)
    with pytest.raises(UserError, match="start the study with --profile"):
        nodes_of_job(tmp_path / "steps", 2, 4, {})


def test_nodes_are_named_once(monkeypatch):
    assert all_ranks(4) == 4 and all_ranks(4, 2) == 8
    monkeypatch.setenv("HOSTFILE", "hosts")
    with pytest.raises(UserError, match="NODES=2 and HOSTFILE=hosts both say"):
        all_ranks(4, 2)


def test_locks_of_somebody_else_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    with pytest.raises(UserError, match="belongs to another user"):
        leases.lock_folder({leases.FOLDER_VARIABLE: str(tmp_path)})


def test_a_job_that_still_runs_from_an_earlier_start_is_waited_for(tmp_path, monkeypatch, capsys):
    """As on a cluster, where a job outlives the killed command that submitted it."""
    study = ToyStudy(tmp_path, monkeypatch)
    jobs, begun, release = study.jobs(), threading.Event(), threading.Event()
    name = study.todo()[0]
    plain = study.stage

    def slow(root: Path, job: Job) -> int:
        begun.set()
        release.wait(60)
        return plain(root, job)

    monkeypatch.setattr(study, "stage", slow)
    starts = [threading.Thread(target=run_job.run_job, args=(study.grid.folder, jobs, name, {})) for _ in range(2)]
    starts[0].start()
    assert begun.wait(60)
    starts[1].start()
    deadline = time.monotonic() + 60
    while "still running from an earlier start" not in capsys.readouterr().err and time.monotonic() < deadline:
        time.sleep(0.05)
    assert study.executed == []
    release.set()
    for start in starts:
        start.join(60)
    assert study.executed == [name] and all(state.done for state in study.states()[name].values())
