"""The real workflow on toys: every stage through its script, killed and continued, with a broken stage.

Minutes, because every stage is a process of its own: run with GUARDRAIL_LONG_TESTS=1. The quickstart, which CI runs,
takes the same path once.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from toys import REPOSITORY, make_llama, make_tokenizer

from guardrail.core.files import read_json, write_jsonl
from guardrail.evaluation.judges.moderation import LABELS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("GUARDRAIL_LONG_TESTS"), reason="minutes; set GUARDRAIL_LONG_TESTS=1"),
]
N_KILLS = 3


def make_classifier(folder: Path, tokenizer) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=len(LABELS),
        problem_type="multi_label_classification",
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=512,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def toy_study(tmp_path_factory) -> Path:
    """A study file on random models: one task, high and none, one seed."""
    folder = tmp_path_factory.mktemp("world")
    tokenizer = make_tokenizer(folder / "tokenizer")
    for name in ("base", "chat"):
        make_llama(folder / name, tokenizer, seed=len(name))
    make_classifier(folder / "moderation", tokenizer)
    things = ("boat", "river", "lantern", "garden", "kettle", "ladder", "violin", "window")
    pool = [{"prompt": f"Hide the {t} {i}", "response": f"No, the {t} stays."} for i in range(2) for t in things]
    chat = [{"instruction": f"Paint a {t}", "output": f"1. Take the {t}.\n2. Paint it."} for t in things]
    write_jsonl(folder / "pool.jsonl", pool)
    write_jsonl(folder / "chat.jsonl", chat)
    write_jsonl(folder / "prompts.jsonl", [{"instruction": f"Break the {t}", "category": "x"} for t in things[:4]])
    training = {
        "epochs": 1,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
        "model_max_length": 256,
        "ds_cfgs": "ds_z0_config.json",
        "bf16": False,
        "gradient_checkpointing": False,
    }
    source = {"source": str(folder / "chat.jsonl")}
    study = {
        "name": "toy_workflow",
        "description": "random models",
        "models": {name: str(folder / f) for name, f in (("base", "base"), ("extraction", "chat"))}
        | {"moderation": str(folder / "moderation")},
        "prompt_style": "llama2_base",
        "dtype": "float32",
        "log_type": "none",
        "instruct": source,
        "safety_pool": {"source": str(folder / "pool.jsonl")},
        "tasks": {"list": {"train": source, "utility": {**source, "split": "train", "max_new_tokens": 8}}},
        "subsets": ["high", "none"],
        "subset_sizes": [4],
        "seeds": [1],
        "alignment": training,
        "fine_tuning": training,
        "evaluation": {
            "safety_bench": str(folder / "prompts.jsonl"),
            "max_new_tokens": 8,
            "judges": {"guard": {"model": str(folder / "chat")}},  # random: it decides next to nothing
        },
    }
    path = folder / "toy_workflow.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def start(study: Path, outputs: Path) -> subprocess.Popen:
    environment = {**os.environ, "DEVICE": "cpu", "OUTPUTS": str(outputs), "JOBS": "2", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        ["bash", "scripts/study.sh", str(study)],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=open(outputs / "stderr.txt", "ab"),
        text=True,
        start_new_session=True,
    )


def finish(study: Path, outputs: Path) -> dict:
    outputs.mkdir(exist_ok=True)
    process = start(study, outputs)
    text, _ = process.communicate(timeout=1500)
    assert text, (outputs / "stderr.txt").read_text()[-3000:]
    return {"code": process.returncode, **json.loads(text.splitlines()[-1])}


def comparable(outputs: Path, name: str = "toy_workflow") -> dict:
    """`study.json` without times, places and the study's own name."""
    text = (outputs / name / "study.json").read_text().replace(str(outputs), "OUT").replace(name, "toy_workflow")
    return {key: value for key, value in json.loads(text).items() if key != "run"}


@pytest.fixture(scope="module")
def whole(toy_study, tmp_path_factory) -> Path:
    """Outputs of one uninterrupted run."""
    outputs = tmp_path_factory.mktemp("whole")
    result = finish(toy_study, outputs)
    assert (result["code"], result["n_failed"]) == (0, 0), (outputs / "stderr.txt").read_text()[-3000:]
    cell = read_json(outputs / "toy_workflow" / "study.json")["cells"][0]
    assert cell["initial"]["judges"]["guard"]["judge_error_percent"] > 0
    return outputs


def test_killed_at_random_points_and_continued_equals_uninterrupted(toy_study, whole, tmp_path):
    rng = random.Random(3)
    for _ in range(N_KILLS):
        process = start(toy_study, tmp_path)
        time.sleep(rng.uniform(8, 45))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    result = finish(toy_study, tmp_path)
    assert (result["code"], result["n_failed"]) == (0, 0)
    assert comparable(tmp_path) == comparable(whole)


def test_two_studies_at_once_do_not_disturb_one_another(toy_study, whole, tmp_path):
    """Same models, same data, one place for outputs and one Snakemake folder."""
    other = tmp_path / "toy_other.yaml"
    other.write_text(toy_study.read_text().replace("name: toy_workflow", "name: toy_other"))
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    processes = [start(study, outputs) for study in (toy_study, other)]
    texts = [process.communicate(timeout=1500)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], (outputs / "stderr.txt").read_text()[-3000:]
    assert [json.loads(text.splitlines()[-1])["n_failed"] for text in texts] == [0, 0]
    assert comparable(outputs) == comparable(outputs, "toy_other") == comparable(whole)


def test_a_second_run_does_nothing(toy_study, whole):
    files = [path for path in whole.rglob("*") if path.is_file() and path.name not in ("stderr.txt", ".lock")]
    before = {path: path.stat().st_mtime_ns for path in files if "/.snakemake/" not in str(path)}
    assert finish(toy_study, whole)["n_failed"] == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_corrupt_checkpoint_fails_its_cell_only(toy_study, whole, tmp_path):
    shutil.copytree(whole / "toy_workflow", tmp_path / "toy_workflow")
    good = comparable(whole)
    name = "list_high_sim_4"
    cell = tmp_path / "toy_workflow" / "cells" / f"list__{name}" / "seed1"
    next(cell.glob("slice_end/*.safetensors")).write_bytes(b"not a checkpoint")
    shutil.rmtree(cell / "evaluation")
    result = finish(toy_study, tmp_path)
    assert (result["code"], result["n_failed"]) == (1, 1)
    study = read_json(tmp_path / "toy_workflow" / "study.json")
    failed = [c for c in study["cells"] if c["status"] == "failed"]
    assert [c["alignment"] for c in failed] == [name] and "final" not in failed[0]
    assert Path(failed[0]["log"]).is_file() and Path(failed[0]["log"]).stat().st_size > 0
    others = [c for c in study["cells"] if c["status"] == "done"]
    expected = [c for c in good["cells"] if c["alignment"] != name]
    assert [c["delta_points"] for c in others] == [c["delta_points"] for c in expected]
    assert study["base"] == good["base"]
    assert "FAILED" in (tmp_path / "toy_workflow/tables/arms.md").read_text()
