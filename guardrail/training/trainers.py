"""The SFT trainers that a run may have: ours, align-anything's, another module; what each can do, and which is taken.

`ALIGN_ANYTHING` says what align-anything's trainer does whatever it is told. A flag that asks for something else is
refused; a default of ours that it does not share is replaced by what it does, in the record and in a study's key.
Another module may be named too: it is taken to honour every flag of `guardrail.training.config`.
Imports neither torch nor any trainer.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guardrail.core.errors import UserError
from guardrail.core.files import hash_file, hash_json
from guardrail.core.options import options_of
from guardrail.models.checkpoints import SLICE
from guardrail.training.config import SFTConfig, deepspeed_config

OUR_TRAINER = "guardrail.training.sft"
ALIGN_ANYTHING_TRAINER = "align_anything.trainers.text_to_text.sft"
SOURCE_SUFFIXES = (".py", ".json", ".yaml", ".yml")


@dataclass(frozen=True)
class Trainer:
    """What is known of a foreign trainer.

    ``reads``: options that it honours; None: all. ``actual``: option -> what it does whatever it is told. ``ignored``:
    options that it does not read and that decide nothing. ``environment``: option -> the variable that it is read from.
    An option that is none of these is refused. ``equal``: values that mean what it does anyway. ``hidden``: files of
    its package that do not count as its code.
    """

    name: str
    reads: tuple[str, ...] | None = None
    actual: dict[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    equal: dict[str, tuple[Any, ...]] = field(default_factory=dict)


ALIGN_ANYTHING = Trainer(
    "align-anything",
    reads=(
        *("model_name_or_path", "model_max_length", "special_tokens"),
        *(f"train_{part}" for part in ("datasets", "template", "split", "name", "size", "data_files", "optional_args")),
        *(f"eval_{part}" for part in ("datasets", "template", "split", "size", "data_files", "optional_args")),
        *("epochs", "seed", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
        *("gradient_checkpointing", "learning_rate", "lr_scheduler_type", "lr_warmup_ratio", "weight_decay"),
        *("bf16", "fp16", "eval_strategy", "eval_interval", "output_dir", "save_total_limit"),
        *("use_lora", "task_type", "inference_mode", "r", "lora_alpha", "lora_dropout", "target_modules"),
        *("use_bnb", "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant"),
        *("bnb_4bit_compute_dtype", "log_type", "log_project", "log_run_name"),
    ),
    actual={
        "label_mask": "align_anything",
        "train_on": "last_assistant_turn",
        "batching": "padded",
        "data_seed": 0,
        "reshuffle": False,
        "loss_average": "micro_batch",
        "trust_remote_code": True,
        "adam_betas": (0.9, 0.95),  # another pair reaches its optimizer as texts
        "adam_epsilon": 1e-8,
        "max_grad_norm": 1.0,  # from its DeepSpeed files
        "attn_implementation": None,
        "defence": "none",
        "defence_options": (),
        "max_steps": None,
        "eval_subset": None,
        "save_full_model": True,
        "save_checkpoint": False,
        "load_checkpoint": False,
        "resume": False,
        "checkpoint_interval": None,
    },
    ignored=("cache_dir", "logging_steps", "max_dropped_fraction"),
    hidden=("configs/template.py",),  # ours lies there: its styles are in the key by what they render
    environment={"prompt_style": "PROMPT_STYLE", "ds_cfgs": "ZERO_STAGE_FILE"},
    equal={"batching": ("padding_free",)},  # the same rows make a step, with pads between them
)


def trainer_of(module: str) -> Trainer:
    package = module.split(".")[0]
    return ALIGN_ANYTHING if package == "align_anything" else Trainer(package)


def package_folder(module: str) -> Path | None:
    """The folder of the package of ``module``, found without importing it; None where it is not installed."""
    try:
        spec = importlib.util.find_spec(module.split(".")[0])
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    return Path(next(iter(spec.submodule_search_locations or [str(spec.origin)])))


@functools.lru_cache(maxsize=8)
def trainer_hash(module: str) -> str | None:
    """The content of a foreign trainer's package (code and settings); None for ours and for one that is not here."""
    folder = package_folder(module)
    if module == OUR_TRAINER or folder is None:
        return None
    if folder.is_file():
        return hash_file(folder)
    files = [file for file in sorted(folder.rglob("*")) if file.suffix in SOURCE_SUFFIXES and file.is_file()]
    names = {str(file.relative_to(folder)): file for file in files}
    return hash_json({name: hash_file(file) for name, file in names.items() if name not in trainer_of(module).hidden})


def as_trained(module: str, config: SFTConfig) -> SFTConfig:
    """``config`` with what the trainer does in the place of what it does not honour: the true options of a key."""
    return config if module == OUR_TRAINER else dataclasses.replace(config, **trainer_of(module).actual)


def not_honoured(module: str, config: SFTConfig) -> dict[str, dict[str, Any]]:
    """Options whose value the trainer does not honour: name -> what was asked for and what is done."""
    if module == OUR_TRAINER:
        return {}
    asked = {name: (getattr(config, name), value) for name, value in trainer_of(module).actual.items()}
    return {name: {"asked": old, "done": new} for name, (old, new) in asked.items() if old != new}


def problem(module: str, config: SFTConfig, given: Collection[str]) -> str | None:
    """Why the trainer cannot do what is asked, in words; None where it can.

    ``given`` are the options that somebody set. A row order that follows the run's seed is recorded, not refused: the
    scripts pass the seed as both.
    """
    if module == OUR_TRAINER:
        return None
    for name, values in not_honoured(module, config).items():
        follows = name == "data_seed" and config.data_seed == config.seed
        if name in given and not follows and values["asked"] not in trainer_of(module).equal.get(name, ()):
            return f"its {name} is always {values['done']!r}, not {values['asked']!r}"
    for item in options_of(SFTConfig):
        if item.name in given and not is_known(module, item.name) and getattr(config, item.name) != item.default:
            return f"it has no {item.name}"
    if trainer_of(module) is ALIGN_ANYTHING:
        return _align_anything_problem(config)
    return None


def is_known(module: str, name: str) -> bool:
    """Is it known what the trainer does with the option ``name``?"""
    trainer = trainer_of(module)
    return trainer.reads is None or name in {*trainer.reads, *trainer.actual, *trainer.ignored, *trainer.environment}


def _align_anything_problem(config: SFTConfig) -> str | None:
    folder = package_folder("align_anything")
    files = sorted(file.name for file in folder.glob("configs/deepspeed/*.json")) if folder else None
    if files is not None and config.ds_cfgs not in files:
        return f"it has no DeepSpeed file {config.ds_cfgs!r}; it has {', '.join(files)}"
    stage = deepspeed_config(config.ds_cfgs)["zero_optimization"]["stage"]
    if config.dtype == "float32" and stage != 3:
        return (
            f"it trains float32 under ZeRO 3 only and {config.ds_cfgs} is ZeRO {stage}: take ds_z3_config.json or bf16"
        )
    if config.use_lora and stage == 3:
        return f"it merges adapters before it gathers what {config.ds_cfgs} has spread: take ds_z2_config.json for LoRA"
    model = Path(config.model_name_or_path)
    if any((folder / "adapter_config.json").is_file() for folder in (model, model / SLICE)):
        return f"it does not start from adapters, and {model} holds some"
    data = Path(config.train_datasets)
    if data.is_file() and data.suffix not in (".json", ".jsonl"):
        return f"of single files it reads .json and .jsonl, not {data.name}; give a data-set folder"
    if data.is_file() and config.train_size:
        return "it cannot cut a file to train_size rows"
    for name in ("model_name_or_path", "train_datasets", "output_dir"):
        if "," in str(getattr(config, name)):
            return f"it splits {name} at the comma: {getattr(config, name)}"
    return None


def refuse(module: str, config: SFTConfig, given: Collection[str]) -> None:
    """Raise ``UserError`` where the trainer cannot do what is asked."""
    if reason := problem(module, config, given):
        raise UserError(
            f"{trainer_of(module).name} cannot train this: {reason}; or train with SFT_MODULE={OUR_TRAINER}"
        )


def choose_trainer(asked: Sequence[tuple[SFTConfig, Collection[str]]], import_it: bool = True) -> tuple[str, str]:
    """The trainer of runs with these configurations (and the options that were set in each), and why.

    ``SFT_MODULE``, else align-anything's when it imports and can do what is asked, else ours.
    """
    if named := os.environ.get("SFT_MODULE"):
        return named, "set by SFT_MODULE"
    if package_folder(ALIGN_ANYTHING_TRAINER) is None:
        return OUR_TRAINER, "align-anything is not installed"
    for config, given in asked:
        if reason := problem(ALIGN_ANYTHING_TRAINER, config, given):
            return OUR_TRAINER, f"align-anything cannot train this: {reason}"
    command = [sys.executable, "-c", f"import {ALIGN_ANYTHING_TRAINER}"]
    if import_it and subprocess.run(command, capture_output=True).returncode != 0:
        return OUR_TRAINER, "align-anything is installed but does not import"
    return ALIGN_ANYTHING_TRAINER, "align-anything is importable"


def check_package(module: str) -> None:
    """Refuse a module that is not there, and align-anything without the drop-in template of this project."""
    folder = package_folder(module)
    if folder is None:
        raise UserError(
            f"SFT_MODULE={module}: no package {module.split('.')[0]} in this environment; activate the one that has it "
            "(align-anything: bash scripts/install.sh --align-anything)"
        )
    if trainer_of(module) is ALIGN_ANYTHING:
        from guardrail.data.prompts import TEMPLATE_FILE

        template = folder / "configs" / "template.py"
        if not template.is_file() or hash_file(template) != hash_file(TEMPLATE_FILE):
            raise UserError(
                f"{template} is not this project's configs/template.py; run: bash scripts/install_template.sh"
            )
