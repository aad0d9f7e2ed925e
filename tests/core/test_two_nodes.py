"""Training, extraction and safety answers on two nodes (ssh to two loopback addresses, one CPU rank on each) give what
one node gives. Skips where there is no ssh server."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import stages
import toy_world
import two_nodes
from toys import REPOSITORY
from two_nodes import ADDRESSES, TwoNodes

pytestmark = [
    pytest.mark.slow,  # launchers and ranks: a dozen processes that import torch
    pytest.mark.skipif(two_nodes.missing() is not None, reason=str(two_nodes.missing())),
]
TRAINING = {
    "SFT_MODULE": "guardrail.training.sft",
    "SPLIT": "train",
    "BATCH_SIZE": "2",
    "LEARNING_RATE": "1e-3",
    "MAX_LENGTH": "256",
    "DS_CONFIG": "ds_z2_config.json",
    "BF16": "False",
    "GRADIENT_CHECKPOINTING": "False",
    "LOG_TYPE": "none",
}
Run = Callable[..., dict]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    toy_world.make_world(folder)
    return folder


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    with TwoNodes() as nodes:
        yield nodes


@pytest.fixture
def run(nodes, tmp_path) -> Run:
    """Run a script with variables, on both nodes where ``two``: the JSON object that it ends with."""

    def run(script: str, *arguments: str, two: bool = False, **variables: object) -> dict:
        before = [nodes.connections(address) for address in ADDRESSES]
        shell = {**os.environ, "DEVICE": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        shell |= {name: str(value) for name, value in variables.items()}
        if two:
            (tmp_path / "hosts").write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))
            shell |= {**nodes.environment, "HOSTFILE": str(tmp_path / "hosts")}
        done = subprocess.run(
            ["bash", f"scripts/{script}", *arguments], cwd=REPOSITORY, env=shell, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        after = [nodes.connections(address) for address in ADDRESSES]
        assert [b - a for a, b in zip(before, after, strict=True)] == [int(two)] * 2
        return json.loads(done.stdout.strip().splitlines()[-1])

    return run


def test_training_on_two_nodes_equals_two_ranks_on_one(world, run, tmp_path):
    """Losses and weights to the last bit: a sum of two ranks has no order."""
    found = []
    for name, where in {"one": {"NUM_PROCESSES": 2}, "two": {"two": True}}.items():
        data = {"BASE_MODEL": world / "base", "DATASET": world / "chat.jsonl", "OUTPUT_DIR": tmp_path / name}
        run("sft.sh", **TRAINING, **data, **where)
        lines = (tmp_path / name / "losses.jsonl").read_text().splitlines()
        losses = [json.loads(line)["loss"] for line in lines]
        found.append((losses, (tmp_path / name / "slice_end" / "model.safetensors").read_bytes()))
        assert len(losses) == 2  # eight rows by two ranks of two
    assert found[0] == found[1]


def test_extraction_on_two_nodes_equals_one_process(world, run, tmp_path):
    import torch

    plain = ["--model_id=chat", f"--model_name_or_path={world / 'chat'}", f"--dataset_data={world / 'chat.jsonl'}"]
    stages.main_of("similarity/get_representation.py")([*plain, f"--dataset_folder={tmp_path / 'one'}"])
    variables = {"MODEL": world / "chat", "MODEL_ID": "chat", "DATASET_DATA": world / "chat.jsonl"}
    run("get_representation.sh", two=True, DATASET_FOLDER=tmp_path / "two", **variables)
    files = [tmp_path / name / "reps" / "chat" / "reps-full.pt" for name in ("one", "two")]
    one, two = (torch.load(file, weights_only=True) for file in files)
    assert len(one) == len(toy_world.THINGS)
    torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)  # other rows share a batch


def test_safety_answers_on_two_nodes_equal_one_process(world, run, tmp_path):
    plain = [
        f"--model_name_or_path={world / 'chat'}",
        "--torch_dtype=float32",
        "--max_new_tokens=8",
        "--evaluator=none",
    ]
    plain += [f"--safety_bench={world / 'prompts.jsonl'}", f"--save_path={tmp_path / 'one'}", "--do_sample=True"]
    plain += ["--model_family=llama2_base", "--prompt_style=llama2_base", "--eval_template=plain", "--seed=0"]
    stages.main_of("eval_safety.py")(plain)
    variables = {"MODEL": world / "chat", "BENCH": world / "prompts.jsonl", "SAVE_PATH": tmp_path / "two"}
    run("eval_safety.sh", two=True, MAX_NEW_TOKENS=8, DTYPE="float32", **variables)
    results = [json.loads((tmp_path / name / "results.json").read_text())["results"] for name in ("one", "two")]
    one, two = ({row["id"]: row["completion"] for row in rows} for rows in results)
    assert len(one) == 4 and one == two
