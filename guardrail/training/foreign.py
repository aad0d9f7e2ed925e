"""Run another project's SFT trainer in the place of ours, and record what it left.

    SFT_MODULE=align_anything.trainers.text_to_text.sft bash scripts/sft.sh        (scripts/setup.sh calls this)
    python -m guardrail.training.foreign deepspeed --num_gpus 1 --module MODULE -- FLAGS OF guardrail.training.sft

What the trainer cannot do is refused first (`guardrail.training.trainers`). It runs as it is, into a temporary folder
of the output folder. When it has ended well, its losses, arguments and weights are read
(`guardrail.training.foreign_output`), the weights move into place, and ``losses.jsonl`` and ``run.json`` are written as
our own trainer writes them. So a run that was killed has no record, whatever it saved. A module must leave a model in
``slice_end`` and a log of its losses.

Known limits: nothing resumes; losses are those of rank 0.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import os
import shutil
import sys
import time
import uuid
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from guardrail.core.cli import log, run
from guardrail.core.errors import UserError
from guardrail.core.files import (
    clear_leftovers,
    keep_inputs,
    read_json,
    require_free_space,
    write_json,
    write_jsonl,
)
from guardrail.core.launch import launch
from guardrail.core.nodes import read_hostfile
from guardrail.core.options import options_of, read_options
from guardrail.core.provenance import fingerprint, run_record
from guardrail.data.loss_mask import mask_of
from guardrail.models.checkpoints import SLICE, resolve_checkpoint
from guardrail.training import foreign_output as output_of
from guardrail.training.config import SFTConfig, build_parser, check_config, deepspeed_config, training_key_options
from guardrail.training.trainers import (
    ALIGN_ANYTHING,
    OUR_TRAINER,
    as_trained,
    check_package,
    choose_trainer,
    is_known,
    not_honoured,
    package_folder,
    refuse,
    trainer_hash,
    trainer_of,
)

LOSS_FILE, RUN_FILE = "losses.jsonl", "run.json"  # as `guardrail.training.sft` has them


def parse_flags(flags: Sequence[str]) -> tuple[SFTConfig, set[str]]:
    """Flags of our trainer as a checked configuration, and the names of those that were given.

    Options that our own trainer accepts with one value only (quantised weights, say) may have any value here.
    """
    config = read_options(SFTConfig, build_parser().parse_args(flags))
    ours: dict[str, Any] = {item.name: item.default for item in options_of(SFTConfig) if item.metadata["only"]}
    check_config(dataclasses.replace(config, **ours))
    return config, {flag[2:].split("=")[0] for flag in flags if flag.startswith("--")}


def foreign_flags(module: str, config: SFTConfig, given: Collection[str], folder: Path, log_type: str) -> list[str]:
    """The command line of the trainer: the options that were given and that it reads, as ``--name value`` pairs."""
    trainer = trainer_of(module)
    left_out = {*trainer.actual, *trainer.ignored, *trainer.environment}
    always = {"output_dir", "log_type"} | ({"save_checkpoint"} if "save_checkpoint" in trainer.actual else set())
    values = {
        item.name: getattr(config, item.name)
        for item in options_of(SFTConfig)
        if item.name in always or (item.name in given and item.name not in left_out and is_known(module, item.name))
    }
    values |= {
        "output_dir": folder,
        "log_type": log_type,
        "model_name_or_path": resolve_checkpoint(config.model_name_or_path),
    }
    if trainer is ALIGN_ANYTHING and config.use_lora:  # its own default, `TaskType.CAUSAL_LM`, is none for its peft
        values["task_type"] = config.task_type.rpartition(".")[2]
    texts = {name: _text(value) for name, value in values.items() if value is not None}
    return [part for name, text in texts.items() for part in (f"--{name}", text)]


def _text(value: Any) -> str:
    return f"[{','.join(value)}]" if isinstance(value, tuple) else str(value)


def count_ranks() -> int:
    """Processes of the training: those of this node, or the slots of all nodes in ``HOSTFILE``."""
    if hostfile := os.environ.get("HOSTFILE"):
        return sum(node.slots for node in read_hostfile(Path(hostfile)))
    return int(os.environ.get("NUM_PROCESSES") or 1)


def train(module: str, launcher: Sequence[str], flags: Sequence[str]) -> dict[str, Any]:
    """Run the trainer with the command ``launcher`` and record what it left; returns the summary of ``run.json``."""
    from guardrail.training.sft import finished_run, input_hashes, load_all_rows, paths_read

    asked, given = parse_flags(flags)
    check_package(module)
    refuse(module, asked, given)
    config, changed = as_trained(module, asked), not_honoured(module, asked)
    keep_inputs("output_dir", config.output_dir, paths_read(config))
    unanswered: list[str] = []
    rows, eval_rows = load_all_rows(config, unanswered)
    if unanswered:
        raise UserError(
            f"{len(unanswered)} rows of {config.train_datasets} have no answer (the first: {unanswered[0]}), and "
            f"{trainer_of(module).name} leaves no row out: remove them, or train with SFT_MODULE={OUR_TRAINER}"
        )
    if masked := next((row for row in rows if mask_of(row)), None):
        raise UserError(
            f"row {masked['id']} has a loss_mask, and {trainer_of(module).name} trains on whole answers: leave such "
            f"rows out, or train with SFT_MODULE={OUR_TRAINER}"
        )
    ranks = count_ranks()
    inputs = {**input_hashes(config, rows, eval_rows), "world_size": ranks, "trainer": trainer_hash(module)}
    inputs["deepspeed"] = deepspeed_file(module, config)
    mark = fingerprint({**training_key_options(config), "trainer": module}, inputs)
    if (finished := finished_run(config, mark)) is not None:
        log(f"nothing to do: {config.output_dir} holds this run already")
        return finished
    for name, values in changed.items():
        log(f"{trainer_of(module).name}: {name} is {values['done']!r}, whatever was asked for ({values['asked']!r})")

    log_type = config.log_type
    if log_type == "none" or (log_type == "wandb" and os.environ.get("WANDB_MODE") in ("disabled", "dryrun")):
        log_type = "tensorboard"  # the losses of the record come from its log
    os.environ.update(
        {variable: str(getattr(config, name)) for name, variable in trainer_of(module).environment.items()}
    )
    folder = new_folder(config)
    command = [*launcher, *foreign_flags(module, config, given, folder, log_type)]
    started = time.time()
    try:
        code = launch(command)
        if code != 0:
            raise UserError(f"{module} ended with exit code {code}; its own messages are above this line")
        expected = 0
        if trainer_of(module) is ALIGN_ANYTHING:  # a distributed sampler pads: the batches of every rank are the same
            expected = config.epochs * math.ceil(math.ceil(len(rows) / ranks) / config.per_device_train_batch_size)
        facts = read_output(folder, config, given, expected)
        losses = facts.pop("losses")
        facts |= {"training_sec": round(time.time() - started, 3), "steps_per_sec": None}
        facts["steps_per_sec"] = round(len(losses) / max(facts["training_sec"], 1e-9), 3)
        move_into_place(folder, Path(config.output_dir))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    record = run_record(
        "sft",
        config.as_dict(),
        fingerprint=mark,
        inputs=inputs,
        n=len(rows),
        seeds={"seed": config.seed, "data_seed": config.data_seed},
        trainer={"module": module, "version": package_version(module), "content": inputs["trainer"]},
        not_honoured=changed,
        command=[part.replace(str(folder), config.output_dir) for part in command],
        deepspeed=inputs["deepspeed"],
        n_steps=len(losses),
        n_ranks=ranks,
        **facts,
    )
    return write_run(Path(config.output_dir), losses, len(rows), record)


def deepspeed_file(module: str, config: SFTConfig) -> dict[str, Any]:
    """What the trainer's DeepSpeed file says: align-anything reads its own of the same name."""
    folder = package_folder(module) if trainer_of(module) is ALIGN_ANYTHING else None
    return read_json(folder / "configs" / "deepspeed" / config.ds_cfgs) if folder else deepspeed_config(config.ds_cfgs)


def package_version(module: str) -> str | None:
    names = importlib.metadata.packages_distributions().get(module.split(".")[0], [])
    return importlib.metadata.version(names[0]) if names else None


def new_folder(config: SFTConfig) -> Path:
    """A private folder for the trainer inside the output folder (what it writes there may hold keys of the shell).

    Those of killed runs go. Refuses a disk without room for the weights twice: as the trainer saves them, and as
    safetensors.
    """
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    clear_leftovers(output)
    base = Path(resolve_checkpoint(config.model_name_or_path))
    if base.is_dir():
        files = [file for file in base.iterdir() if file.suffix in (".safetensors", ".bin")]
        require_free_space(output, 2 * sum(file.stat().st_size for file in files))
    folder = output.resolve() / f".trainer.tmp-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    folder.mkdir(mode=0o700)
    return folder


def read_output(folder: Path, config: SFTConfig, given: Collection[str], expected: int) -> dict[str, Any]:
    """Check and finish what the trainer wrote into ``folder``; the facts of the record, ``losses`` among them.

    ``expected``: micro-batches of the run, 0 where that is not known. Raises ``UserError`` for what is incomplete.
    """
    arguments = output_of.read_arguments(folder)
    # paths of outputs are the temporary folder's, and the model's is the resolved one
    compared = {name: getattr(config, name) for name in given if hasattr(config, name)}
    changed = ("output_dir", "log_type", "log_run_name", "log_project", "model_name_or_path", "task_type")
    for name in (*changed, "ds_cfgs", "data_seed"):
        compared.pop(name, None)
    output_of.check_arguments(arguments, compared)
    source, logged = output_of.find_losses(folder)
    accumulation = 1 if source == LOSS_FILE else config.gradient_accumulation_steps
    if source == LOSS_FILE:
        expected = 0  # one line per optimizer step already
    losses = output_of.step_losses(logged, accumulation, expected, source)
    if not (folder / SLICE).is_dir():
        raise UserError(f"the trainer left no weights: there is no {SLICE} in its output folder")
    slices = [path for path in folder.glob("slice_*") if path.is_dir() and path.name != SLICE]
    for path in slices:  # every run of align-anything saves the last step twice
        if path.name == f"slice_{max(logged)}" or config.save_total_limit == 1:
            shutil.rmtree(path)
        else:
            output_of.finish_weights(path, resolve_checkpoint(config.model_name_or_path))
    weights = output_of.finish_weights(folder / SLICE, resolve_checkpoint(config.model_name_or_path))
    return {"losses": losses, "losses_from": source, "arguments": arguments, "weights": weights}


def move_into_place(folder: Path, output: Path) -> None:
    """Weights and logs from the trainer's folder into the output folder, whose old result goes first."""
    from guardrail.training.sft import make_room

    make_room(output, resume=False)
    for path in (*folder.glob("slice_*"), *output_of.log_files(folder)):
        target = output / path.name
        if path.name == "wandb" and target.is_dir():  # runs of earlier trainings stay
            for one in path.iterdir():
                if not (target / one.name).exists():
                    os.rename(one, target / one.name)
        else:
            os.replace(path, target)


def write_run(output: Path, losses: list[float], n_rows: int, record: dict[str, Any]) -> dict[str, Any]:
    """``losses.jsonl``, then ``run.json``: the summary that our own trainer gives, and the record."""
    summary = {
        "output_dir": str(output),
        "checkpoint": str(output / SLICE),
        "losses": str(output / LOSS_FILE),
        "n_rows": n_rows,
        "n_steps": len(losses),
        "final_loss": losses[-1],
    }
    write_jsonl(output / LOSS_FILE, ({"step": i, "loss": loss} for i, loss in enumerate(losses, 1)))
    write_json(output / RUN_FILE, {"summary": summary, "run": record})
    return summary


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--choose"]:
        module, reason = choose_trainer([parse_flags(arguments[1:])])
        log(f"trainer: {module} ({reason})")
        return {"module": module}
    if "--" not in arguments or "--module" not in arguments[: arguments.index("--")]:
        raise UserError("usage: python -m guardrail.training.foreign LAUNCHER ... --module MODULE -- FLAGS")
    launcher, flags = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    return train(launcher[launcher.index("--module") + 1], launcher, flags)


if __name__ == "__main__":
    run(main)
