"""Fixtures of the training tests: the golden tokenizer and model, and the folders that the shared runs leave."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import toy
from runs import LORA, SINGLE, arguments, kill_once_resumable, train_many


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


@pytest.fixture(scope="session")
def single(tmp_path_factory, golden_model) -> Path:
    """The folder with the outputs of every run in `SINGLE` (and `again` of `plain`)."""
    folder = tmp_path_factory.mktemp("single")
    kill_once_resumable(folder / "resumed-z0", golden_model, **LORA)
    kill_once_resumable(folder / "resumed-z3", golden_model, ds_cfgs="ds_z3_config.json", **LORA)
    runs = [
        arguments(folder / ("plain" if name == "again" else name), golden_model, **flags)
        for name, flags in SINGLE.items()
    ]
    train_many(runs, folder)
    return folder


@pytest.fixture(scope="session")
def double(tmp_path_factory, golden_model) -> Path:
    """Outputs of two ranks at ZeRO 2 and 3."""
    folder = tmp_path_factory.mktemp("double")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    common = {"per_device_train_batch_size": 16, "train_size": 99, "epochs": 2}
    runs = [
        arguments(folder / f"z{stage}", golden_model, ds_cfgs=f"ds_z{stage}_config.json", **common) for stage in (2, 3)
    ]
    train_many(runs, folder, ranks=2, port=port)
    return folder
