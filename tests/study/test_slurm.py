"""The shipped profile on a real SLURM cluster of one machine (`slurm_cluster`) with made-up GPUs.

A study of stages that only write down which GPUs they saw, with another user's job beside it, a cancelled job and a
crashed controller; then the scripts of scripts/slurm. Of the profile only the seconds between two looks at the queue
are changed. Skips where SLURM or the plugin is not installed.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from toys import REPOSITORY

from . import slurm_cluster
from .slurm_cluster import Cluster
from .toy_jobs import ToyStudy

PLUGIN = "snakemake_executor_plugin_slurm"
pytestmark = [
    pytest.mark.slow,  # every stage is a job with two Snakemakes in it
    pytest.mark.skipif(slurm_cluster.missing() is not None, reason=str(slurm_cluster.missing())),
    pytest.mark.skipif(importlib.util.find_spec(PLUGIN) is None, reason=f"needs {PLUGIN.replace('_', '-')}"),
]
PROFILE = "workflow/profiles/slurm"
# Shows ten times a second that it lives, so that a killed one has an end as well. Ends when the test says so.
STUB = """
import json, os, sys, time
from pathlib import Path

HERE, root = Path({here!r}), Path({root!r})
names, steps, process = [], None, {{"name": "foreign", "gpus": "foreign"}}
if len(sys.argv) > 1 and sys.argv[1].endswith(".json"):  # scripts/stages.sh
    steps = json.loads(Path(sys.argv[1]).read_text())
    names = [step["name"] for step in steps["steps"]]
content = json.loads((root / "jobs.json").read_text()) if steps or "GUARDRAIL_JOB_KEY" in os.environ else {{"jobs": []}}
jobs = {{job["name"]: job for job in content["jobs"]}}
key = os.environ.get("GUARDRAIL_JOB_KEY")
names = names or [name for name, job in jobs.items() if job["products"][0]["key"]["value"] == key]
if names:
    process = next(one for one in content["processes"] if set(names) <= set(one["jobs"]))
fact = {{"job": process["name"], "needs": process["gpus"], "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
         "script_gpus": os.environ.get("GPUS"), "slurm": os.environ["SLURM_JOB_ID"]}}
with open(HERE / f"beats/{{process['name']}}.{{os.environ['SLURM_JOB_ID']}}.jsonl", "a", buffering=1) as beats:
    left = 5
    while left:
        beats.write(json.dumps({{**fact, "time": time.time()}}) + "\\n")
        time.sleep(0.1)
        left -= (HERE / "go").exists()
for product in [product for name in names for product in jobs[name]["products"]]:
    for name in product["files"]:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("slice_end") or "/reps/" in name:
            path.mkdir(exist_ok=True)
            path = path / "config.json"
        path.write_text("{{}}")
if steps:
    with open(steps["status"], "a") as handle:
        for name in names:
            for state in ("started", "done"):
                handle.write(json.dumps({{"step": name, "state": state}}) + "\\n")
"""


class StubStudy:
    """A checkout whose scripts are the stub, and a study of one task that it runs."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder, self.cluster, self.outputs = folder, cluster, folder / "outputs"
        self.copy, self.stub = folder / "checkout", folder / "stub.py"
        self.process: subprocess.Popen[str] | None = None
        for name in ("guardrail", "configs", "workflow", "scripts"):
            shutil.copytree(REPOSITORY / name, self.copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(REPOSITORY / "pyproject.toml", self.copy)
        (self.copy / "datasets").mkdir()
        (folder / "beats").mkdir()
        with pytest.MonkeyPatch.context() as patch:
            settings = ToyStudy(folder / "world", patch).settings
        settings["subsets"], settings["seeds"] = ["high"], [1]
        del settings["tasks"]["pure_bad"]
        del settings["evaluation"]["judges"], settings["evaluation"]["over_refusal_bench"]
        (folder / "toy.yaml").write_text(yaml.safe_dump(settings))
        self.stub.write_text(STUB.format(here=str(folder), root=str(self.outputs / "toy")))
        for script in (self.copy / "scripts").glob("*.sh"):
            if script.stem not in ("study", "setup", "help"):
                script.write_text(f'exec {sys.executable} {self.stub} "$@"\n')

    @property
    def shell(self) -> dict[str, str]:
        hidden = ("CUDA_VISIBLE_DEVICES", "JOBS", "HOSTFILE")
        shell = {name: value for name, value in os.environ.items() if name not in hidden}
        shell |= {"PYTHONPATH": str(self.copy), "OUTPUTS": str(self.outputs), "HF_HUB_OFFLINE": "1"}
        return shell | self.cluster.environment | {"DEVICE": "gpu", "GPUS": "0,1,2,3"}

    def start(self, *more: str) -> subprocess.Popen[str]:
        command = ["bash", str(self.copy / "scripts/study.sh"), str(self.folder / "toy.yaml"), "--profile"]
        command += [str(self.copy / PROFILE), "--slurm-init-seconds-before-status-checks", "4", *more]
        with open(self.folder / "study.err", "a") as errors:
            return subprocess.Popen(
                command, env=self.shell, cwd=self.copy, stdout=errors, stderr=errors, text=True, start_new_session=True
            )

    def submit(self, *command: str, **variables: str) -> str:
        """What a script that submits says on its stdout."""
        done = subprocess.run(command, env=self.shell | variables, cwd=self.copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def attempts(self) -> list[dict[str, Any]]:
        """Every start of a stage: what it saw, and when it was alive."""
        found = []
        for file in sorted((self.folder / "beats").iterdir()):
            beats = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
            if beats:
                found.append({**beats[0], "start": beats[0]["time"], "end": beats[-1]["time"]})
        return found

    def alive(self) -> list[dict[str, Any]]:
        return [attempt for attempt in self.attempts() if attempt["end"] > time.time() - 4]

    def wait_for(self, ready: Callable[[], bool], what: str, seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            ended = self.process is not None and self.process.poll() is not None
            if ended or time.monotonic() > deadline:
                pytest.fail(f"{what}:\n{(self.folder / 'study.err').read_text()[-3000:]}")
            time.sleep(0.2)

    def schedule(self, what: str) -> list[dict[str, Any]]:
        """`jobs` or `processes`."""
        return json.loads((self.outputs / "toy" / "jobs.json").read_text())[what]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    try:
        started = Cluster().__enter__()
    except slurm_cluster.Impossible as reason:
        pytest.skip(str(reason))
    yield started
    started.__exit__()


@pytest.fixture(scope="module")
def study(cluster, tmp_path_factory) -> Iterator[StubStudy]:
    """The whole story. Another user's job holds three GPUs at first, so that jobs wait. The one that runs is cancelled,
    and the next gets its GPU; then the controller crashes, the jobs end without it, and it comes back."""
    study = StubStudy(tmp_path_factory.mktemp("slurm"), cluster)
    study.submit("sbatch", "--gres=gpu:3", "--mem=1000", "-o/dev/null", f"--wrap={sys.executable} {study.stub}")
    process = study.process = study.start()
    try:
        study.wait_for(lambda: len(study.alive()) == 2, "one job should run beside the foreign one")
        study.wait_for(lambda: bool(cluster.ask("squeue", "-h", "-t", "PD")), "the next should wait")
        victim = next(attempt for attempt in study.alive() if attempt["job"] != "foreign")
        study.cancelled = victim["job"]
        cluster.ask("scancel", victim["slurm"])
        study.wait_for(lambda: victim["slurm"] not in [a["slurm"] for a in study.alive()], "the job is cancelled")
        study.wait_for(lambda: len(study.alive()) == 2, "the next job has its GPU")
        time.sleep(7)  # the controller writes what it knows every five seconds; of a start in between it knows nothing
        cluster.kill_controller()
        (study.folder / "go").touch()
        study.wait_for(lambda: not study.alive(), "jobs end without the controller")
        cluster.start_controller()
        process.wait(1200)
        yield study
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_a_study_runs_to_its_end(study):
    errors = (study.folder / "study.err").read_text()  # the table at the end finds no numbers in what the stub wrote
    assert "100% done" in errors and "some stages failed" not in errors, errors[-3000:]
    done = {path.parent.name for path in (study.outputs / "toy" / "records").glob("*/*.json")}
    assert done == {job["name"] for job in study.schedule("jobs")}
    assert not list((study.outputs / "toy" / "records").glob("*/failed.json"))


def test_the_cluster_needs_no_accounting(cluster):
    """What the profile's status command is for: the plugin's own choice loses every job here."""
    done = subprocess.run(["sacct"], env={**os.environ, **cluster.environment}, capture_output=True, text=True)
    assert done.returncode != 0 and "accounting storage is disabled" in done.stderr


def test_no_gpu_is_ever_given_to_two_jobs(study):
    for one, other in itertools.combinations(study.attempts(), 2):
        if one["start"] <= other["end"] and other["start"] <= one["end"]:
            shared = set(filter(None, one["gpus"].split(","))) & set(filter(None, other["gpus"].split(",")))
            assert not shared, (one, other)


def test_every_stage_asks_for_as_many_gpus_as_it_uses(study):
    expected = {"all": 4, "one": 1, "none": 0, "foreign": 3}
    for attempt in study.attempts():
        given = [gpu for gpu in attempt["gpus"].split(",") if gpu]
        assert len(given) == expected[attempt["needs"]], attempt
        assert attempt["needs"] in ("none", "foreign") or attempt["script_gpus"] == attempt["gpus"]
    assert {attempt["needs"] for attempt in study.attempts()} == set(expected)


def test_a_cancelled_job_is_started_again_and_no_other(study):
    starts = [attempt["job"] for attempt in study.attempts()]
    assert starts.count(study.cancelled) == 2
    assert len(starts) == len(study.schedule("processes")) + 2  # the second start, and the foreign job


@pytest.fixture(scope="module")
def checkout(cluster, tmp_path_factory) -> StubStudy:
    """Scripts to submit, whose stages end at once."""
    checkout = StubStudy(tmp_path_factory.mktemp("checkout"), cluster)
    (checkout.folder / "go").touch()
    return checkout


def test_one_cell_without_a_study(checkout):
    """scripts/slurm/sft_grid.sh: fine-tuning starts after alignment, each on all GPUs; not after one that failed."""
    said = checkout.submit("bash", "scripts/slurm/sft_grid.sh", TASK="list", SIM="low", SIZE="1k")
    second = said.split()[-1]
    checkout.wait_for(lambda: not checkout.cluster.ask("squeue", "-h"), "both jobs run")
    align, tune = sorted(checkout.attempts(), key=lambda attempt: attempt["start"])
    assert tune["slurm"] == second and align["end"] <= tune["start"]
    assert align["gpus"] == tune["gpus"] == "0,1,2,3"
    script = checkout.copy / "scripts" / "sft_subset.sh"
    kept = script.read_text()
    script.write_text("exit 2\n")
    checkout.submit("bash", "scripts/slurm/sft_grid.sh")
    checkout.wait_for(lambda: not checkout.cluster.ask("squeue", "-h"), "the second job is cancelled")
    script.write_text(kept)
    assert len(checkout.attempts()) == 2


def test_a_training_job_on_two_nodes(checkout):
    """scripts/slurm/sft.sbatch: the launcher is a step of the job on each, with the other's name as the main node."""
    script = checkout.copy / "scripts" / "two.sh"
    show = 'import os, sys; print("NODE", os.environ["SLURMD_NODENAME"], *sys.argv[1:], flush=True)'
    wanted = '"{node_rank}" "{main}" "{n_processes}" "{gpus}"'
    script.write_text(f"source scripts/setup.sh\nlaunch \"{sys.executable}\" -c '{show}' {wanted}\n")
    checkout.submit(
        *("sbatch", "--partition=two", "--nodes=2", "--mem=1000", "-otwo.log"),
        "scripts/slurm/sft.sbatch",
        "scripts/two.sh",
    )
    checkout.wait_for(lambda: not checkout.cluster.ask("squeue", "-h"), "the job runs")
    text = (checkout.copy / "two.log").read_text()
    lines = sorted(line for line in text.splitlines() if line.startswith("NODE"))
    assert lines == [f"NODE node{n} {n - 1} node1 8 0,1,2,3" for n in (1, 2)], text
