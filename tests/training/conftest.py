"""Fixtures of the training tests: the golden tokenizer and model, and the folders that the shared runs leave."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import toy
from runs import LORA, SINGLE, SharedRuns, arguments, lacks_fp16


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
def single(tmp_path_factory, golden_model) -> SharedRuns:
    """Outputs of every run in `SINGLE` (and `again` of `plain`)."""
    shared = SharedRuns(tmp_path_factory.mktemp("single"))
    shared.kill_once_resumable("resumed-z0", golden_model, **LORA)
    shared.kill_once_resumable("resumed-z3", golden_model, ds_cfgs="ds_z3_config.json", **LORA)
    wanted = [("plain" if name == "again" else name, flags) for name, flags in SINGLE.items()]
    if lacks_fp16():
        wanted = [(name, flags) for name, flags in wanted if not flags.get("fp16")]
    shared.train([(name, arguments(shared.folder / name, golden_model, **flags)) for name, flags in wanted])
    return shared


@pytest.fixture(scope="session")
def double(tmp_path_factory, golden_model) -> SharedRuns:
    """Outputs of two ranks at ZeRO 2 and 3."""
    shared = SharedRuns(tmp_path_factory.mktemp("double"))
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    common = {"per_device_train_batch_size": 16, "train_size": 99, "epochs": 2}
    stages = {f"z{stage}": f"ds_z{stage}_config.json" for stage in (2, 3)}
    runs = [(z, arguments(shared.folder / z, golden_model, ds_cfgs=file, **common)) for z, file in stages.items()]
    shared.train(runs, ranks=2, port=port)
    return shared
