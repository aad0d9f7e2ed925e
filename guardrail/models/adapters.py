"""A folder with a low-rank adapter as a checkpoint: weights of its base plus ``alpha / r * B A``, added when loaded.

    folder/adapter_config.json  adapter_model.safetensors      peft's files
    folder/config.json  tokenizer files                        the base's, so that the folder stands for a whole model
    folder/base.json                                           content hash of the base, checked before it is used

The base is always a plain checkpoint: an adapter that was trained on top of another is stored as both together
(`stacked`: ranks add), so that no chain of folders has to stay. Nothing merged is written to disk. Transformers models
get the sum in memory (`add_adapter`); vLLM applies the adapter itself (`guardrail.generation.vllm_engine`).

``W' = W + (alpha / r) B A`` (Hu et al. 2021, arXiv 2106.09685, section 4.1); the sum is made in float32.
Known limit: plain LoRA on linear layers; DoRA, rank-stabilised LoRA and per-layer ranks are refused.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.core.errors import UserError
from guardrail.core.files import read_json

CONFIG_FILE = "adapter_config.json"
WEIGHT_FILE = "adapter_model.safetensors"
BASE_FILE = "base.json"
PREFIX = "base_model.model."
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
UNSUPPORTED = ("use_dora", "use_rslora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save")
Pairs = dict[str, tuple[Any, Any]]


@dataclass(frozen=True)
class Adapter:
    """An adapter folder: what it is added to, and how."""

    folder: Path
    base: str
    rank: int
    alpha: float
    base_hash: str | None


def is_adapter(folder: str | Path) -> bool:
    return (Path(folder) / CONFIG_FILE).is_file()


def read_adapter(folder: str | Path) -> Adapter | None:
    """The adapter in ``folder``; None for another folder and for a hub name. Raises ``UserError``: not supported."""
    folder = Path(folder)
    if not is_adapter(folder):
        return None
    config = read_json(folder / CONFIG_FILE)
    try:
        base, rank, alpha = config["base_model_name_or_path"], int(config["r"]), float(config["lora_alpha"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / CONFIG_FILE} is no LoRA configuration: {type(error).__name__} {error}") from error
    odd = [name for name in UNSUPPORTED if config.get(name)]
    if odd or config.get("bias", "none") != "none":
        raise UserError(f"{folder}: adapters with {', '.join(odd or ['bias'])} are not supported; merge it with peft")
    if base.startswith((".", "/", "~")) and not Path(base).expanduser().is_dir():
        raise UserError(
            f"{folder} is an adapter of {base}, which is not there; make it again, or name its place in "
            f"base_model_name_or_path of {CONFIG_FILE}"
        )
    known = read_json(folder / BASE_FILE)["hash"] if (folder / BASE_FILE).is_file() else None
    return Adapter(folder, base, rank, alpha, known)


def read_pairs(adapter: Adapter) -> Pairs:
    """Module name -> (A of shape (r, in), B of shape (out, r)), float32; B holds the factor ``alpha / r`` already."""
    from safetensors.torch import load_file

    tensors = load_file(str(adapter.folder / WEIGHT_FILE))
    scale = adapter.alpha / adapter.rank
    pairs = {}
    for name, down in tensors.items():
        if not name.endswith(DOWN):
            continue
        stem = name.removesuffix(DOWN)
        up = tensors.get(stem + UP)
        if up is None:
            raise UserError(f"{adapter.folder / WEIGHT_FILE} lacks {stem + UP}; copy the adapter again")
        pairs[stem.removeprefix(PREFIX)] = (down.float(), up.float() * scale)
    if 2 * len(pairs) != len(tensors):
        raise UserError(f"{adapter.folder / WEIGHT_FILE} holds other tensors than LoRA's A and B; merge it with peft")
    return pairs


def check_base(adapter: Adapter, found: str) -> None:
    """Refuse a base of another content than the adapter was trained on; ``found`` is its hash now."""
    if adapter.base_hash is not None and adapter.base_hash != found:
        raise UserError(
            f"{adapter.folder} was trained on another {adapter.base} than the one that is there now (hash "
            f"{adapter.base_hash}, now {found}); train it again"
        )


def add_adapter(model: Any, adapter: Adapter) -> None:
    """Add ``adapter`` to the weights of ``model`` (its base, with or without head), in place.

    Raises ``UserError`` for a module that the model has not or whose shape is another.
    """
    import torch

    modules = dict(model.named_modules())
    head = f"{model.base_model_prefix}."
    for name, (down, up) in read_pairs(adapter).items():
        module = modules.get(name) or modules.get(name.removeprefix(head))
        weight = getattr(module, "weight", None)
        if weight is None:
            raise UserError(f"{adapter.folder} changes {name}, which {adapter.base} has not; is it its base?")
        shape = tuple(getattr(weight, "ds_shape", weight.shape))
        if shape != (up.shape[0], down.shape[1]):
            raise UserError(f"{adapter.folder}: {name} is {shape} in {adapter.base}, the adapter is for another shape")
        if weight.device.type == "meta":
            continue  # only looked at
        with torch.no_grad(), _whole(weight):
            change = up.to(weight.device) @ down.to(weight.device)
            weight.copy_((weight.float() + change).to(weight.dtype))


def _whole(weight: Any) -> Any:
    """The weight in one piece where ZeRO 3 has spread it over the ranks."""
    if not hasattr(weight, "ds_id"):
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([weight], modifier_rank=0)


def stacked(first: Pairs, second: Pairs) -> Pairs:
    """One adapter that adds what ``first`` and ``second`` add: ``B1 A1 + B2 A2 = [B1 B2] [A1; A2]``.

    A module that only one of them changes gets rows of zeros, so that all ranks are equal.
    """
    import torch

    ranks = [next(iter(pairs.values()))[0].shape[0] for pairs in (first, second)]
    out = {}
    for name in dict.fromkeys((*first, *second)):
        down, up = next(pairs[name] for pairs in (first, second) if name in pairs)
        parts = [
            pairs.get(name, (down.new_zeros(rank, down.shape[1]), up.new_zeros(up.shape[0], rank)))
            for pairs, rank in zip((first, second), ranks, strict=True)
        ]
        out[name] = (torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts], dim=1))
    return out


def write_adapter(folder: Path, pairs: Pairs, base: str, base_hash: str, dtype: Any) -> None:
    """Write peft's two files and the base's hash into ``folder``; ``pairs`` as `read_pairs` gives them."""
    from peft import LoraConfig, TaskType
    from safetensors.torch import save_file

    from guardrail.core.files import write_json

    rank = next(iter(pairs.values()))[0].shape[0]
    settings = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=rank,  # the factor is in B
        target_modules=sorted({name.rsplit(".", 1)[-1] for name in pairs}),
        inference_mode=True,
        base_model_name_or_path=os.path.abspath(base) if Path(base).is_dir() else base,
    )
    folder.mkdir(parents=True, exist_ok=True)
    settings.save_pretrained(str(folder))
    tensors = {}
    for name, (down, up) in pairs.items():
        tensors[f"{PREFIX}{name}{DOWN}"] = down.to(dtype).contiguous()
        tensors[f"{PREFIX}{name}{UP}"] = up.to(dtype).contiguous()
    save_file(tensors, str(folder / WEIGHT_FILE), metadata={"format": "pt"})
    write_json(folder / BASE_FILE, {"hash": base_hash})
