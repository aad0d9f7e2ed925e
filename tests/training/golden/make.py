"""Make the golden data with the real align-anything; run it in that environment:

    python tests/training/golden/make.py

`rows.jsonl` and `tokenizer.json` are inputs and stay as they are. Writes `ids.json` (ids and number of masked labels
per style, from align-anything's own `SupervisedDataset`) and `losses.json` (its own trainer in float32, at ZeRO 3).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from toys import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "tests" / "training"))
import toy

STYLES = ("llama2_base", "llama2", "gemma", "chat_template")
ROWS_FOR_IDS = 8
EPOCHS, BATCH, LEARNING_RATE = 4, 8, 1e-3


def versions() -> dict[str, str]:
    import importlib.metadata

    names = ("torch", "transformers", "deepspeed", "datasets", "tokenizers", "align-anything")
    return {name: importlib.metadata.version(name) for name in names}


def ids_of(style: str, adds_bos: bool, folder: Path) -> list[dict]:
    """What align-anything's data set gives for the first rows, through the installed template."""
    os.environ["PROMPT_STYLE"] = style
    from align_anything.configs.template import ChatTemplate
    from align_anything.datasets.text_to_text.supervised import SupervisedDataset

    tokenizer = toy.golden_tokenizer(folder / f"{style}-{adds_bos}", adds_bos, toy.CHATML)
    tokenizer.model_max_length = toy.MAX_LENGTH
    template = ChatTemplate(tokenizer, "UltraChat")
    data = SupervisedDataset(str(toy.GOLDEN / "rows.jsonl"), template, tokenizer)
    out = []
    for i in range(ROWS_FOR_IDS):
        sample = data[i]
        ids, labels = sample["input_ids"].tolist(), sample["labels"].tolist()
        n_masked = sum(label == -100 for label in labels)
        assert labels == [-100] * n_masked + ids[n_masked:]
        out.append({"id": data.raw_data[i]["id"], "input_ids": ids, "n_masked": n_masked})
    return out


def train(folder: Path) -> tuple[dict, dict]:
    """Flags and record of its trainer. ZeRO 3, because only there does its `--bf16 False` mean float32: it loads
    weights in bfloat16, and without ZeRO 3's own conversion they stay so (seen with ZeRO 0)."""
    model = toy.golden_model(folder / "model", toy.golden_tokenizer(folder / "tokenizer"))
    flags = {
        "model_name_or_path": model,
        "train_datasets": toy.GOLDEN / "rows.jsonl",
        "train_template": "UltraChat",
        "output_dir": folder / "out",
        "epochs": EPOCHS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": LEARNING_RATE,
        "model_max_length": toy.MAX_LENGTH,
        "bf16": False,
        "save_checkpoint": False,
        "gradient_checkpointing": False,
    }
    arguments = [part for key, value in flags.items() for part in (f"--{key}", str(value))]
    record = folder / "record.json"
    script = REPOSITORY / "benchmarks" / "align_anything_reference.py"
    environment = {
        **os.environ,
        "ZERO_STAGE_FILE": "ds_z3_config.json",
        "PROMPT_STYLE": "llama2_base",
        "WANDB_MODE": "offline",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
    }
    launcher = Path(sys.executable).parent / "deepspeed"
    command = [launcher, "--num_gpus", "1", script, "--record_out", record, "--record_rows", "0", *arguments]
    subprocess.run([str(part) for part in command], check=True, env=environment)
    flags = {key: value for key, value in flags.items() if not isinstance(value, Path)}
    return flags, json.loads(record.read_text())


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ids = {
            f"{style}{'+bos' if adds_bos else ''}": ids_of(style, adds_bos, folder)
            for style in STYLES
            for adds_bos in (False, True)
            if not adds_bos or style in ("llama2_base", "chat_template")
        }
        flags, record = train(folder)
    header = {"source": "align-anything 3f9decc with configs/template.py installed", "versions": versions()}
    text = json.dumps({**header, "max_length": toy.MAX_LENGTH, "ids": ids})
    (toy.GOLDEN / "ids.json").write_text(text + "\n")
    kept = {key: record[key] for key in ("losses", "lr", "parameter_dtype")}
    text = json.dumps({**header, "flags": flags, "zero_stage": 3, **kept}, indent=1)
    (toy.GOLDEN / "losses.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
