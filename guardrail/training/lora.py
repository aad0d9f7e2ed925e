"""Low-rank adapters through peft, and what is stored of a gathered state dict (any ZeRO stage): merged, or adapters."""

from __future__ import annotations

from typing import Any

from guardrail.core.errors import UserError, unknown
from guardrail.models.adapters import PREFIX, Pairs, read_adapter, read_pairs, stacked
from guardrail.models.checkpoints import resolve_checkpoint
from guardrail.training.config import SFTConfig

ADAPTER = ".default"


def add_adapters(model: Any, config: SFTConfig) -> Any:
    """The model with trainable adapters in ``target_modules`` (linear layers) and everything else frozen."""
    import torch

    from guardrail.models.imports import SPREAD, real

    real(SPREAD)  # peft reads it and leaves its import to others
    from peft import LoraConfig, TaskType, get_peft_model

    kinds = {name.rsplit(".", 1)[-1]: type(module) for name, module in model.named_modules()}
    linear = sorted(name for name, kind in kinds.items() if issubclass(kind, torch.nn.Linear) and name != "lm_head")
    for target in config.target_modules:
        if target not in linear:
            raise unknown("target module", target, linear)
    if not config.target_modules:
        raise UserError(f"--target_modules is empty; choose from {', '.join(linear)}")
    settings = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(config.target_modules),
    )
    return get_peft_model(model, settings)


def merged_state_dict(state: dict[str, Any], config: SFTConfig) -> dict[str, Any]:
    """Base weights plus ``alpha / r * B A`` under the base model's names. The sum is made in float32.

    ``W' = W + (alpha / r) B A`` (Hu et al. 2021, arXiv 2106.09685, section 4.1).
    """
    scale = config.lora_alpha / config.r
    out: dict[str, Any] = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            continue
        plain = name.removeprefix(PREFIX)
        stem, base_layer, suffix = plain.partition(".base_layer.")
        if not base_layer:
            out[plain] = tensor
            continue
        if suffix == "weight":
            down = state[f"{PREFIX}{stem}.lora_A{ADAPTER}.weight"].float()  # (r, in)
            up = state[f"{PREFIX}{stem}.lora_B{ADAPTER}.weight"].float()  # (out, r)
            tensor = (tensor.float() + scale * (up @ down)).to(tensor.dtype)
        out[f"{stem}.{suffix}"] = tensor
    return out


def adapter_pairs(state: dict[str, Any], config: SFTConfig) -> tuple[Pairs, str]:
    """The adapters of ``state``, as `guardrail.models.adapters` stores them, and the plain checkpoint they belong to.

    Trained on top of an adapter, they are stored together with it: later stages read one adapter of one base.
    """
    scale, mark = config.lora_alpha / config.r, f".lora_A{ADAPTER}.weight"
    pairs: Pairs = {}
    for name, down in state.items():
        if name.endswith(mark):
            stem = name.removesuffix(mark)
            up = state[f"{stem}.lora_B{ADAPTER}.weight"]
            pairs[stem.removeprefix(PREFIX)] = (down.float(), up.float() * scale)
    base = resolve_checkpoint(config.model_name_or_path)
    below = read_adapter(base)
    return (pairs, base) if below is None else (stacked(read_pairs(below), pairs), below.base)
