"""Saving: weights as a plain Hugging Face folder; resumable state when asked for.

Weights are gathered on rank 0 (also from ZeRO 3) and written as safetensors under a temporary name. Resumable state
is DeepSpeed's own checkpoint plus random states; ``state.json`` names the newest complete one and is written last.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from guardrail.core.errors import UserError
from guardrail.core.files import atomic_path, read_json, require_free_space, write_json
from guardrail.core.ranks import barrier, is_main, rank, world_size
from guardrail.models.checkpoints import SLICE
from guardrail.training.config import SFTConfig
from guardrail.training.defences import Defence

STATE_FOLDER = "checkpoint"
STATE_FILE = "state.json"
OPTIMIZER_BYTES_PER_PARAMETER = 12  # float32 master weight and two moments
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def weight_bytes(config: SFTConfig, n_parameters: int) -> int:
    return n_parameters * BYTES[config.dtype]


def saved_parameters(config: SFTConfig, n_parameters: int, n_trained: int) -> int:
    """Parameters that a weight save writes: all, or the adapters alone."""
    return n_trained if config.use_lora and not config.save_full_model else n_parameters


def state_bytes(config: SFTConfig, n_parameters: int, n_trained: int) -> int:
    """What one resumable state takes on disk, over all ranks (about)."""
    return weight_bytes(config, n_parameters) + n_trained * OPTIMIZER_BYTES_PER_PARAMETER


def check_disk(config: SFTConfig, n_parameters: int, n_trained: int) -> None:
    """Refuse to start a run whose files will not fit: all weight saves, and two resumable states side by side."""
    if not is_main():
        return
    needed = weight_bytes(config, saved_parameters(config, n_parameters, n_trained)) * config.save_total_limit
    if config.save_checkpoint:
        needed += 2 * state_bytes(config, n_parameters, n_trained)
    require_free_space(config.output_dir, needed)


def gathered_state_dict(engine: Any) -> dict[str, Any] | None:
    """The full state dict on rank 0 (CPU), None elsewhere. Collective."""
    if engine.zero_optimization_stage() == 3:
        return engine._zero3_consolidated_16bit_state_dict()
    if not is_main():
        return None
    return {name: tensor.detach().cpu() for name, tensor in engine.module.state_dict().items()}


def save_weights(engine: Any, tokenizer: Any, config: SFTConfig, defence: Defence, name: str = SLICE) -> Path:
    """Write ``<output_dir>/<name>`` (weights as ``defence`` leaves them, configuration, tokenizer). Collective."""
    folder = Path(config.output_dir) / name
    state = gathered_state_dict(engine)
    if is_main():
        assert state is not None
        model = engine.module
        with atomic_path(folder) as temporary:
            if config.use_lora and not config.save_full_model:
                save_adapter(model.get_base_model(), defence.weights(state), config, temporary)
            else:
                if config.use_lora:
                    from guardrail.training.lora import merged_state_dict

                    state = merged_state_dict(state, config)
                    model = model.get_base_model()
                state = defence.weights(state)
                cached, model.config.use_cache = model.config.use_cache, True
                model.save_pretrained(temporary, state_dict=state)
                model.config.use_cache = cached
            tokenizer.save_pretrained(temporary)
    barrier()
    return folder


def save_adapter(model: Any, state: dict[str, Any], config: SFTConfig, folder: Path) -> None:
    """The adapters with the configuration of their base (``model``): a folder that stands for a whole model."""
    from guardrail.models.adapters import write_adapter
    from guardrail.models.checkpoints import hash_checkpoint
    from guardrail.models.loading import torch_dtype
    from guardrail.training.lora import adapter_pairs

    pairs, base = adapter_pairs(state, config)
    write_adapter(folder, pairs, base, hash_checkpoint(base), torch_dtype(config.dtype))
    cached, model.config.use_cache = model.config.use_cache, True
    model.config.save_pretrained(folder)
    model.config.use_cache = cached
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)


def save_state(engine: Any, config: SFTConfig, fingerprint: str, step: int, losses: list[float]) -> None:
    """Keep resumable state after optimizer step ``step`` (from 1); the previous one goes when this one is whole."""
    folder = Path(config.output_dir) / STATE_FOLDER
    tag = f"step_{step}"
    if is_main():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / tag, ignore_errors=True)
        parameters = list(engine.module.parameters())
        sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in parameters]
        require_free_space(folder, state_bytes(config, sum(n for n, _ in sizes), sum(n for n, t in sizes if t)))
    barrier()
    engine.save_checkpoint(str(folder), tag=tag, save_latest=False)
    _save_random_state(folder / tag / f"random-{rank()}.pt")
    barrier()
    if is_main():
        state = {"fingerprint": fingerprint, "tag": tag, "step": step, "world_size": world_size(), "losses": losses}
        write_json(folder / STATE_FILE, state)
        for other in folder.glob("step_*"):
            if other.name != tag:
                shutil.rmtree(other, ignore_errors=True)
    barrier()


def load_state(engine: Any, config: SFTConfig, fingerprint: str) -> tuple[int, list[float]]:
    """``(finished steps, their losses)``; ``(0, [])`` when there is nothing to continue from.

    Raises ``UserError`` when the state belongs to other data, model, options or number of ranks.
    """
    file = Path(config.output_dir) / STATE_FOLDER / STATE_FILE
    if not file.is_file():
        return 0, []
    state = read_json(file)
    if state["world_size"] != world_size():
        raise UserError(
            f"{file.parent} was written by {state['world_size']} ranks and this run has {world_size()}; "
            "resume with as many, or remove the folder to start again"
        )
    if state["fingerprint"] != fingerprint:
        raise UserError(
            f"{file.parent} belongs to a run with other data, model or options; "
            "give the same ones, another --output_dir, or remove the folder to start again"
        )
    loaded, _ = engine.load_checkpoint(str(file.parent), tag=state["tag"])
    if loaded is None:
        raise UserError(f"{file.parent}/{state['tag']} cannot be loaded; remove {file.parent} to start again")
    _load_random_state(file.parent / state["tag"] / f"random-{rank()}.pt")
    return int(state["step"]), list(state["losses"])


def remove_state(config: SFTConfig) -> None:
    if is_main():
        shutil.rmtree(Path(config.output_dir) / STATE_FOLDER, ignore_errors=True)


def _save_random_state(file: Path) -> None:
    import torch

    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    with atomic_path(file) as temporary:
        torch.save(state, temporary)


def _load_random_state(file: Path) -> None:
    import torch

    state = torch.load(file, weights_only=True)
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
