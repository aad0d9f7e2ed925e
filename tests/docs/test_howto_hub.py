"""docs/howto_4gpu_node.md, steps 2 to 4, word for word: a hub on loopback, toy models, only sizes changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from docs.test_blocks import BLOCKS
from hub_data import publish_data
from hub_server import HubServer
from toys import REPOSITORY

from guardrail.core.files import read_json, write_jsonl

pytest.importorskip("sentencepiece")
from hub_models import publish_models

pytestmark = pytest.mark.slow
MARK = ("run by", "tests/docs/test_howto_hub.py")
SIZES = {  # what a toy on a CPU needs; everything else is what the page says
    "DEVICE": "cpu",
    "BF16": "False",
    "GRADIENT_CHECKPOINTING": "False",
    "DS_CONFIG": "ds_z0_config.json",
    "MAX_LENGTH": "512",
    "LOG_TYPE": "none",
    "N_CLUSTERS": "3",
    "MIN_GROUP_SIZE": "5",
}
PROJECT = ("guardrail", "configs", "scripts", "similarity", "pyproject.toml")


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of what the page's commands use, so that `datasets/` and `outputs/` are the reader's."""
    for name in PROJECT:
        place = REPOSITORY / name
        (shutil.copytree if place.is_dir() else shutil.copy)(place, tmp_path / name)
    (tmp_path / "datasets").mkdir()
    shutil.copy(REPOSITORY / "datasets" / "prepare.py", tmp_path / "datasets" / "prepare.py")
    write_jsonl(
        tmp_path / "my_rows.jsonl", [{"prompt": f"Hide boat {i}", "response": "Under a sail."} for i in range(4)]
    )
    return tmp_path


def test_steps_two_to_four(checkout, tmp_path_factory):
    blocks = [block for block in BLOCKS if block.page == "docs/howto_4gpu_node.md" and block.mark == MARK]
    assert len(blocks) == 4
    venv = Path(sys.executable).parent
    with HubServer() as hub:
        publish_data(hub)
        publish_models(hub, tmp_path_factory.mktemp("published"))
        environment = {**os.environ, **hub.environment(checkout / "home", "granted"), **SIZES}
        environment |= {"PATH": f"{venv}:{os.environ['PATH']}", "VIRTUAL_ENV": str(venv.parent)}
        environment |= {"PYTHONPATH": str(checkout)}
        for block in blocks:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.text],
                cwd=checkout,
                env=environment,
                capture_output=True,
                text=True,
                timeout=900,
            )
            assert done.returncode == 0, f"{block.place}: {done.stderr[-3000:]}"
    for name in ("ultrachat", "beavertails", "alpaca", "samsum", "hex_phi", "pure_bad", "list"):
        assert list((checkout / "datasets" / name / "data").glob("*.parquet")), name
    trained = checkout / "outputs" / "sft" / "Llama-2-7b-hf-ultrachat"
    assert (trained / "slice_end" / "model.safetensors").is_file()
    clusters = read_json(checkout / "outputs" / "alpaca" / "clusters" / "chat" / "clusters.json")
    group = read_json(checkout / "datasets" / "list" / "manifests" / "train.json")
    assert 5 <= group["n_rows"] < 119 and clusters
