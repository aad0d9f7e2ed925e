"""Every option of the trainer: align-anything's ``sft.yaml`` keys and this project's own, with their defaults.

Defaults live here and nowhere else. Keys, names and defaults of the first group follow align-anything 3f9decc
(configs/train/text_to_text/sft.yaml) except where the help text says so. Imports neither torch nor transformers.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from guardrail.core.cli import Parser, boolean, fraction, positive_int
from guardrail.core.errors import UserError, unknown
from guardrail.core.files import read_json
from guardrail.core.places import DEEPSPEED_FOLDER

SCHEDULERS = (
    *("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts"),
    *("polynomial", "inverse_sqrt"),
)
LABEL_MASKS = ("exact", "align_anything")
BATCHINGS = ("padded", "length_grouped", "packed")
TURNS = ("last_assistant_turn", "all_assistant_turns")
LOSS_AVERAGES = ("tokens", "micro_batch")
LOG_TYPES = ("wandb", "tensorboard", "none")
DTYPE_OF_BNB = ("float16", "bfloat16", "float32")


def text_list(text: str) -> tuple[str, ...]:
    """``[a, b]``, ``["a", "b"]``, ``a,b`` or ``a`` as a tuple of strings."""
    inner = text.strip()
    if inner.startswith("[") and inner.endswith("]"):
        inner = inner[1:-1]
    return tuple(part.strip().strip("'\"") for part in inner.split(",") if part.strip())


def pair_of_floats(text: str) -> tuple[float, float]:
    """``[0.9, 0.95]`` or ``0.9,0.95``."""
    try:
        first, second = (float(part) for part in text_list(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a pair of numbers such as 0.9,0.95") from None
    return first, second


def natural(text: str) -> int:
    """An integer of at least 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def optional_int(text: str) -> int | None:
    """A positive integer, or ``None``/``null``."""
    return None if text.lower() in ("none", "null") else positive_int(text)


def optional_text(text: str) -> str | None:
    return None if text.lower() in ("none", "null", "") else text


def choice(kind: str, names: Sequence[str]) -> Callable[[str], str]:
    """A parser of one of ``names`` whose error has the near match."""

    def parse(text: str) -> str:
        if text not in names:
            raise unknown(kind, text, names)
        return text

    return parse


def _option(default: Any, parse: Callable[[str], Any], text: str, only: bool = False) -> Any:
    """A field with its parser and help; ``only`` marks keys whose single supported value is the default."""
    metadata = {"parse": parse, "help": text, "only": only}
    if isinstance(default, tuple):
        return field(default_factory=lambda: default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class SFTConfig:
    """The resolved configuration of one training run."""

    # model
    model_name_or_path: str = _option("", str, "base model: a folder (or one that holds slice_end/) or a hub name")
    model_max_length: int = _option(4096, positive_int, "longest sequence in tokens; longer rows are cut and counted")
    trust_remote_code: bool = _option(False, boolean, "run code that comes with the model (align-anything: True)")
    # data
    train_datasets: str = _option("", str, "a data file, a data-set folder in the hub's layout, or a hub name")
    train_template: str = _option("", str, "data-set formatter of configs/template.py, such as UltraChat")
    train_split: str | None = _option(None, optional_text, "split of train_datasets")
    train_name: str | None = _option(None, optional_text, "configuration of the data set")
    train_size: int | None = _option(None, optional_int, "use only the first rows")
    train_data_files: str | None = _option(None, optional_text, "one file inside train_datasets, instead of a split")
    train_optional_args: tuple = _option((), text_list, "positional arguments of load_dataset", only=True)
    eval_datasets: str | None = _option(None, optional_text, "data set for the evaluation loss; none: no evaluation")
    eval_template: str | None = _option(None, optional_text, "formatter of eval_datasets; default: train_template")
    eval_split: str | None = _option(None, optional_text, "split of eval_datasets")
    eval_subset: str | None = _option(None, optional_text, "configuration of eval_datasets")
    eval_size: int | None = _option(None, optional_int, "use only the first evaluation rows")
    eval_data_files: str | None = _option(None, optional_text, "one file inside eval_datasets, instead of a split")
    eval_optional_args: tuple = _option((), text_list, "positional arguments of load_dataset", only=True)
    # optimisation
    epochs: int = _option(1, positive_int, "passes over the data")
    seed: int = _option(42, natural, "seed of dropout and LoRA initialisation; the row order has data_seed")
    per_device_train_batch_size: int = _option(1, positive_int, "rows (packed: sequences) per rank and micro-batch")
    per_device_eval_batch_size: int = _option(1, positive_int, "evaluation rows per rank and batch")
    gradient_accumulation_steps: int = _option(1, positive_int, "micro-batches per optimizer step")
    gradient_checkpointing: bool = _option(True, boolean, "recompute activations in the backward pass: less memory")
    learning_rate: float = _option(2e-5, float, "peak learning rate")
    lr_scheduler_type: str = _option("constant", choice("lr_scheduler_type", SCHEDULERS), f"one of {SCHEDULERS}")
    lr_warmup_ratio: float = _option(0.03, fraction, "share of steps spent warming up (not used by constant)")
    weight_decay: float = _option(0.0, float, "AdamW weight decay, not applied to biases and norms")
    adam_betas: tuple = _option((0.9, 0.95), pair_of_floats, "AdamW betas")
    adam_epsilon: float = _option(1e-8, float, "AdamW epsilon (align-anything accepts it and does not pass it on)")
    max_grad_norm: float = _option(1.0, float, "gradient clipping; 0: none")
    bf16: bool = _option(True, boolean, "train in bfloat16 with float32 master weights")
    fp16: bool = _option(False, boolean, "train in float16 with dynamic loss scaling; with bf16 False too: float32")
    ds_cfgs: str = _option("ds_z3_config.json", str, "DeepSpeed file: a name in configs/deepspeed or a path")
    eval_strategy: str = _option("steps", choice("eval_strategy", ("steps", "epoch")), "when to evaluate")
    eval_interval: int = _option(10, positive_int, "optimizer steps between evaluations with eval_strategy steps")
    # this project's own
    prompt_style: str = _option("llama2_base", str, "prompt style of configs/template.py")
    label_mask: str = _option(
        "exact", choice("label_mask", LABEL_MASKS), "exact, or align_anything: its ids and its off-by-one mask"
    )
    train_on: str = _option(
        "last_assistant_turn", choice("train_on", TURNS), "loss on the last answer, or on all_assistant_turns"
    )
    batching: str = _option("padded", choice("batching", BATCHINGS), "padded, length_grouped or packed")
    data_seed: int = _option(0, natural, "seed of the row order; 0 is align-anything's order, whatever its seed")
    reshuffle: bool = _option(True, boolean, "a new order every epoch; False: the first one again, as align-anything")
    loss_average: str = _option(
        "tokens", choice("loss_average", LOSS_AVERAGES), "over all tokens of a step, or per micro_batch and rank first"
    )
    attn_implementation: str | None = _option(None, optional_text, "transformers attention; default: best available")
    max_steps: int | None = _option(None, optional_int, "stop after so many optimizer steps")
    # LoRA
    use_lora: bool = _option(False, boolean, "train low-rank adapters (peft)")
    task_type: str = _option("TaskType.CAUSAL_LM", str, "peft task type", only=True)
    inference_mode: bool = _option(False, boolean, "peft inference mode", only=True)
    r: int = _option(16, positive_int, "LoRA rank")
    lora_alpha: int = _option(16, positive_int, "LoRA alpha")
    lora_dropout: float = _option(0.1, fraction, "LoRA dropout")
    target_modules: tuple = _option(("q_proj", "v_proj"), text_list, "modules that get adapters")
    save_full_model: bool = _option(True, boolean, "merge adapters into the saved model; False: save adapters only")
    # QLoRA: accepted with align-anything's defaults, otherwise refused
    use_bnb: bool = _option(False, boolean, "quantised base weights (bitsandbytes)", only=True)
    load_in_4bit: bool = _option(True, boolean, "only with use_bnb", only=True)
    load_in_8bit: bool = _option(False, boolean, "only with use_bnb", only=True)
    bnb_4bit_quant_type: str = _option("nf4", str, "only with use_bnb", only=True)
    bnb_4bit_use_double_quant: bool = _option(True, boolean, "only with use_bnb", only=True)
    bnb_4bit_compute_dtype: str = _option("float16", choice("dtype", DTYPE_OF_BNB), "only with use_bnb", only=True)
    special_tokens: str | None = _option(None, optional_text, "added tokens (no embedding is ever resized)", only=True)
    # saving and resuming
    output_dir: str = _option("", str, "weights go to <output_dir>/slice_end, the record to <output_dir>/run.json")
    cache_dir: str | None = _option(None, optional_text, "folder of the tokenised-row cache")
    save_total_limit: int = _option(1, positive_int, "evenly spaced weight saves; the last is slice_end")
    save_checkpoint: bool = _option(
        False, boolean, "keep resumable state until the run is whole (align-anything: True)"
    )
    checkpoint_interval: int | None = _option(None, optional_int, "steps between resumable states; default: an epoch")
    load_checkpoint: bool = _option(False, boolean, "align-anything's way to resume; here: --resume", only=True)
    resume: bool = _option(False, boolean, "continue from <output_dir>/checkpoint when there is one")
    # logging
    log_type: str = _option("wandb", choice("log_type", LOG_TYPES), "wandb (offline without a key), tensorboard, none")
    log_project: str = _option("guardrail-durability", str, "project name for logging")
    log_run_name: str = _option("sft", str, "run name for logging")
    logging_steps: int = _option(10, positive_int, "optimizer steps between log lines and checks for a NaN loss")

    @property
    def dtype(self) -> str:
        return "bfloat16" if self.bf16 else "float16" if self.fp16 else "float32"

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: tuples as lists."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


# Options that cannot change the trained weights: left out of the fingerprint.
NOT_IN_FINGERPRINT = (
    *("output_dir", "cache_dir", "save_checkpoint", "checkpoint_interval", "resume", "log_type", "log_project"),
    *("log_run_name", "logging_steps", "model_name_or_path", "train_datasets", "eval_datasets"),
)


def deepspeed_config(name: str) -> dict[str, Any]:
    """The DeepSpeed file ``name`` (a path, or a name in ``configs/deepspeed``)."""
    path = Path(name)
    if not path.is_file():
        path = DEEPSPEED_FOLDER / name
    if not path.is_file():
        raise unknown("ds_cfgs", name, sorted(file.name for file in DEEPSPEED_FOLDER.glob("*.json")))
    return read_json(path)


def build_parser() -> Parser:
    """One flag per field of ``SFTConfig``."""
    parser = Parser(prog="guardrail.training.sft", description="Supervised fine-tuning on DeepSpeed.")
    for item in fields(SFTConfig):
        parser.add_argument(
            f"--{item.name}",
            type=item.metadata["parse"],
            default=_default(item),
            required=item.name in ("model_name_or_path", "train_datasets", "train_template", "output_dir"),
            help=item.metadata["help"],
        )
    parser.add_argument("--local_rank", type=int, default=-1, help=argparse.SUPPRESS)  # the launcher adds it
    return parser


def _default(item: Any) -> Any:
    if item.name == "ds_cfgs":  # align-anything's variable for the same choice
        return os.environ.get("ZERO_STAGE_FILE", item.default)
    if item.name == "prompt_style":
        return os.environ.get("PROMPT_STYLE", item.default)
    return item.default_factory() if callable(item.default_factory) else item.default


def parse_config(argv: Sequence[str] | None = None) -> SFTConfig:
    """The checked configuration. Raises ``UserError`` for what cannot be honoured."""
    values = vars(build_parser().parse_args(argv))
    values.pop("local_rank")
    config = SFTConfig(**values)
    check_config(config)
    return config


def check_config(config: SFTConfig) -> None:
    """Refuse unsupported values and impossible combinations, before anything is loaded."""
    from guardrail.data.prompts import check_style, template_module

    for item in fields(SFTConfig):
        default = item.default_factory() if callable(item.default_factory) else item.default
        if item.metadata["only"] and getattr(config, item.name) != default:
            hint = {
                "load_checkpoint": "resume with --resume True and the same --output_dir",
                "use_bnb": "train with --use_lora True, or with align-anything for quantised weights",
                "inference_mode": "adapters in inference mode do not train",
            }.get(item.name, "leave it out")
            raise UserError(f"--{item.name} {getattr(config, item.name)} is not supported by this trainer; {hint}")
    check_style(config.prompt_style)
    for name in filter(None, (config.train_template, config.eval_template)):
        if name not in template_module().FORMATTERS:
            raise unknown("train_template", name, template_module().FORMATTERS)
    if config.bf16 and config.fp16:
        raise UserError("--bf16 True and --fp16 True exclude each other; set one to False")
    if config.resume and not config.save_checkpoint:
        raise UserError("--resume True continues from resumable state; add --save_checkpoint True (in both runs)")
    if config.label_mask == "align_anything" and config.train_on != "last_assistant_turn":
        raise UserError("--label_mask align_anything trains on the last answer only; leave out --train_on")
    if not 0 < config.learning_rate < 1:
        raise UserError(f"--learning_rate {config.learning_rate} is out of range; expected between 0 and 1")
    for name in ("weight_decay", "max_grad_norm", "adam_epsilon"):
        if getattr(config, name) < 0:
            raise UserError(f"--{name} {getattr(config, name)} is negative")
    if config.log_type != "none" and importlib.util.find_spec(config.log_type) is None:
        raise UserError(f"--log_type {config.log_type} needs the package {config.log_type}; install it or use none")
    deepspeed_config(config.ds_cfgs)
