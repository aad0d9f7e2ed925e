"""Every option of the trainer: align-anything's ``sft.yaml`` keys and this project's own, with their defaults.

Defaults live here and nowhere else. Keys, names and defaults of the first group follow align-anything 3f9decc
(configs/train/text_to_text/sft.yaml) except where the help text says so. Imports neither torch nor transformers.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from guardrail.core.cli import Parser, fraction, positive_int
from guardrail.core.errors import UserError, unknown
from guardrail.core.files import read_json
from guardrail.core.options import add_options, decisive, option, options_of, read_options
from guardrail.core.places import DEEPSPEED_FOLDER
from guardrail.data.rows import DROPPED_HELP, MAX_DROPPED_FRACTION
from guardrail.training.defences import make_defence

SCHEDULERS = (
    *("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts"),
    *("polynomial", "inverse_sqrt"),
)
LABEL_MASKS = ("exact", "align_anything")
BATCHINGS = ("padded", "padding_free", "length_grouped", "packed")
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
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
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


@dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """The resolved configuration of one training run."""

    # model
    model_name_or_path: str = option(
        help="base model: a folder (or one that holds slice_end/) or a hub name", decides=False
    )
    model_max_length: int = option(
        4096, "longest sequence in tokens; longer rows are cut and counted", parse=positive_int
    )
    trust_remote_code: bool = option(False, "run code that comes with the model (align-anything: True)")
    # data
    train_datasets: str = option(
        help="a data file, a data-set folder in the hub's layout, or a hub name", decides=False
    )
    train_template: str = option(help="data-set formatter of configs/template.py, such as UltraChat")
    train_split: str | None = option(None, "split of train_datasets", parse=optional_text)
    train_name: str | None = option(None, "configuration of the data set", parse=optional_text)
    train_size: int | None = option(None, "use only the first rows", parse=optional_int)
    max_dropped_fraction: float = option(MAX_DROPPED_FRACTION, DROPPED_HELP, parse=fraction, decides=False)
    train_data_files: str | None = option(
        None, "one file inside train_datasets, instead of a split", parse=optional_text
    )
    train_optional_args: tuple[str, ...] = option(
        (), "positional arguments of load_dataset", parse=text_list, only=True
    )
    eval_datasets: str | None = option(
        None, "data set for the evaluation loss; none: no evaluation", parse=optional_text, decides=False
    )
    eval_template: str | None = option(None, "formatter of eval_datasets; default: train_template", parse=optional_text)
    eval_split: str | None = option(None, "split of eval_datasets", parse=optional_text)
    eval_subset: str | None = option(None, "configuration of eval_datasets", parse=optional_text)
    eval_size: int | None = option(None, "use only the first evaluation rows", parse=optional_int)
    eval_data_files: str | None = option(None, "one file inside eval_datasets, instead of a split", parse=optional_text)
    eval_optional_args: tuple[str, ...] = option((), "positional arguments of load_dataset", parse=text_list, only=True)
    # optimisation
    epochs: int = option(1, "passes over the data", parse=positive_int)
    seed: int = option(42, "seed of dropout and LoRA initialisation; the row order has data_seed", parse=natural)
    per_device_train_batch_size: int = option(
        1, "rows (packed: sequences) per rank and micro-batch", parse=positive_int
    )
    per_device_eval_batch_size: int = option(1, "evaluation rows per rank and batch", parse=positive_int, decides=False)
    gradient_accumulation_steps: int = option(1, "micro-batches per optimizer step", parse=positive_int)
    gradient_checkpointing: bool = option(True, "recompute activations in the backward pass: less memory")
    learning_rate: float = option(2e-5, "peak learning rate")
    lr_scheduler_type: str = option("constant", f"one of {SCHEDULERS}", parse=choice("lr_scheduler_type", SCHEDULERS))
    lr_warmup_ratio: float = option(0.03, "share of steps spent warming up (not used by constant)", parse=fraction)
    weight_decay: float = option(0.0, "AdamW weight decay, not applied to biases and norms")
    adam_betas: tuple[float, float] = option((0.9, 0.95), "AdamW betas", parse=pair_of_floats)
    adam_epsilon: float = option(1e-8, "AdamW epsilon (align-anything accepts it and does not pass it on)")
    max_grad_norm: float = option(1.0, "gradient clipping; 0: none")
    bf16: bool = option(True, "train in bfloat16 with float32 master weights")
    fp16: bool = option(False, "train in float16 with dynamic loss scaling; with bf16 False too: float32")
    ds_cfgs: str = option("ds_z3_config.json", "DeepSpeed file: a name in configs/deepspeed or a path")
    eval_strategy: str = option("steps", "when to evaluate", parse=choice("eval_strategy", ("steps", "epoch")))
    eval_interval: int = option(10, "optimizer steps between evaluations with eval_strategy steps", parse=positive_int)
    # this project's own
    prompt_style: str = option("llama2_base", "prompt style of configs/template.py")
    label_mask: str = option(
        "exact", "exact, or align_anything: its ids and its off-by-one mask", parse=choice("label_mask", LABEL_MASKS)
    )
    train_on: str = option(
        "last_assistant_turn", "loss on the last answer, or on all_assistant_turns", parse=choice("train_on", TURNS)
    )
    batching: str = option(
        "padded", "padded, padding_free, length_grouped or packed", parse=choice("batching", BATCHINGS)
    )
    data_seed: int = option(0, "seed of the row order; 0 is align-anything's order, whatever its seed", parse=natural)
    reshuffle: bool = option(True, "a new order every epoch; False: the first one again, as align-anything")
    loss_average: str = option(
        "tokens",
        "over all tokens of a step, or per micro_batch and rank first",
        parse=choice("loss_average", LOSS_AVERAGES),
    )
    attn_implementation: str | None = option(
        None, "transformers attention; default: best available", parse=optional_text
    )
    defence: str = option("none", "what protects the guardrails meanwhile (guardrail/training/defences)")
    defence_options: tuple[str, ...] = option((), "options of the defence, such as share=0.5,every=10", parse=text_list)
    max_steps: int | None = option(None, "stop after so many optimizer steps", parse=optional_int)
    # LoRA
    use_lora: bool = option(False, "train low-rank adapters (peft)")
    task_type: str = option("TaskType.CAUSAL_LM", "peft task type", only=True)
    inference_mode: bool = option(False, "peft inference mode", only=True)
    r: int = option(16, "LoRA rank", parse=positive_int)
    lora_alpha: int = option(16, "LoRA alpha", parse=positive_int)
    lora_dropout: float = option(0.1, "LoRA dropout", parse=fraction)
    target_modules: tuple[str, ...] = option(("q_proj", "v_proj"), "modules that get adapters", parse=text_list)
    save_full_model: bool = option(True, "merge adapters into the saved model; False: save adapters only")
    # QLoRA: accepted with align-anything's defaults, otherwise refused
    use_bnb: bool = option(False, "quantised base weights (bitsandbytes)", only=True)
    load_in_4bit: bool = option(True, "only with use_bnb", only=True)
    load_in_8bit: bool = option(False, "only with use_bnb", only=True)
    bnb_4bit_quant_type: str = option("nf4", "only with use_bnb", only=True)
    bnb_4bit_use_double_quant: bool = option(True, "only with use_bnb", only=True)
    bnb_4bit_compute_dtype: str = option("float16", "only with use_bnb", parse=choice("dtype", DTYPE_OF_BNB), only=True)
    special_tokens: str | None = option(
        None, "added tokens (no embedding is ever resized)", parse=optional_text, only=True
    )
    # saving and resuming
    output_dir: str = option(
        help="weights go to <output_dir>/slice_end, the record to <output_dir>/run.json", decides=False
    )
    cache_dir: str | None = option(None, "folder of the tokenised-row cache", parse=optional_text, decides=False)
    save_total_limit: int = option(1, "evenly spaced weight saves; the last is slice_end", parse=positive_int)
    save_checkpoint: bool = option(
        False, "keep resumable state until the run is whole (align-anything: True)", decides=False
    )
    checkpoint_interval: int | None = option(
        None, "steps between resumable states; default: an epoch", parse=optional_int, decides=False
    )
    load_checkpoint: bool = option(False, "align-anything's way to resume; here: --resume", only=True)
    resume: bool = option(False, "continue from <output_dir>/checkpoint when there is one", decides=False)
    # logging
    log_type: str = option(
        "wandb", "wandb (offline without a key), tensorboard, none", parse=choice("log_type", LOG_TYPES), decides=False
    )
    log_project: str = option("guardrail-durability", "project name for logging", decides=False)
    log_run_name: str = option("sft", "run name for logging", decides=False)
    logging_steps: int = option(
        10, "optimizer steps between log lines and checks for a NaN loss", parse=positive_int, decides=False
    )

    @property
    def dtype(self) -> str:
        return "bfloat16" if self.bf16 else "float16" if self.fp16 else "float32"

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: tuples as lists."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def training_key_options(config: SFTConfig) -> dict[str, Any]:
    """The options that decide the trained weights, by name: what belongs into a key. Paths of what is read are not
    among them: their contents are (`guardrail.training.sft.input_hashes`)."""
    return decisive(config)


def deepspeed_config(name: str) -> dict[str, Any]:
    """The DeepSpeed file ``name`` (a path, or a name in ``configs/deepspeed``)."""
    path = Path(name)
    if not path.is_file():
        path = DEEPSPEED_FOLDER / name
    if not path.is_file():
        raise unknown("ds_cfgs", name, sorted(file.name for file in DEEPSPEED_FOLDER.glob("*.json")))
    return read_json(path)


def build_parser() -> Parser:
    """One flag per field of ``SFTConfig``; two defaults may come from align-anything's environment variables."""
    parser = Parser(prog="guardrail.training.sft", description="Supervised fine-tuning on DeepSpeed.")
    variables = {"ds_cfgs": "ZERO_STAGE_FILE", "prompt_style": "PROMPT_STYLE"}
    given = {name: os.environ[variable] for name, variable in variables.items() if variable in os.environ}
    add_options(parser, SFTConfig, defaults=given)
    parser.add_argument("--local_rank", type=int, default=-1, help=argparse.SUPPRESS)  # the launcher adds it
    return parser


def parse_config(argv: Sequence[str] | None = None) -> SFTConfig:
    """The checked configuration. Raises ``UserError`` for what cannot be honoured."""
    config = read_options(SFTConfig, build_parser().parse_args(argv))
    check_config(config)
    return config


def check_config(config: SFTConfig) -> None:
    """Refuse unsupported values and impossible combinations, before anything is loaded."""
    from guardrail.data.prompts import check_style, template_module

    for item in options_of(SFTConfig):
        if item.metadata["only"] and getattr(config, item.name) != item.default:
            hint = {
                "load_checkpoint": "resume with --resume True and the same --output_dir",
                "use_bnb": "train with --use_lora True, or with align-anything for quantised weights",
                "inference_mode": "adapters in inference mode do not train",
            }.get(item.name, "leave it out")
            raise UserError(f"--{item.name} {getattr(config, item.name)} is not supported by this trainer; {hint}")
    defence = make_defence(config.defence, config.defence_options)
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
    if config.save_checkpoint and not defence.resumable:
        raise UserError(f"--defence {config.defence} cannot go on after a kill; leave out --save_checkpoint True")
    if config.log_type != "none" and importlib.util.find_spec(config.log_type) is None:
        raise UserError(f"--log_type {config.log_type} needs the package {config.log_type}; install it or use none")
    deepspeed_config(config.ds_cfgs)
