"""Supervised fine-tuning with align-anything's flags on a DeepSpeed engine.

    deepspeed --num_gpus 1 --master_port 29500 --module guardrail.training.sft --model_name_or_path MODEL \
        --train_datasets datasets/sandbox --train_template UltraChat --train_split instruct --output_dir OUT

Writes ``OUT/slice_end/`` (a Hugging Face folder), ``OUT/losses.jsonl`` (one line per optimizer step) and, last,
``OUT/run.json``. A run whose inputs and options are those of ``OUT/run.json`` is not done again.

What happens to awkward input: a row longer than ``--model_max_length`` is cut from the right and counted; a row with no
answer token left is dropped, counted and named in ``run.json`` (kept, without loss, under
``--label_mask align_anything``); a data set smaller than one batch is one short batch per epoch; a loss that is NaN or
infinite stops the run with exit code 2, and no weights are saved.

Known limits: dense causal language models; no tensor or pipeline parallelism; one data set per run.
"""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from guardrail.core.cli import log, run
from guardrail.core.errors import UserError
from guardrail.core.files import clear_leftovers, hash_file, keep_inputs, read_json, write_json, write_jsonl
from guardrail.core.provenance import fingerprint, run_record
from guardrail.core.ranks import barrier, is_main, world_size
from guardrail.data.loss_mask import hash_masked_rows, mask_of
from guardrail.data.prompts import TEMPLATE_FILE, style_fingerprint
from guardrail.data.rows import Row
from guardrail.models.checkpoints import SLICE, hash_checkpoint
from guardrail.models.fetch import local_checkpoint
from guardrail.training.config import SFTConfig, deepspeed_config, parse_config, training_key_options
from guardrail.training.data import TokenisedRows, load_training_rows, tokenise
from guardrail.training.defences import check_setup, make_defence
from guardrail.training.observe import Observer, undisturbed

RUN_FILE = "run.json"
LOSS_FILE = "losses.jsonl"


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train as ``argv`` says; returns the paths written and the headline numbers."""
    return run_training(parse_config(argv))


def run_training(config: SFTConfig, observer: Observer | None = None) -> dict[str, Any]:
    """The run that ``config`` asks for, unless it is done; `main`'s result.

    ``observer`` looks at the model meanwhile and changes nothing (`guardrail.training.observe`).
    """
    keep_inputs("output_dir", config.output_dir, paths_read(config))
    unanswered: list[str] = []
    rows, eval_rows = load_all_rows(config, unanswered)
    inputs = input_hashes(config, rows, eval_rows)
    mark = fingerprint(training_key_options(config), inputs)
    if observer is not None:
        observer.begin(mark)
    finished = finished_run(config, mark)
    if finished is not None and (observer is None or observer.is_complete()):
        log(f"nothing to do: {config.output_dir} holds this run already")
        return finished
    return train(config, rows, eval_rows, inputs, mark, unanswered, observer)


def paths_read(config: SFTConfig) -> dict[str, Path]:
    """What the run reads, by flag (hub names are among them as paths that do not exist)."""
    model = Path(config.model_name_or_path).expanduser()
    out = {"model_name_or_path": model / SLICE if (model / SLICE).is_dir() else model, "ds_cfgs": Path(config.ds_cfgs)}
    for kind in ("train", "eval"):
        if source := getattr(config, f"{kind}_datasets"):
            out[f"{kind}_datasets"] = Path(source)
            if file := getattr(config, f"{kind}_data_files"):
                out[f"{kind}_data_files"] = Path(source) / file
    return out


def load_all_rows(config: SFTConfig, dropped: list[str] | None = None) -> tuple[list[Row], list[Row]]:
    """Training rows, and evaluation rows (empty without ``--eval_datasets``).

    ``dropped`` gets the ids of the training rows that have no answer and were left out.
    """
    dropped = [] if dropped is None else dropped
    rows = load_training_rows(
        config.train_datasets,
        config.train_template,
        config.train_split,
        config.train_name,
        config.train_data_files,
        config.train_size,
        config.max_dropped_fraction,
        dropped,
    )
    n_read = len(rows) + len(dropped)
    if config.train_size and config.train_size > n_read:
        raise UserError(f"--train_size {config.train_size} is larger than the {n_read} rows there are")
    masked = next((row for row in rows if mask_of(row)), None)
    if masked is not None and config.label_mask == "align_anything":
        raise UserError(
            f"row {masked['id']} has a loss_mask, which --label_mask align_anything does not honour; use exact, and "
            "this project's trainer (SFT_MODULE=guardrail.training.sft)"
        )
    if not config.eval_datasets:
        return rows, []
    return rows, load_training_rows(
        config.eval_datasets,
        config.eval_template or config.train_template,
        config.eval_split,
        config.eval_subset,
        config.eval_data_files,
        config.eval_size,
        config.max_dropped_fraction,
    )


def input_hashes(config: SFTConfig, rows: list[Row], eval_rows: list[Row]) -> dict[str, Any]:
    """Hashes of everything besides options that decides the result."""
    return {
        "model": hash_checkpoint(config.model_name_or_path),
        "data": hash_masked_rows(rows),
        "eval_data": hash_masked_rows(eval_rows) if eval_rows else None,
        "template": _template_hash(config),
        "deepspeed": deepspeed_config(config.ds_cfgs),
        "world_size": world_size(),
        **defence_inputs(config),
    }


def defence_inputs(config: SFTConfig) -> dict[str, Any]:
    """Content hashes of what the defence reads; nothing where it reads nothing (so that keys of before stay)."""
    files = make_defence(config.defence, config.defence_options).files()
    return {f"defence.{name}": content_of(path) for name, path in files.items()}


def content_of(path: Path) -> str:
    """The content of a file, or of a checkpoint's folder. Raises ``UserError`` when there is neither."""
    return hash_file(path) if path.is_file() else hash_checkpoint(path)


def _template_hash(config: SFTConfig) -> str:
    """What the prompt style makes of a conversation; align-anything's mask renders texts by the template's own code."""
    if config.label_mask == "align_anything":
        return hash_file(TEMPLATE_FILE)
    return style_fingerprint(config.prompt_style, Path(local_checkpoint(config.model_name_or_path, weights=False)))


def finished_run(config: SFTConfig, mark: str) -> dict[str, Any] | None:
    """The summary of the finished run in ``output_dir`` if it is this one."""
    file = Path(config.output_dir) / RUN_FILE
    weights = Path(config.output_dir) / SLICE
    if not file.is_file() or not any(weights.glob("*.safetensors")):  # a study may have removed them after use
        return None
    record = read_json(file)
    return {**record["summary"], "skipped": True} if record["run"].get("fingerprint") == mark else None


def make_room(output: Path, resume: bool) -> None:
    """Nothing can be refused any more: the old result stops being complete before anything of it changes."""
    output.mkdir(parents=True, exist_ok=True)
    (output / RUN_FILE).unlink(missing_ok=True)
    for old in [output / SLICE] if resume else output.glob("slice_*"):  # resumed: earlier slices are this run's own
        shutil.rmtree(old, ignore_errors=True)
    clear_leftovers(output)


def drop_untrained(data: TokenisedRows) -> tuple[TokenisedRows, list[str]]:
    """Rows with at least one labelled token, and the ids of the others. Raises ``UserError`` when none is left."""
    import numpy as np

    trained = data.trained_counts > 0
    dropped = [data.row_ids[i] for i in np.flatnonzero(~trained)]
    if not trained.any():
        raise UserError(
            "no row has an answer token within --model_max_length: raise it, or check that prompts are not cut rows"
        )
    return (data.select(np.flatnonzero(trained)) if dropped else data), dropped


def train(
    config: SFTConfig,
    rows: list[Row],
    eval_rows: list[Row],
    inputs: dict[str, Any],
    mark: str,
    unanswered: list[str],
    observer: Observer | None = None,
) -> dict:
    """Everything that needs torch: engine, loop, files. ``unanswered``: ids of the rows left out while loading."""
    from guardrail.models.imports import lean_transformers
    from guardrail.models.loading import load_tokenizer
    from guardrail.training import checkpoint
    from guardrail.training.batches import attention_of, line_attention
    from guardrail.training.engine import (
        build_engine,
        check_precision,
        init_distributed,
        load_model,
        n_trained,
        resolved_deepspeed_config,
        zero_stage,
    )
    from guardrail.training.logs import RunLog, flops_per_token, peak_memory_bytes
    from guardrail.training.loop import Trainer, evaluation_loss
    from guardrail.training.whole import check_room, whole

    started = time.perf_counter()
    lean_transformers()
    init_distributed()
    check_precision(config)
    output = Path(config.output_dir)
    tokenizer = load_tokenizer(config.model_name_or_path, config.trust_remote_code)
    if config.label_mask == "align_anything" and tokenizer.eos_token is None:
        raise UserError("--label_mask align_anything needs a tokenizer with an EOS token")
    encode = functools.partial(
        tokenise,
        tokenizer=tokenizer,
        style=config.prompt_style,
        max_length=config.model_max_length,
        label_mask=config.label_mask,
        train_on=config.train_on,
        cache_dir=config.cache_dir,
    )
    defence = make_defence(config.defence, config.defence_options)
    data = encode(defence.rows(rows))
    defence.prepare(encode)
    dropped: list[str] = []
    if config.label_mask == "exact":
        data, dropped = drop_untrained(data)
    n_cut = int((data.full_lengths > data.lengths).sum())
    if n_cut or dropped:
        log(f"{n_cut} rows were cut at {config.model_max_length} tokens; {len(dropped)} rows had no answer left")
    if unanswered:
        log(f"{len(unanswered)} rows without an answer were left out (--max_dropped_fraction)")

    torch_seed(config.seed)
    ds_config = resolved_deepspeed_config(config, world_size())
    check_setup(defence, config.defence, zero_stage(ds_config), config.dtype)
    loaded = load_model(config, ds_config)
    checkpoint.check_disk(config, loaded.n_parameters, loaded.n_trained_parameters)
    usual = loaded.model.config._attn_implementation
    attention = line_attention(loaded.model, config.batching)
    defence.model(loaded.model)
    loaded.n_trained_parameters = n_trained(loaded.model)
    pad_id = tokenizer.pad_token_id or 0
    trainer = Trainer(None, data, config, pad_id, lambda *_: None, lambda _step: None, defence, attention)
    per_epoch = trainer.steps_per_epoch()
    n_steps = min(sum(per_epoch), config.max_steps or sum(per_epoch))
    engine = trainer.engine = build_engine(config, ds_config, loaded.model, n_steps)
    start_step, trainer.losses = checkpoint.load_state(engine, config, mark) if config.resume else (0, [])
    if observer is not None:
        check_room(engine)
    if is_main():
        make_room(output, config.resume)
    if start_step:
        log(f"resuming after step {start_step} of {n_steps}")
    defence.begin(engine)
    flops = flops_per_token(loaded.model.config, loaded.n_parameters, float(data.lengths.mean()))
    run_log = RunLog(config, n_steps, flops, start_step)
    log(f"{len(data)} rows, {n_steps} steps on {world_size()} ranks; start-up {time.perf_counter() - started:.1f} s")

    eval_data = encode(eval_rows) if eval_rows else None
    eval_losses: list[dict[str, float]] = []
    states, weights, evals = pause_steps(config, per_epoch, n_steps, bool(eval_rows))
    looks = frozenset(observer.steps(n_steps)) if observer is not None else frozenset()

    def look(step: int) -> None:
        if observer is not None and step in looks:
            with whole(engine), undisturbed(engine.module), attention_of(engine.module, usual):
                observer.look(step, engine.module, tokenizer)

    def evaluate(step: int) -> None:
        assert eval_data is not None
        loss = evaluation_loss(engine, eval_data, config, trainer.pad_id)
        eval_losses.append({"step": step, "loss": loss})
        run_log.write(step, {"eval/loss": loss})
        log(f"step {step} evaluation loss {loss:.4f}")

    def on_pause(step: int) -> None:
        if step in evals:
            evaluate(step)
        look(step)
        if step in states:
            checkpoint.save_state(engine, config, mark, step, trainer.losses)
        if step in weights:
            checkpoint.save_weights(engine, tokenizer, config, defence, f"slice_{step}")
        run_log.resume_clock()

    trainer.on_log, trainer.on_pause = run_log.train, on_pause
    if eval_rows and not start_step:
        evaluate(0)
    if not start_step:
        look(0)
    training_started = time.perf_counter()
    losses = trainer.train(n_steps, states | weights | evals | looks, start_step)
    training_sec = time.perf_counter() - training_started
    folder = checkpoint.save_weights(engine, tokenizer, config, defence)
    run_log.close()
    summary = {
        "output_dir": str(config.output_dir),
        "checkpoint": str(folder),
        "losses": str(output / LOSS_FILE),
        "n_rows": len(data),
        "n_steps": n_steps,
        "final_loss": losses[-1],
    }
    record = run_record(
        "sft",
        config.as_dict(),
        fingerprint=mark,
        inputs=inputs,
        n=len(data),
        seeds={"seed": config.seed, "data_seed": config.data_seed},
        deepspeed=ds_config,
        attention=attention or usual,
        label_mask_note=_mask_note(config),
        n_rows_cut=n_cut,
        n_rows_masked=sum(bool(mask_of(row)) for row in rows),
        n_dropped=len(unanswered) + len(dropped),
        dropped_ids=[*unanswered, *dropped],
        n_tokens_per_epoch=int(data.lengths.sum()),
        n_trained_tokens_per_epoch=int(data.trained_counts.sum()),
        padding_fraction=1 - trainer.totals.n_real_tokens / max(trainer.totals.n_tokens, 1),
        n_parameters=loaded.n_parameters,
        n_trained_parameters=loaded.n_trained_parameters,
        n_steps=n_steps,
        resumed_after_step=start_step,
        eval_losses=eval_losses,
        startup_sec=round(training_started - started, 3),
        training_sec=round(training_sec, 3),
        steps_per_sec=round((n_steps - start_step) / max(training_sec, 1e-9), 3),
        peak_memory_bytes=peak_memory_bytes(),
    )
    if is_main():
        write_jsonl(output / LOSS_FILE, ({"step": i + 1, "loss": loss} for i, loss in enumerate(losses)))
        write_json(output / RUN_FILE, {"summary": summary, "run": record})
    checkpoint.remove_state(config)
    barrier()
    return summary


def pause_steps(
    config: SFTConfig, per_epoch: list[int], n_steps: int, evaluates: bool
) -> tuple[frozenset[int], frozenset[int], frozenset[int]]:
    """Steps after which resumable state, intermediate weights and evaluation losses are due."""
    epoch_ends = [sum(per_epoch[: i + 1]) for i in range(len(per_epoch))]
    states: set[int] = set()
    if config.save_checkpoint:
        interval = config.checkpoint_interval
        states = set(range(interval, n_steps, interval)) if interval else set(epoch_ends)
    saves = config.save_total_limit
    weights = {round(n_steps * i / saves) for i in range(1, saves)}
    evals: set[int] = set()
    if evaluates:
        steps = range(config.eval_interval, n_steps + 1, config.eval_interval)
        evals = {*(epoch_ends if config.eval_strategy == "epoch" else steps), n_steps}
    last = n_steps - 1  # slice_end follows the last step: neither state nor another weight save is needed there
    return (
        frozenset(step for step in states if 0 < step <= last),
        frozenset(step for step in weights if 0 < step <= last),
        frozenset(step for step in evals if 0 < step <= n_steps),
    )


def _mask_note(config: SFTConfig) -> str:
    if config.label_mask == "exact":
        return "labels on every answer token and its end marker, nothing else"
    return (
        "align-anything's mask: one token too many is masked where the prompt has no EOS, so the first answer token "
        "gets no loss there"
    )


def torch_seed(seed: int) -> None:
    """Seed Python, numpy and torch (dropout, LoRA initialisation)."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def and_leave(entry: Callable[[], dict[str, Any]] = main) -> dict[str, Any]:
    """The result of ``entry``; the process group that it may have joined is left."""
    result = entry()
    import sys

    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        distributed.destroy_process_group()
    return result


if __name__ == "__main__":
    run(and_leave)
