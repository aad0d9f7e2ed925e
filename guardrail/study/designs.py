"""What a design costs: rows of an alignment, operations of training, parameters and bytes that are stored.

Operations per token and parameter (Kaplan et al. 2020, section 2.1): 2 forward, 2 backward to the activations, 2 to
the weights. Adapters need no gradients of the weights that they are added to; gradient checkpointing repeats the
forward pass. docs/designs.md says what each design is.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from guardrail.core.errors import UserError
from guardrail.models.checkpoints import resolve_checkpoint
from guardrail.study.config import Design, Lora, Study, Training
from guardrail.study.grid import Alignment

REPLACED = ("learning_rate", "gradient_checkpointing")  # of a training block, by `lora`

# Layers, width, width of the feed-forward part, width of keys and values, by the size that a hub model's name says.
HUB_SHAPES = {
    "7b": (32, 4096, 11008, 4096),
    "8b": (32, 4096, 14336, 1024),
    "13b": (40, 5120, 13824, 5120),
    "2b": (26, 2304, 9216, 1024),
    "9b": (42, 3584, 14336, 2048),
}
SANDBOX_SHAPE = (4, 128, 344, 128)


def alignment_rows(study: Study, alignment: Alignment, n_instruct: int, n_pool: int) -> int:
    """Rows of an alignment's training split, from the sizes of its sources (see `guardrail.data.mix`)."""
    n_instruct = min(study.instruct_size or n_instruct, n_instruct)
    n_safety = {"full": n_pool, "none": 0}.get(alignment.subset, alignment.size)
    if not alignment.replays:
        return n_instruct + n_safety
    rows = (n_safety or study.subset_sizes[0]) / (1 - study.replay_fraction)
    return n_safety + min(round(rows - n_safety), n_instruct)


def alignment_method(alignment: Alignment) -> str:
    """`lora` where an alignment trains adapters, else `full`."""
    return "lora" if alignment.design == "adapter" else "full"


def lora_block(training: Training, lora: Lora) -> Training:
    """``training`` with what adapters change of it."""
    changed = {name: getattr(lora, name) for name in REPLACED}
    return dataclasses.replace(training, **{name: value for name, value in changed.items() if value is not None})


def tuning_lora(study: Study, task: str) -> Lora:
    """The adapters of a fine-tuning on ``task``; a learning rate that the arm of an attack names is theirs, too."""
    arm = study.tasks[task].arm
    own = arm is not None and arm.learning_rate is not None
    return dataclasses.replace(study.lora, learning_rate=None) if own else study.lora


def training_operations(training: Training, method: str, lora: Lora) -> float:
    """Floating-point operations per trained token and parameter."""
    block = lora_block(training, lora) if method == "lora" else training
    return (4.0 if method == "lora" else 6.0) + (2.0 if block.gradient_checkpointing else 0.0)


def model_shape(study: Study) -> tuple[int, int, int, int]:
    """Layers, width, feed-forward width, key-value width: from ``config.json``, or what the model's name says."""
    if study.sandbox:
        return SANDBOX_SHAPE
    try:
        file = Path(resolve_checkpoint(study.models.base)) / "config.json"
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except UserError:
        config = {}
    if {"num_hidden_layers", "hidden_size", "intermediate_size"} <= set(config):
        width, heads = config["hidden_size"], config["num_attention_heads"]
        head = config.get("head_dim") or width // heads
        keys = head * config.get("num_key_value_heads", heads)
        return config["num_hidden_layers"], width, config["intermediate_size"], keys
    name = study.models.base.lower()
    return next((shape for size, shape in HUB_SHAPES.items() if size in name), HUB_SHAPES["7b"])


def adapter_parameters(study: Study) -> int:
    """Parameters of one adapter: ``r`` times inputs plus outputs of every target module."""
    layers, width, inner, keys = model_shape(study)
    sides = {"q_proj": 2 * width, "o_proj": 2 * width, "k_proj": width + keys, "v_proj": width + keys}
    return layers * study.lora.r * sum(sides.get(target, width + inner) for target in study.lora.target_modules)


def n_adapters(design: Design) -> int:
    """How many adapters a tuned checkpoint holds: none with all weights; one on top of another is stored as both."""
    return 0 if design.method == "full" else 2 if design.alignment == "adapter" else 1
