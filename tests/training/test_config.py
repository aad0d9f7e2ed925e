"""Flags: align-anything's keys and defaults, refusals with the near match, shipped DeepSpeed files."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import toy
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.core.options import option_names
from guardrail.training.config import DEEPSPEED_FOLDER, SFTConfig, parse_config
from guardrail.training.engine import resolved_deepspeed_config
from guardrail.training.sft import pause_steps

REQUIRED = ["--model_name_or_path", "m", "--train_datasets", "d", "--train_template", "UltraChat", "--output_dir", "o"]
# Keys and values of align-anything 3f9decc's sft.yaml; where this trainer differs, its own value.
UPSTREAM = {
    "save_checkpoint": False,  # theirs: True, about 12 bytes per parameter more on every run
    "trust_remote_code": False,  # theirs: True
    "load_checkpoint": False,
    "ds_cfgs": "ds_z3_config.json",
    "epochs": 1,
    "seed": 42,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": True,
    "learning_rate": 2e-5,
    "lr_scheduler_type": "constant",
    "lr_warmup_ratio": 0.03,
    "weight_decay": 0.0,
    "adam_betas": (0.9, 0.95),
    "adam_epsilon": 1e-8,
    "bf16": True,
    "fp16": False,
    "eval_strategy": "steps",
    "eval_interval": 10,
    "max_grad_norm": 1.0,
    **dict.fromkeys(("train_size", "train_split", "train_name", "train_data_files", "special_tokens", "cache_dir")),
    **dict.fromkeys(("eval_datasets", "eval_template", "eval_size", "eval_split", "eval_subset", "eval_data_files")),
    "train_optional_args": (),
    "eval_optional_args": (),
    "log_type": "wandb",
    "log_project": "guardrail-durability",
    "log_run_name": "sft",
    "save_total_limit": 1,
    "model_max_length": 4096,
    "use_lora": False,
    "task_type": "TaskType.CAUSAL_LM",
    "inference_mode": False,
    "r": 16,
    "lora_alpha": 16,
    "lora_dropout": 0.1,
    "target_modules": ("q_proj", "v_proj"),
    "save_full_model": True,
    "use_bnb": False,
    "load_in_4bit": True,
    "load_in_8bit": False,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "float16",
}


def test_every_upstream_key_is_there_with_its_default(monkeypatch):
    monkeypatch.delenv("ZERO_STAGE_FILE", raising=False)
    config = parse_config(REQUIRED)
    assert {key: getattr(config, key) for key in UPSTREAM} == UPSTREAM


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--per_device_train_batchsize", "4"], "did you mean '--per_device_train_batch_size'"),
        (["--prompt_style", "lama2_base"], "did you mean 'llama2_base'"),
        (["--train_template", "UltraChatt"], "did you mean 'UltraChat'"),
        (["--lr_scheduler_type", "cosin"], "did you mean 'cosine'"),
        (["--ds_cfgs", "ds_z1_config.json"], "ds_z0_config.json"),
        (["--bf16", "yes"], "not a boolean"),
        (["--fp16", "True"], "exclude each other"),
        (["--epochs", "0"], "positive whole number"),
        (["--learning_rate", "2"], "out of range"),
        (["--learning_rate", "nan"], "not a finite number"),
        (["--use_bnb", "True"], "use_lora"),
        (["--load_in_8bit", "True"], "not supported"),
        (["--load_checkpoint", "True"], "--resume"),
        (["--resume", "True"], "--save_checkpoint True"),
        (["--special_tokens", "<x>"], "not supported"),
        (["--adam_betas", "0.9"], "pair of numbers"),
        (["--label_mask", "align_anything", "--train_on", "all_assistant_turns"], "last answer only"),
    ],
)
def test_what_cannot_be_honoured_is_refused(arguments, message):
    with pytest.raises(UserError, match="(?s).*" + message.replace("(", r"\(")):
        parse_config([*REQUIRED, *arguments])


def test_what_decides_the_weights_is_known_without_torch():
    """Paths, caches, logging and checkpoint intervals are in no key; seeds and everything about the steps are."""
    code = (
        "import sys, json; from guardrail.training.config import parse_config, training_key_options;"
        "print(json.dumps(training_key_options(parse_config(sys.argv[1:])))); assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, *REQUIRED, "--target_modules", "o_proj"]
    key = json.loads(subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout)
    assert set(option_names(SFTConfig)) - set(key) == {
        *("model_name_or_path", "train_datasets", "eval_datasets", "output_dir", "cache_dir"),
        *("log_type", "log_project", "log_run_name", "logging_steps"),
        *("save_checkpoint", "checkpoint_interval", "resume", "per_device_eval_batch_size"),
        "max_dropped_fraction",  # the rows that are left are in the key
    }
    assert key["seed"] == 42 and key["data_seed"] == 0 and key["target_modules"] == ["o_proj"]


def test_the_launcher_s_local_rank_and_list_values_are_taken(monkeypatch):
    monkeypatch.setenv("ZERO_STAGE_FILE", "ds_z2_config.json")
    config = parse_config(
        ["--local_rank=0", *REQUIRED, "--adam_betas", "[0.8, 0.9]", "--target_modules", '["q_proj","o_proj"]']
    )
    assert config.adam_betas == (0.8, 0.9) and config.target_modules == ("q_proj", "o_proj")
    assert config.ds_cfgs == "ds_z2_config.json"


@pytest.mark.parametrize("file", sorted(DEEPSPEED_FOLDER.glob("*.json")), ids=lambda path: path.name)
def test_every_shipped_deepspeed_file_is_accepted_by_deepspeed(file):
    from deepspeed.runtime.config import DeepSpeedConfig

    config = parse_config([*REQUIRED, "--ds_cfgs", file.name, "--per_device_train_batch_size", "3"])
    settings = resolved_deepspeed_config(config, 1)
    settings.pop("train_batch_size")
    resolved = DeepSpeedConfig(settings)
    assert resolved.zero_optimization_stage == json.loads(file.read_text())["zero_optimization"]["stage"]
    assert resolved.train_micro_batch_size_per_gpu == 3 and resolved.bfloat16_config.enabled
    assert resolved.gradient_clipping == 1.0
    assert ("offload" in file.name) == (resolved.zero_config.offload_optimizer is not None)


def test_saves_and_evaluations_are_where_they_were_asked_for():
    config = toy.config(epochs=2, save_checkpoint=True, save_total_limit=4, eval_interval=8)
    states, weights, evals = pause_steps(config, [10, 10], 20, True)
    assert states == {10} and weights == {5, 10, 15} and evals == {8, 16, 20}
    config = toy.config(epochs=2, checkpoint_interval=3, eval_strategy="epoch")
    assert pause_steps(config, [4, 4], 8, False) == (frozenset(), frozenset(), frozenset())
    states, _, evals = pause_steps(toy.config(save_checkpoint=True, checkpoint_interval=3), [8], 8, False)
    assert states == {3, 6} and not evals
