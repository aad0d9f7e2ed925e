"""Models of a shape with random weights, on a GPU, a CPU, or the meta device, where they take no memory."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from guardrail.bench.shapes import N_LABELS, Shape
from guardrail.core.errors import UserError
from guardrail.models.loading import torch_dtype

KINDS = {"sft": "lm", "generate": "lm", "extract": "none", "moderate": "labels"}  # stage -> head


def configuration(shape: Shape, attention: str | None = None) -> Any:
    """The transformers configuration of ``shape``. ``attention``: its implementation; default: transformers' own."""
    from transformers import AutoConfig

    extra: dict[str, Any] = {}
    if shape.family == "gemma2":
        extra = {
            "attn_logit_softcapping": 50.0 if shape.attention_softcap else None,
            "final_logit_softcapping": 30.0 if shape.logit_softcap else None,
            "query_pre_attn_scalar": shape.head_size,
        }
    if shape.sliding_window is not None:
        extra["sliding_window"] = shape.sliding_window
    if shape.family == "llama":
        extra |= {"attention_bias": shape.qkv_bias, "mlp_bias": shape.mlp_bias}
    config = AutoConfig.for_model(
        shape.family,
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_size,
        max_position_embeddings=shape.max_tokens,
        tie_word_embeddings=shape.tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        num_labels=N_LABELS,
        problem_type="multi_label_classification",
        **extra,
    )
    if attention:
        config._attn_implementation = attention
    return config


def build(shape: Shape, stage: str, dtype: str, device: torch.device | str | None, attention: str | None = None) -> Any:
    """The model of ``stage`` with random weights, in evaluation mode; ``device`` None: where ZeRO 3 puts its parts.

    Raises ``UserError``: the attention is not installed, or not for this model.
    """
    import transformers

    names = {
        "lm": "AutoModelForCausalLM",
        "none": "AutoModel",
        "labels": "AutoModelForSequenceClassification",
    }
    kind = getattr(transformers, names[KINDS[stage]])
    try:
        with torch.device(device) if device is not None else contextlib.nullcontext():
            model = kind.from_config(configuration(shape, attention), dtype=torch_dtype(dtype))
    except (ImportError, ValueError) as error:
        raise UserError(f"cannot build {shape.name}: {str(error)[:300]}") from error
    return model.eval()


def meta_parameters(shape: Shape, stage: str) -> int:
    """Parameters of the model that transformers builds, counted on the meta device."""
    return sum(parameter.numel() for parameter in build(shape, stage, "bfloat16", "meta").parameters())
