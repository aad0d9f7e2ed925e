"""A whole study on a pretended machine of four GPUs and 64 cores: the real script, schedule and Snakemake, with stages
that only write down which GPU they saw and when."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from toys import REPOSITORY

from .toy_jobs import ToyStudy

pytestmark = pytest.mark.slow  # a process per stage: 20 to 50 seconds
STUB = """
import json, os, sys, time
from pathlib import Path

HERE, WANTED = Path(__file__).parent, 4
root = Path("{root}")
content = json.loads((root / "jobs.json").read_text())
all_jobs = {{j["name"]: j for j in content["jobs"]}}
if len(sys.argv) > 1:  # scripts/stages.sh
    steps = json.loads(Path(sys.argv[1]).read_text())
    names = [step["name"] for step in steps["steps"]]
else:
    key, steps = os.environ["GUARDRAIL_JOB_KEY"], None
    names = [name for name, j in all_jobs.items() if j["products"][0]["key"]["value"] == key]
process = next(p for p in content["processes"] if set(names) <= set(p["jobs"]))
mine = HERE / f"active.{{os.getpid()}}"
one = process["stage"] == "evaluate" and (HERE / "again").exists()  # five that all can begin at once
start = time.time()
if one:
    mine.touch()
    while time.time() < start + 30 and not (HERE / "full").exists():  # until as many run as there are GPUs
        if len(list(HERE.glob("active.*"))) >= WANTED:
            (HERE / "full").touch()
        time.sleep(0.05)
time.sleep(0.1)
for product in [product for name in names for product in all_jobs[name]["products"]]:
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
mine.unlink(missing_ok=True)
event = {{"job": process["name"], "needs": process["gpus"], "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
         "script_gpus": os.environ.get("GPUS"), "start": start, "end": time.time()}}
with open(HERE / "events.jsonl", "a") as handle:
    handle.write(json.dumps(event) + "\\n")
"""


def pretend(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.fixture(scope="module")
def events(tmp_path_factory) -> list[dict]:
    """What the stages of a study saw."""
    folder = tmp_path_factory.mktemp("gpus")
    copy, outputs, binaries = folder / "checkout", folder / "outputs", folder / "bin"
    for name in ("guardrail", "configs", "workflow", "scripts"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", copy)
    (copy / "datasets").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        settings = ToyStudy(folder / "world", patch).settings
    settings["subsets"], settings["seeds"] = ["high"], [1, 2]
    del settings["tasks"]["pure_bad"], settings["evaluation"]["judges"]
    stub = folder / "stub.py"
    stub.write_text(STUB.format(root=outputs / "toy"))
    for script in (copy / "scripts").glob("*.sh"):
        if script.stem not in ("study", "setup", "help"):
            script.write_text(f'exec {sys.executable} {stub} "$@"\n')
    pretend(binaries, "nproc", "echo 64")
    pretend(binaries, "nvidia-smi", 'for i in 0 1 2 3; do echo "GPU $i: Made up (UUID: GPU-$i)"; done')
    hidden = ("CUDA_VISIBLE_DEVICES", "DEVICE", "GPUS", "JOBS")
    shell = {name: value for name, value in os.environ.items() if name not in hidden}
    shell |= {"PATH": f"{binaries}:{shell['PATH']}", "PYTHONPATH": str(copy), "OUTPUTS": str(outputs)}
    shell |= {"GUARDRAIL_LOCKS": str(folder / "locks"), "HF_HUB_OFFLINE": "1"}
    found: list[dict] = []
    for again in (False, True):  # the second time with shorter answers: nothing is trained, everything is evaluated
        if again:
            (folder / "again").touch()
            settings["evaluation"]["max_new_tokens"] = 16
        (folder / "toy.yaml").write_text(yaml.safe_dump(settings))
        command = ["bash", str(copy / "scripts/study.sh"), str(folder / "toy.yaml")]
        done = subprocess.run(command, env=shell, capture_output=True, text=True)
        content = json.loads((outputs / "toy" / "jobs.json").read_text())
        assert content["machine"]["gpus"] == ["0", "1", "2", "3"] and content["ranks"] == 4
        before, found = found, [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        started = {event["job"] for event in found[len(before) :]}
        assert started == {one["name"] for one in content["processes"]}, done.stderr[-3000:]
    return found


def overlapping(events: list[dict], moment: float) -> list[dict]:
    return [event for event in events if event["start"] <= moment < event["end"]]


def test_no_gpu_is_ever_seen_by_two_jobs(events):
    for event in events:
        seen = [gpu for other in overlapping(events, event["start"]) for gpu in other["gpus"].split(",") if gpu]
        assert len(seen) == len(set(seen)), (event, overlapping(events, event["start"]))


def test_training_sees_all_others_one_and_mixing_none(events):
    expected = {"all": {"0,1,2,3"}, "one": {"0", "1", "2", "3"}, "none": {""}}
    for event in events:
        assert event["gpus"] in expected[event["needs"]]
        assert event["script_gpus"] == event["gpus"]
    assert {event["needs"] for event in events} == set(expected)


def test_all_four_are_busy_and_sixty_four_cores_start_no_more_jobs(events):
    at_once = [len(overlapping(events, event["start"])) for event in events]
    on_gpus = [sum(1 for other in overlapping(events, e["start"]) if other["gpus"]) for e in events]
    assert max(on_gpus) == 4
    assert max(at_once) <= 6
