"""A trainer run in its own process, as the training tests start it, and the list of runs that they share."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy
from toys import REPOSITORY


def arguments(output: Path, model: Path, **flags) -> list[str]:
    """Command-line arguments of a small float32 run on the golden rows."""
    flags = {
        "model_name_or_path": model,
        "train_datasets": toy.GOLDEN / "rows.jsonl",
        "train_template": "UltraChat",
        "output_dir": output,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "model_max_length": toy.MAX_LENGTH,
        "bf16": False,
        "gradient_checkpointing": False,
        "ds_cfgs": "ds_z0_config.json",
        "log_type": "none",
        **flags,
    }
    return [part for key, value in flags.items() for part in (f"--{key}", str(value))]


def start(command: list[str], **environment: str) -> subprocess.Popen:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        **environment,
    }
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


DRIVER = """
import json, sys, traceback
from pathlib import Path
from guardrail.training.sft import main
for number, argv in enumerate(json.load(open(sys.argv[1]))):
    try:
        main(argv)
    except BaseException:
        Path(sys.argv[2]).joinpath(f"failure-{number}.txt").write_text(traceback.format_exc())
"""


class SharedRuns:
    """Outputs of runs that several tests look at: `shared / name` is a folder, and an error if that run failed.

    One failing run fails the tests that use it and no other.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: dict[str, str] = {}

    def __truediv__(self, name: str) -> Path:
        if name in self.problems:
            raise AssertionError(f"the shared run {name} failed:\n{self.problems[name]}")
        return self.folder / name

    def kill_once_resumable(self, name: str, model: Path, **flags) -> None:
        """Start a run and kill it with -9 as soon as a resumable state is whole."""
        output = self.folder / name
        process = start([sys.executable, "-m", "guardrail.training.sft", *arguments(output, model, **flags)])
        state = output / "checkpoint" / "state.json"
        deadline = time.time() + 300
        while not state.is_file() and process.poll() is None and time.time() < deadline:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        _, stderr = process.communicate()
        if not state.is_file() or (output / "run.json").exists():
            self.problems[name] = f"too late or too early to kill\n{stderr}"

    def train(self, runs: list[tuple[str, list[str]]], ranks: int = 1, port: int | None = None) -> None:
        """Trainings (name, arguments) one after another in one process per rank: libraries are imported once."""
        plan = self.folder / f"plan-{ranks}.json"
        plan.write_text(json.dumps([argv for _, argv in runs]))
        command = [sys.executable, "-c", DRIVER, str(plan), str(self.folder)]
        shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        processes = [
            start(command, **({} if ranks == 1 else {"RANK": str(i), "LOCAL_RANK": str(i), **shared}))
            for i in range(ranks)
        ]
        errors = [process.communicate(timeout=500)[1] for process in processes]
        for number, (name, _) in enumerate(runs):
            failure = self.folder / f"failure-{number}.txt"
            if failure.is_file():
                self.problems.setdefault(name, failure.read_text())
            elif not (self.folder / name / "run.json").is_file():
                self.problems.setdefault(name, "\n".join(errors))


def lacks_fp16() -> str:
    """Why DeepSpeed does not train in float16 here; empty where it does."""
    import torch

    if torch.ops.mkldnn._is_mkldnn_fp16_supported():
        return ""
    return "needs a CPU with half-precision matrix products (avx512_fp16 or amx_fp16)"


def needs_align_anything() -> None:
    if importlib.util.find_spec("align_anything") is None:
        pytest.skip("align-anything is not installed here (bash scripts/install.sh --align-anything)")


def losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "losses.jsonl").read_text().splitlines()]


def record(output: Path) -> dict:
    return json.loads((output / "run.json").read_text())["run"]


LORA = {
    "epochs": 2,
    "max_steps": 20,
    "use_lora": True,
    "save_checkpoint": True,
    "checkpoint_interval": 4,
    "logging_steps": 1,
    "learning_rate": 5e-3,
}
SPREAD = {"use_lora": True, "ds_cfgs": "ds_z3_config.json", "gradient_checkpointing": True, "max_steps": 6}
# One process trains all of these, in this order; the tests look at what it left.
SINGLE = {
    "plain": {"max_steps": 6},
    "again": {"max_steps": 6, "logging_steps": 1},
    "golden": {"label_mask": "align_anything", "epochs": 4, "reshuffle": False},
    "exact": {"epochs": 4, "reshuffle": False},
    "large": {"per_device_train_batch_size": 32, "train_size": 99, "epochs": 2},
    "accumulated-z0": {"gradient_accumulation_steps": 2},
    "accumulated-z2": {"gradient_accumulation_steps": 2, "ds_cfgs": "ds_z2_config.json"},
    "sixteen": {"per_device_train_batch_size": 16},
    "offload": {"max_steps": 6, "ds_cfgs": "ds_z3_offload_config.json", "gradient_checkpointing": True},
    "packed": {"batching": "packed", "per_device_train_batch_size": 2, "train_size": 24},
    "packed-as-padded": {"per_device_train_batch_size": 24, "train_size": 24},
    "padding-free": {"batching": "padding_free", "epochs": 4, "reshuffle": False},
    "spread": SPREAD,
    "spread-padding-free": {**SPREAD, "batching": "padding_free"},
    "pieces-padding-free": {  # the last block's feed-forward part at labels alone, weights in pieces
        "batching": "padding_free",
        "ds_cfgs": "ds_z3_config.json",
        "gradient_checkpointing": False,
        "max_steps": 6,
    },
    "grouped": {"batching": "length_grouped"},
    "turns": {"train_on": "all_assistant_turns", "max_steps": 2},
    "bf16": {"max_steps": 6, "bf16": True, "ds_cfgs": "ds_z2_config.json"},
    "fp16": {"max_steps": 6, "fp16": True, "ds_cfgs": "ds_z2_config.json"},
    "lora-z0": LORA,
    "lora-z3": {**LORA, "ds_cfgs": "ds_z3_config.json"},
    "resumed-z0": {**LORA, "resume": True},
    "resumed-z3": {**LORA, "resume": True, "ds_cfgs": "ds_z3_config.json"},
}
