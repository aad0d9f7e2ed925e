"""The DeepSpeed engine: distributed start-up, model, optimizer, schedule.

Nothing is compiled at start-up: the optimizer is torch's fused AdamW (the same update as DeepSpeed's FusedAdam, also
for offloaded states), and the CPU shared-memory collective, which DeepSpeed would build, is left out for gloo.
"""

from __future__ import annotations

import copy
import os
import socket
from dataclasses import dataclass
from typing import Any

from guardrail.core.errors import UserError
from guardrail.training.config import SFTConfig, deepspeed_config

NO_DECAY = ("bias", "norm.weight", "layer_norm.weight", "layernorm.weight", "ln_f.weight")


def init_distributed() -> None:
    """Join the ranks that the launcher started; without a launcher, be the only one."""
    import torch

    if torch.distributed.is_initialized():
        return
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if "RANK" not in os.environ:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            port = server.getsockname()[1]
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    import deepspeed

    on_cpu = os.environ.get("DS_ACCELERATOR") == "cpu"
    if on_cpu:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled for half a minute
        deepspeed.ops.__compatible_ops__["deepspeed_ccl_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo" if on_cpu else None, verbose=False)
    if torch.cuda.is_available() and not on_cpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def check_precision(config: SFTConfig) -> None:
    """Refuse a precision that DeepSpeed refuses on this device, in its words but before a model is loaded."""
    from deepspeed.accelerator import get_accelerator

    device = get_accelerator()
    if config.fp16 and not device.is_fp16_supported():
        needed = "a CPU with avx512_fp16 or amx_fp16" if device.device_name() == "cpu" else "compute capability 7.0"
        raise UserError(f"--fp16 True is not supported on this device (DeepSpeed needs {needed}); use --bf16 True")
    if config.bf16 and not device.is_bf16_supported():
        raise UserError("--bf16 True is not supported on this device; use --bf16 False --fp16 True")


def resolved_deepspeed_config(config: SFTConfig, world_size: int) -> dict[str, Any]:
    """The file's settings with what the command line decides: batch sizes, precision, clipping."""
    out = copy.deepcopy(deepspeed_config(config.ds_cfgs))
    out["train_micro_batch_size_per_gpu"] = config.per_device_train_batch_size
    out["gradient_accumulation_steps"] = config.gradient_accumulation_steps
    out["train_batch_size"] = config.per_device_train_batch_size * config.gradient_accumulation_steps * world_size
    out["gradient_clipping"] = config.max_grad_norm
    out.setdefault("bf16", {})["enabled"] = config.bf16
    out.setdefault("fp16", {})["enabled"] = config.fp16
    out.setdefault("steps_per_print", 10**9)
    out["zero_allow_untested_optimizer"] = True
    out["zero_force_ds_cpu_optimizer"] = False
    return out


def zero_stage(ds_config: dict[str, Any]) -> int:
    return int(ds_config.get("zero_optimization", {}).get("stage", 0))


@dataclass
class Loaded:
    """A model ready for the engine. ``keep_alive`` must live as long as the model (ZeRO-3's loading hook)."""

    model: Any
    keep_alive: Any
    n_parameters: int
    n_trained_parameters: int


def partition_while_loading(ds_config: dict[str, Any]) -> Any:
    """ZeRO 3: the hook with which transformers partitions weights as it makes them; keep it alive. Else None."""
    if zero_stage(ds_config) != 3:
        return None
    from transformers.integrations import HfDeepSpeedConfig

    return HfDeepSpeedConfig(ds_config)


def load_model(config: SFTConfig, ds_config: dict[str, Any]) -> Loaded:
    """Weights in the training dtype, partitioned while they load under ZeRO 3, with LoRA adapters when asked."""
    from transformers import AutoModelForCausalLM

    from guardrail.models.loading import load_complete

    keep_alive = partition_while_loading(ds_config)
    options: dict[str, Any] = {}
    if config.attn_implementation:
        options["attn_implementation"] = config.attn_implementation
    model = load_complete(
        AutoModelForCausalLM, config.model_name_or_path, config.dtype, config.trust_remote_code, **options
    )
    return prepare_model(model, config, keep_alive)


def prepare_model(model: Any, config: SFTConfig, keep_alive: Any = None) -> Loaded:
    """A causal LM as it is trained: adapters and checkpointing as asked, no cache."""
    if config.use_lora:
        from guardrail.training.lora import add_adapters

        model = add_adapters(model, config)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if config.use_lora:
            model.enable_input_require_grads()
    model.config.use_cache = False
    n_all = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters())
    return Loaded(model, keep_alive, n_all, n_trained(model))


def n_trained(model: Any) -> int:
    """How many parameters are trained (whole ones, also under ZeRO 3)."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad)


def parameter_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Trained parameters with and without weight decay (biases and norms), as align-anything groups them."""
    decayed: list[Any] = []
    other: list[Any] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (other if any(part in name for part in NO_DECAY) else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": other, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_engine(config: SFTConfig, ds_config: dict[str, Any], model: Any, n_steps: int) -> Any:
    """A ``DeepSpeedEngine`` in training mode with optimizer and learning-rate schedule over ``n_steps``."""
    import deepspeed
    import torch

    from guardrail.models.imports import import_schedules

    get_scheduler = import_schedules().get_scheduler
    optimizer = torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.learning_rate,
        betas=config.adam_betas,
        eps=config.adam_epsilon,
        fused=True,
    )
    scheduler = get_scheduler(
        config.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=int(config.lr_warmup_ratio * n_steps),
        num_training_steps=n_steps,
    )
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, lr_scheduler=scheduler, config=ds_config)
    engine.train()
    return engine
