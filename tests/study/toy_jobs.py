"""A study whose jobs take no time: real keys, schedule and records, made-up stages.

Every number that a stage writes is a function of the key under which it was made, so that a test can tell whether a
number that is shown belongs to the study as it is set now.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guardrail.core.files import write_json, write_jsonl
from guardrail.core.steps import Status
from guardrail.study import run_job as running
from guardrail.study.config import Study, build
from guardrail.study.dag import make_jobs
from guardrail.study.grid import Grid
from guardrail.study.jobs import Job, job_states
from guardrail.study.leases import CPU_MACHINE, Machine
from guardrail.study.processes import Process, make_processes
from guardrail.study.records import State
from guardrail.study.results import Results
from guardrail.study.schedule import OUR_TRAINER, to_run, without_failed

WITHOUT_NUMBERS = {"task", "subset", "subset_size", "seed", "design", "alignment", "status", "reason", "log"}
THINGS = ("boat", "river", "lantern", "garden", "kettle", "ladder")


class Stopped(BaseException):
    """The process is gone, as after `kill -9`: nothing that follows runs."""


def settings(folder: Path) -> dict[str, Any]:
    training = {"epochs": 1, "learning_rate": 1e-3, "per_device_train_batch_size": 4}
    source = {name: {"source": str(folder / f"{name}.jsonl")} for name in ("pool", "instruct", "list", "pure_bad")}
    utility = {"source": str(folder / "heldout.jsonl"), "split": "test"}
    return {
        "name": "toy",
        "description": "no time",
        "models": {name: str(folder / name) for name in ("base", "extraction", "moderation")},
        "prompt_style": "llama2_base",
        "instruct": source["instruct"],
        "safety_pool": source["pool"],
        "tasks": {name: {"train": source[name], "utility": dict(utility)} for name in ("list", "pure_bad")},
        "subsets": ["high", "low", "random", "none"],
        "subset_sizes": [2],
        "seeds": [1, 2],
        "alignment": dict(training),
        "fine_tuning": dict(training),
        "evaluation": {
            "safety_bench": str(folder / "prompts.jsonl"),
            "over_refusal_bench": str(folder / "benign.jsonl"),
            "judges": {
                "guard": {"model": str(folder / "guard")},
                "openai": {"model": "some-judge", "base_url": "http://127.0.0.1:1/v1"},
            },
        },
    }


def number(key: str) -> float:
    """The number that a stage gives under ``key``, in percent."""
    return int(key, 16) % 10000 / 100


class ToyStudy:
    """A world on disk, the settings of a study in it, and its runs."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.settings = settings(folder)
        self.trainer, self.ranks = OUR_TRAINER, 1
        self.executed: list[str] = []
        self.started: list[str] = []
        self.fail_at: str | None = None
        self.crash_at: str | None = None
        self.judge_error_percent = 0.0
        self.stop_at: tuple[str, str] | None = None
        for name in ("pool", "instruct", "list", "pure_bad", "heldout", "prompts", "benign"):
            rows = [{"id": f"{name}{i}", "prompt": f"{t} of {name}", "response": t} for i, t in enumerate(THINGS)]
            write_jsonl(folder / f"{name}.jsonl", rows)
        for name in ("base", "extraction", "moderation", "guard"):
            write_json(folder / name / "config.json", {"model_type": "llama", "name": name})
            write_json(folder / name / "tokenizer.json", {"name": name})
            (folder / name / "model.safetensors").write_bytes(name.encode())
        monkeypatch.setattr(running, "execute", self.execute)
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # hundreds of small files

    @property
    def grid(self) -> Grid:
        return Grid(build(Study, json.loads(json.dumps(self.settings)), ""), self.folder / "outputs")

    def jobs(self) -> dict[str, Job]:
        return make_jobs(self.grid, self.trainer, self.ranks)

    def states(self) -> dict[str, dict[str, State]]:
        return job_states(self.grid, self.jobs())

    def todo(self) -> list[str]:
        jobs = self.jobs()
        return to_run(jobs, job_states(self.grid, jobs))

    def results(self) -> Results:
        return Results(self.grid, self.jobs())

    def execute(
        self,
        root: Path,
        process: Process,
        jobs: list[Job],
        variables: dict[str, str],
        shell: dict[str, str],
        ended: Callable[[Status], None],
    ) -> int:
        """A process of stages: each in turn, as `guardrail.core.steps` runs them; a crash takes the process with it."""
        self.started.append(process.name)
        states: dict[str, str] = {}
        for job in jobs:
            if any(states.get(need, "done") != "done" for need in job.needs):
                states[job.name] = "left out"
                ended(Status(step=job.name, state="left out", reason="it needs what failed"))
                continue
            ended(Status(step=job.name, state="started"))
            if self.crash_at == job.name:
                (root / job.log).parent.mkdir(parents=True, exist_ok=True)
                (root / job.log).write_text("Killed\n")
                return 137
            code = self.stage(root, job)
            if job.is_script and code:
                return code
            states[job.name] = "failed" if code else "done"
            reason = "the stage is broken" if code else ""
            ended(Status(step=job.name, state=states[job.name], reason=reason, wall_sec=1.0))
        return 0

    def stage(self, root: Path, job: Job) -> int:
        """A stage: writes its files one after the other; may fail or be stopped on the way."""
        self.executed.append(job.name)
        if self.stop_at == (job.name, "before"):
            raise Stopped
        for product in job.products:
            for place, name in enumerate(product.files):
                if self.fail_at == job.name and place == len(product.files) - 1:
                    (root / job.log).parent.mkdir(parents=True, exist_ok=True)
                    (root / job.log).write_text("some lines\nerror: the stage is broken\n")
                    return 2
                path = root / name
                if name.endswith("slice_end"):
                    write_json(path / "config.json", {"made_by": job.name, "key": product.key.value})
                    continue
                write_json(path, self.content(job, product.key.value))
                if self.stop_at == (job.name, "between"):
                    raise Stopped
        if self.stop_at == (job.name, "after"):
            raise Stopped
        return 0

    def content(self, job: Job, key: str) -> dict[str, Any]:
        value = number(key)
        summary = {
            "harmfulness_score_percent": value,
            "harmfulness_score_interval_percent": [0.0, 100.0],
            "refusal_percent": value,
            "judge_error_percent": self.judge_error_percent,
            "n": 7,
            "outcomes": {},
            "data_hash": key,
        }
        utility = {"metric": "rouge_1_f1_percent", "value": value, "interval": [0.0, 100.0], "n": 7}
        return {"summary": summary, "utility": utility, "run": {"job_key": key, "job": job.name}}

    def run(self, names: list[str] | None = None, machine: Machine = CPU_MACHINE) -> list[str]:
        """What scripts/study.sh does: every process of jobs that are not done; what needs a failed one does not start.

        Then once more what the failed ones have held up. Returns the jobs that were executed.
        """
        self.executed.clear()
        self.started.clear()
        jobs = self.jobs()
        since, before = time.time() - 0.001, None
        todo = self.todo() if names is None else names
        while todo and todo != before:
            failed: set[str] = set()
            for process in make_processes(jobs, todo, machine).values():
                if failed & set(process.needs):
                    failed.add(process.name)
                    continue
                try:
                    running.run_process(self.grid.folder, jobs, process, {})
                except running.UserError:
                    failed.add(process.name)
            if not failed or names is not None:
                break
            before, todo = todo, without_failed(self.grid, jobs, self.todo(), since)
        return list(self.executed)

    def shown_numbers_are_of_this_study(self) -> None:
        """Every number that the study shows was made under the key that is expected now."""
        from guardrail.study.results import collect

        results = self.results()
        jobs = results.jobs

        def key(stage: str, folder: Path, *more: str) -> str:
            short = ".".join(folder.relative_to(results.grid.folder).parts)
            return jobs[".".join((stage, short, *more))].products[0].key.value

        content = collect(results)
        rows = [(content["base"], results.grid.base_folder, content["base"])]
        for cell, row in zip(results.grid.cells, content["cells"], strict=True):
            rows.append((row, results.grid.aligned_folder(cell.alignment), row.get("initial")))
            rows.append((row, results.grid.cell_folder(cell), row.get("final")))
        for row, folder, shown in rows:
            if row["status"] != "done":
                assert set(row) <= {
                    *["task", "subset", "subset_size", "seed", "design", "alignment", "status", "reason", "log"]
                }, row
                assert row["status"] in ("failed", "stale", "missing") and row["reason"]
                continue
            assert shown["harmfulness_score_percent"] == number(key("harmfulness", folder))
            assert shown["benign_refusal_percent"] == number(key("over_refusal", folder))
            for judge, found in shown.get("judges", {}).items():
                if "missing" not in found:
                    assert found["harmfulness_score_percent"] == number(key(f"judge_{judge}", folder))
