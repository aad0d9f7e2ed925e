"""The whole of a prediction on toy models: scored, cut, trained, judged; what a stop leaves is gone on with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml
from toys import REPOSITORY

from guardrail.core.files import read_json, write_jsonl


def rows(n, word):
    return [{"id": f"{word}{i}", "prompt": f"Say {word} {i}.", "response": f"{word} " * (2 + i % 5)} for i in range(n)]


@pytest.fixture
def study(tmp_path, tiny_model, tiny_classifier):
    """A study file of toys whose aligned checkpoint is there already."""
    for name, word in (("benign", "tea"), ("harmful", "sand"), ("pool", "no")):
        write_jsonl(tmp_path / f"{name}.jsonl", rows(12, word))
    write_jsonl(
        tmp_path / "bench.jsonl", [{"id": f"p{i}", "instruction": f"Hide {i}?", "category": "a"} for i in range(4)]
    )
    training = {"epochs": 1, "learning_rate": 1e-2, "per_device_train_batch_size": 2, "ds_cfgs": "ds_z0_config.json"}
    training |= {"bf16": False, "gradient_checkpointing": False, "model_max_length": 256}
    source = {"source": str(tmp_path / "benign.jsonl")}
    settings = {
        "name": "toy",
        "description": "toys",
        "models": {"base": str(tiny_model), "extraction": str(tiny_model), "moderation": str(tiny_classifier)},
        "prompt_style": "llama2_base",
        "dtype": "float32",
        "instruct": source,
        "safety_pool": {"source": str(tmp_path / "pool.jsonl")},
        "tasks": {"list": {"train": source, "utility": {**source, "split": "train"}}},
        "subsets": ["random"],
        "subset_sizes": [4],
        "seeds": [1],
        "alignment": training,
        "fine_tuning": {**training, "probes": 3},
        "evaluation": {"safety_bench": str(tmp_path / "bench.jsonl"), "max_new_tokens": 4, "threshold": 1.0},
        "prediction": {
            "benign": str(tmp_path / "benign.jsonl"),
            "harmful": str(tmp_path / "harmful.jsonl"),
            "doses_percent": [0, 50, 100],
            "rows_per_bin": 4,
            "scorers": ["length"],
        },
    }
    file = tmp_path / "toy.yaml"
    file.write_text(yaml.safe_dump(settings))
    shutil.copytree(tiny_model, tmp_path / "outputs/toy/aligned/random_sim_4/seed1/slice_end")
    return file


def run(file, *flags):
    command = [
        sys.executable,
        "-m",
        "guardrail.study.prediction",
        str(file),
        f"--outputs={file.parent / 'outputs'}",
        *flags,
    ]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1]), done.stderr


@pytest.mark.slow
def test_bins_are_made_once_and_tabulated(study):
    folder = study.parent / "outputs" / "toy" / "prediction"
    first, log = run(study)
    assert first["n_cells"] == first["n_cells_done"] == 3 + 2 and "0 of 5 cells are done" in log
    (length,) = read_json(first["prediction"])["scorers"]
    assert length["plain"]["n_prompts"] == 4 and length["plain"]["steps"][-1] == 2
    assert length["length_correlation"] == 1 and length["cost"]["peak_mib"] > 0 and 0 < length["planted_auc"] < 1
    chars = [part["response_chars"] for part in length["plain"]["bins"]]
    assert chars == sorted(chars)
    assert [part["bin"] for part in length["matched"]["bins"]] == [1, 3]
    assert length["plain"]["harmful"]["gap"] == 0 and length["plain"]["life"]["gap"] == 0, "nothing is above 1"
    assert not list(folder.rglob("*.safetensors")), "weights go when they have been looked at"
    assert (folder / "figures" / "scorers.png").is_file()
    assert "gap at equal length" in (folder / "tables" / "scorers.md").read_text()
    cells = sorted(folder.rglob("cell.json"))
    cells[0].unlink()
    second, log = run(study)
    assert "4 of 5 cells are done" in log and second == first
    assert read_json(first["prediction"])["scorers"][0]["plain"] == length["plain"]
