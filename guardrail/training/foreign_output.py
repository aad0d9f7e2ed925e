"""What a foreign SFT trainer leaves behind, read: losses from its logs, the arguments it used, weights as safetensors.

Losses are looked for in our own ``losses.jsonl``, in TensorBoard's event files and in the run files of Weights & Biases
(every run keeps one on disk). Anything that is missing, unreadable or does not fit the run is one ``UserError``.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guardrail.core.errors import UserError
from guardrail.core.files import read_jsonl, write_json
from guardrail.models.checkpoints import check_checkpoint_files, read_object
from guardrail.training.trainers import OUR_TRAINER

LOSS_TAG = "train/loss"
WANDB_MAGIC = b":W&B\xe1\xbe\x00"
WANDB_BLOCK = 32768  # the log format of LevelDB: blocks of this size, records cut at their borders
ARGUMENTS = "arguments.yaml"
WEIGHTS = "model.safetensors"


def find_losses(folder: Path) -> tuple[str, dict[int, float]]:
    """``(which log, {step: loss})`` of the run that wrote into ``folder``; steps as the trainer counts them, from 1.

    Raises ``UserError`` when no log has a loss.
    """
    readers = (("losses.jsonl", own_losses), ("tensorboard", tensorboard_losses), ("wandb", wandb_losses))
    for name, read in readers:
        if losses := read(folder):
            return name, losses
    raise UserError(
        f"the trainer left no losses in {folder}: no losses.jsonl, no TensorBoard events and no Weights & Biases run "
        f"with {LOSS_TAG}; run it with LOG_TYPE=tensorboard"
    )


def own_losses(folder: Path) -> dict[int, float]:
    """From a file of our own form, which a foreign trainer may write too."""
    file = folder / "losses.jsonl"
    if not file.is_file():
        return {}
    rows = [row for _, row in read_jsonl(file)]
    try:
        return {int(row["step"]): float(row["loss"]) for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: expected a step and a loss in every row ({error!r})") from error


def tensorboard_losses(folder: Path) -> dict[int, float]:
    """From event files, with TensorBoard's own reader (which stops at a record that was cut off)."""
    if not any(folder.glob("events.out.tfevents.*")):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    if LOSS_TAG not in events.Tags()["scalars"]:
        return {}
    return {event.step: event.value for event in events.Scalars(LOSS_TAG)}


def wandb_losses(folder: Path) -> dict[int, float]:
    """From the run file of Weights & Biases: its client has no reader, but ships the form of the records."""
    losses: dict[int, float] = {}
    for file in sorted(folder.glob("wandb/*run-*/run-*.wandb")):
        from wandb.proto import wandb_internal_pb2

        for data in wandb_records(file):
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(data)
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            if LOSS_TAG in items:
                step = items.get("train/step", items.get("_step", str(record.history.step.num)))
                losses[int(float(step))] = float(json.loads(items[LOSS_TAG]))
    return losses


def wandb_records(file: Path) -> Iterator[bytes]:
    """The records of a run file in their order; those after a cut are left out."""
    data = file.read_bytes()
    if not data.startswith(WANDB_MAGIC):
        raise UserError(f"{file} is no run file of Weights & Biases that this can read; use LOG_TYPE=tensorboard")
    place, parts = len(WANDB_MAGIC), b""
    while place + 7 <= len(data):
        if WANDB_BLOCK - place % WANDB_BLOCK < 7:  # too little for a header: zeros up to the next block
            place += WANDB_BLOCK - place % WANDB_BLOCK
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]  # after a checksum
        part = data[place + 7 : place + 7 + length]
        if kind not in (1, 2, 3, 4) or len(part) < length:
            return
        parts = part if kind in (1, 2) else parts + part
        if kind in (1, 4):  # whole, or the last part
            yield parts
        place += 7 + length


def step_losses(losses: dict[int, float], accumulation: int, expected: int, where: str) -> list[float]:
    """One loss per optimizer step, from a loss per micro-batch (mean of ``accumulation`` of them).

    Args:
        losses: micro-batch, counted from 1 -> loss.
        expected: micro-batches of the whole run; 0: as many as there are.

    Raises ``UserError`` for a run that ended early, has a gap, or became NaN. Micro-batches after the last optimizer
    step updated nothing and are left out.
    """
    expected = expected or max(losses)
    absent = [step for step in range(1, expected + 1) if step not in losses]
    if absent:
        raise UserError(
            f"the trainer's log ({where}) has no loss for step {absent[0]} of {expected}: it ended too early"
        )
    if max(losses) > expected:
        raise UserError(
            f"the trainer's log ({where}) has {max(losses)} steps where the data make {expected}: other rows, batch "
            "size or number of processes than it was told"
        )
    values = [losses[step] for step in range(1, expected + 1)]
    broken = next((i for i, value in enumerate(values, 1) if not math.isfinite(value)), None)
    if broken is not None:
        raise UserError(f"the loss became {values[broken - 1]} at step {broken} of {expected}: lower the learning rate")
    if expected < accumulation:
        raise UserError(f"the run has {expected} micro-batches, fewer than gradient_accumulation_steps {accumulation}")
    starts = range(0, expected - accumulation + 1, accumulation)
    return [sum(values[start : start + accumulation]) / accumulation for start in starts]


def read_arguments(folder: Path) -> dict[str, Any]:
    """Every setting that align-anything resolved, by name (the groups of its file are flattened); empty: no file."""
    import yaml

    file = folder / ARGUMENTS
    if not file.is_file():
        return {}
    try:
        groups = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {str(error).splitlines()[0]}") from error
    if not isinstance(groups, dict):
        raise UserError(f"{file}: expected groups of settings, got {type(groups).__name__}")
    flat: dict[str, Any] = {}
    for name, value in groups.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return {name: None if value == {} else value for name, value in flat.items()}  # its file has {} for nothing


def check_arguments(arguments: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse a run whose trainer understood another value than it was given. Raises ``UserError``."""
    for name, value in wanted.items():
        if name in arguments and not _same(arguments[name], value):
            raise UserError(f"the trainer used {name} {arguments[name]!r} where {value!r} was asked for")


def _same(there: Any, wanted: Any) -> bool:
    if isinstance(wanted, tuple | list):
        return isinstance(there, list) and [str(item) for item in there] == [str(item) for item in wanted]
    if isinstance(wanted, bool) or isinstance(there, bool) or wanted is None or there is None:
        return there == wanted
    if isinstance(wanted, float | int) and isinstance(there, float | int):
        return math.isclose(there, wanted)
    return str(there) == str(wanted)


def finish_weights(folder: Path, base: str | Path) -> dict[str, Any]:
    """Make ``folder`` a plain checkpoint: weights as safetensors, their own type in the configuration.

    ``torch``'s format is read without unpickling code and goes when the safetensors are whole. A configuration that
    says another type than the weights have, or that the cache is off, is mended: it was written for training. What ends
    an answer (``generation_config.json``) is taken from ``base`` where the trainer left none.

    Raises ``UserError`` where weights, configuration or tokenizer are missing or cut off, and where the tensors are not
    those of ``base``.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"the trainer left no model in {folder}: no config.json")
    torch_files = sorted(folder.glob("pytorch_model*.bin"))
    if torch_files and not any(folder.glob("*.safetensors")):
        check_checkpoint_files(folder)
        _convert(folder, torch_files)
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"the trainer left no weights in {folder} (*.safetensors or pytorch_model.bin)")
    for file in (*torch_files, folder / "pytorch_model.bin.index.json"):
        file.unlink(missing_ok=True)
    check_checkpoint_files(folder)
    types, shapes = tensors_of(folder)
    config = read_object(folder / "config.json")
    check_tensors(shapes, tensors_of(Path(base))[1], bool(config.get("tie_word_embeddings")))
    name = "dtype" if "dtype" in config else "torch_dtype"
    told = config.get(name)
    if len(types) == 1:
        config[name] = types[0]
    write_json(folder / "config.json", {**config, "use_cache": True}, indent=2)
    given = Path(base) / "generation_config.json"
    if given.is_file() and not (folder / given.name).is_file():
        write_json(folder / given.name, read_object(given), indent=2)
    return {
        "format": "torch" if torch_files else "safetensors",
        "dtype": types[0] if len(types) == 1 else types,
        "config_said_dtype": told,
        "n_tensors": len(shapes),
    }


def _convert(folder: Path, files: list[Path]) -> None:
    """The tensors of ``files`` as safetensors, sharded as the hub does."""
    import torch
    from huggingface_hub import save_torch_state_dict

    state: dict[str, Any] = {}
    for file in files:
        try:
            state |= torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch raises a dozen types; the file is what the user needs to know
            raise UserError(f"cannot read the trainer's weights {file}: {str(error).splitlines()[0][:200]}") from error
    tensors = {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
    if not tensors:
        raise UserError(f"the trainer's weights {files[0]} hold no tensor")
    if read_object(folder / "config.json").get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)  # the embedding, as transformers saves it
    # DeepSpeed's 16-bit weights lie in one buffer under ZeRO 2, which safetensors takes for shared weights
    apart = {
        name: one if one.untyped_storage().nbytes() == one.nbytes else one.clone() for name, one in tensors.items()
    }
    save_torch_state_dict(apart, folder, metadata={"format": "pt"})
    for file in folder.glob("*.safetensors"):
        shutil.copymode(folder / "config.json", file)  # it makes them readable for the user alone


def tensors_of(folder: Path) -> tuple[list[str], dict[str, tuple[int, ...]]]:
    """The types of a checkpoint's tensors (sorted, as ``float32``), and name -> shape, of its safetensors files."""
    from safetensors import safe_open

    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    found, shapes = set(), {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 - no mapping
                part = handle.get_slice(name)
                found.add(names.get(part.get_dtype(), part.get_dtype()))
                shapes[name] = tuple(part.get_shape())
    return sorted(found), shapes


def check_tensors(shapes: dict[str, tuple[int, ...]], base: dict[str, tuple[int, ...]], tied: bool) -> None:
    """Refuse weights that are not the base model's tensors, trained: adapters' names, parts of what was spread out.

    ``base`` is empty where it has no safetensors; then only tensors without a value are found. Rows of the vocabulary
    may have been added. Tables of rotary positions in old checkpoints count for nothing.
    """
    again = f"; this training needs SFT_MODULE={OUR_TRAINER} or another DS_CONFIG"
    empty = [name for name, shape in shapes.items() if 0 in shape]
    if empty:
        raise UserError(f"the trainer saved {len(empty)} tensors without a value, the first: {empty[0]}{again}")
    if not base:
        return
    ignored = {"lm_head.weight"} if tied else set()
    for name in sorted(shapes.keys() ^ base.keys()):
        if name not in ignored and not name.endswith("inv_freq"):
            what = "left out" if name in base else "added"
            raise UserError(f"the trainer {what} the tensor {name} of the model that it started from{again}")
    for name in shapes.keys() & base.keys():
        grown = shapes[name][1:] == base[name][1:] and shapes[name][:1] > base[name][:1]
        if shapes[name] != base[name] and not (grown and ("embed" in name or "lm_head" in name)):
            raise UserError(f"the trainer saved {name} as {shapes[name]}, and the model has {base[name]}{again}")


def log_files(folder: Path) -> list[Path]:
    """What is worth keeping beside the weights: the trainer's logs and arguments, not its copy of the environment.

    ``environ.txt`` of align-anything holds every variable of the shell, keys of the hub among them.
    """
    kept = list(folder.glob("events.out.tfevents.*"))
    return [*kept, *(path for path in (folder / ARGUMENTS, folder / "wandb") if os.path.lexists(path))]
