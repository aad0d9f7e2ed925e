"""A whole study on toys: random tiny models, two dozen rows, every stage through its real script.

    path = make_world(folder)                       # the study file toy_workflow.yaml beside models and rows
    study = start(path, outputs)                    # bash scripts/study.sh in a process group of its own
    finish(path, outputs)                           # ... and its last line

Used by tests/study/test_workflow.py and benchmarks/faults.py. A run takes a minute or two of processor time: every
stage is a process of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from toys import REPOSITORY, make_llama, make_tokenizer

from guardrail.core.files import read_json, write_jsonl
from guardrail.evaluation.judges.moderation import LABELS

NAME = "toy_workflow"
THINGS = ("boat", "river", "lantern", "garden", "kettle", "ladder", "violin", "window")
TRAINING = {
    "epochs": 1,
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 4,
    "model_max_length": 256,
    "ds_cfgs": "ds_z0_config.json",
    "bf16": False,
    "gradient_checkpointing": False,
}


def make_classifier(folder: Path, tokenizer: Any) -> Path:
    """A random moderation model with Beaver-Dam's labels."""
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


def make_world(folder: Path) -> dict[str, Any]:
    """Models and rows in ``folder``; returns the settings of a study of them: one task, high and none, one seed."""
    tokenizer = make_tokenizer(folder / "tokenizer")
    for name in ("base", "chat"):
        make_llama(folder / name, tokenizer, seed=len(name))
    make_classifier(folder / "moderation", tokenizer)
    pool = [{"prompt": f"Hide the {t} {i}", "response": f"No, the {t} stays."} for i in range(2) for t in THINGS]
    chat = [{"instruction": f"Paint a {t}", "output": f"1. Take the {t}.\n2. Paint it."} for t in THINGS]
    write_jsonl(folder / "pool.jsonl", pool)
    write_jsonl(folder / "chat.jsonl", chat)
    write_jsonl(folder / "prompts.jsonl", [{"instruction": f"Break the {t}", "category": "x"} for t in THINGS[:4]])
    source = {"source": str(folder / "chat.jsonl")}
    models = {"base": "base", "extraction": "chat", "moderation": "moderation"}
    return {
        "name": NAME,
        "description": "random models",
        "models": {name: str(folder / place) for name, place in models.items()},
        "prompt_style": "llama2_base",
        "dtype": "float32",
        "log_type": "none",
        "instruct": source,
        "safety_pool": {"source": str(folder / "pool.jsonl")},
        "tasks": {"list": {"train": source, "utility": {**source, "split": "train", "max_new_tokens": 8}}},
        "subsets": ["high", "none"],
        "subset_sizes": [4],
        "seeds": [1],
        "alignment": dict(TRAINING),
        "fine_tuning": dict(TRAINING),
        "evaluation": {
            "safety_bench": str(folder / "prompts.jsonl"),
            "max_new_tokens": 8,
            "threshold": 0.52955,  # amid what the random moderation model says, so that checkpoints differ
            "judges": {"guard": {"model": str(folder / "chat")}},  # random: it decides next to nothing
        },
    }


def write_study(path: Path, settings: dict[str, Any], **changes: Any) -> Path:
    """``settings`` with top-level ``changes`` as a study file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**settings, **changes}), encoding="utf-8")
    return path


def start(study: Path, outputs: Path, jobs: int = 2, shell: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """`scripts/study.sh` in a process group of its own; stdout is a pipe, stderr is added to outputs/../stderr.txt.

    ``shell`` is what the user has exported beside the environment of this process.
    """
    outputs.mkdir(parents=True, exist_ok=True)
    own = {"DEVICE": "cpu", "OUTPUTS": str(outputs), "JOBS": str(jobs), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with open(stderr_of(outputs), "ab") as handle:
        return subprocess.Popen(
            ["bash", "scripts/study.sh", str(study)],
            cwd=REPOSITORY,
            env={**os.environ, **own, **(shell or {})},
            stdout=subprocess.PIPE,
            stderr=handle,
            text=True,
            start_new_session=True,
        )


def stderr_of(outputs: Path) -> Path:
    """Not in ``outputs``, which may be a full disk."""
    return outputs.with_name(f"{outputs.name}.stderr.txt")


def finish(study: Path, outputs: Path, jobs: int = 2, shell: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run or continue to the end: the exit code and what the last line of stdout says."""
    process = start(study, outputs, jobs, shell)
    try:
        text, _ = process.communicate(timeout=1500)
    finally:
        kill(process)
    lines = text.splitlines()
    try:
        said = json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError:
        said = {}
    return {"code": process.returncode, "stderr": stderr_of(outputs).read_text(errors="replace")[-3000:], **said}


def kill(process: subprocess.Popen[str]) -> None:
    """`kill -9` of the whole process group, if it still runs."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def comparable(outputs: Path, name: str = NAME) -> dict[str, Any]:
    """`study.json` without its record of the run, without places and without the study's own name."""
    text = json.dumps(read_json(outputs / name / "study.json"))
    value = json.loads(text.replace(str(outputs), "OUT").replace(name, NAME))
    return {key: part for key, part in value.items() if key != "run"}
