"""Fixtures of the training tests: the golden tokenizer and model, and a trainer run in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import toy  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session", autouse=True)
def token_cache(tmp_path_factory):
    """Tokenised rows go to a folder of this test run."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def golden_tokenizer(tmp_path_factory):
    return toy.golden_tokenizer(tmp_path_factory.mktemp("golden-tokenizer"))


@pytest.fixture(scope="session")
def golden_model(tmp_path_factory, golden_tokenizer) -> Path:
    return toy.golden_model(tmp_path_factory.mktemp("golden-model"), golden_tokenizer)


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


def train(output: Path, model: Path, ranks: int = 1, port: int | None = None, **flags) -> dict:
    """Run the trainer (through torch.distributed variables when there are several ranks); the result of rank 0."""
    command = [sys.executable, "-m", "guardrail.training.sft", *arguments(output, model, **flags)]
    if ranks == 1:
        processes = [start(command)]
    else:
        shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        processes = [start(command, RANK=str(i), LOCAL_RANK=str(i), **shared) for i in range(ranks)]
    outputs = [process.communicate(timeout=240) for process in processes]
    for process, (_, stderr) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, stderr
    return json.loads(outputs[0][0].splitlines()[-1])


def losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "losses.jsonl").read_text().splitlines()]
