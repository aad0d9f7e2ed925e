"""Training speed: a plain PyTorch loop, this trainer, and align-anything's where it is.

    python benchmarks/training.py                                   # CPU, the 1M-parameter sandbox model, batch 8
    python benchmarks/training.py --align_anything_python aa-env/bin/python
    python benchmarks/training.py --preset llama_1b3                # one GPU: 1.3B random weights, bf16, 2048 tokens

All contenders see the same rows. The in-process ones take turns in short blocks, so that a busy machine slows them
alike; ratios are medians over the rounds. align-anything runs in its own process between two halves of the rounds.
``ours_over_plain``, ``ours_over_align_anything`` (both padded) and ``padding_free_over_padded`` are ratios of steps per
second; ``packed_over_padded_tokens`` and ``padding_free_over_padded_tokens`` of real tokens per second on rows with a
long tail of lengths and no beginning in common. Known limits: one process, no ZeRO partitioning; the GPU preset has not
been run by its authors (no GPU at hand).
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from guardrail.core.cli import Parser, log, positive_int, run
from guardrail.core.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[1]
PRESETS = ("sandbox", "llama_1b3")
TAIL_ROWS = 600


def build_parser() -> Parser:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="sandbox", help="model and sizes")
    parser.add_argument("--model", default="models/sandbox/base", help="sandbox preset: the model folder")
    parser.add_argument("--dataset", default="datasets/sandbox", help="rows for the comparison of trainers")
    parser.add_argument("--split", default="instruct", help="their split")
    parser.add_argument("--batch_size", type=positive_int, default=8, help="rows per step")
    parser.add_argument("--rounds", type=positive_int, default=7, help="times every contender takes its turn")
    parser.add_argument("--block", type=positive_int, default=10, help="steps per turn")
    parser.add_argument("--align_anything_python", default=os.environ.get("ALIGN_ANYTHING_PYTHON"))
    parser.add_argument("--align_anything_steps", type=positive_int, default=30, help="its steps; the first 5 warm up")
    parser.add_argument("--out", help="also write the result to this file")
    return parser


def trainer(arguments: dict[str, Any], data: Any | None = None) -> Any:
    """This project's trainer with a real DeepSpeed engine, ready to step. ``data`` replaces the tokenised rows."""
    from guardrail.models.loading import load_tokenizer
    from guardrail.training import engine, sft
    from guardrail.training.batches import line_attention
    from guardrail.training.config import parse_config
    from guardrail.training.data import tokenise
    from guardrail.training.loop import Trainer

    config = parse_config([part for key, value in arguments.items() for part in (f"--{key}", str(value))])
    engine.init_distributed()
    tokenizer = load_tokenizer(config.model_name_or_path)
    if data is None:
        rows, _ = sft.load_all_rows(config)
        data = tokenise(rows, tokenizer, style=config.prompt_style, max_length=config.model_max_length)
    settings = engine.resolved_deepspeed_config(config, 1)
    loaded = engine.load_model(config, settings)
    attention = line_attention(loaded.model, config.batching)
    built = engine.build_engine(config, settings, loaded.model, 10**6)
    return Trainer(
        built, data, config, tokenizer.pad_token_id, lambda *_: None, lambda _step: None, attention=attention
    )


def steps_of(ours: Any) -> Iterator[int]:
    """Endless optimizer steps of our trainer; yields the real tokens of each. Losses reach the host every 10 steps."""
    trained, epoch, pending = ours.data.trained_counts, 0, []
    while True:
        for step in ours.plan(epoch):
            before = ours.totals.n_real_tokens
            pending.append(ours._step(step, trained))
            if len(pending) == ours.config.logging_steps:
                ours._flush(0, pending)
                pending = []
            yield ours.totals.n_real_tokens - before
        epoch += 1


def plain_steps(model_folder: str, data: Any, batch_size: int, dtype: Any, learning_rate: float) -> Iterator[int]:
    """Endless steps of the loop one would write by hand: transformers' loss, a mask, AdamW, clipping."""
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype).to(device).train()
    model.config.use_cache = False
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), fused=True)
    generator = torch.Generator().manual_seed(0)
    ids = [torch.from_numpy(data.input_ids(i).astype("int64")) for i in range(len(data))]
    labels = [torch.from_numpy(data.labels(i)) for i in range(len(data))]
    pad = torch.nn.utils.rnn.pad_sequence
    while True:
        order = torch.randperm(len(data), generator=generator).tolist()
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            lengths = [len(ids[i]) for i in rows]
            batch = {
                "input_ids": pad([ids[i] for i in rows], batch_first=True),
                "labels": pad([labels[i] for i in rows], batch_first=True, padding_value=-100),
                "attention_mask": pad([torch.ones(n, dtype=torch.long) for n in lengths], batch_first=True),
            }
            loss = model(**{key: value.to(device) for key, value in batch.items()}).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
            yield sum(lengths)


def turn(steps: Iterator[int], count: int) -> tuple[float, float, float]:
    """``(steps per second, real tokens per second, steps per processor second)`` of the next ``count`` steps."""
    import torch

    tokens, start, start_cpu = 0, time.perf_counter(), time.process_time()
    for _ in range(count):
        tokens += next(steps)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return count / seconds, tokens / seconds, count / (time.process_time() - start_cpu)


def take_turns(
    contenders: dict[str, Iterator[int]], rounds: int, block: int, between: Callable[[int], None] | None = None
) -> dict[str, list[tuple[float, float, float]]]:
    """Rounds in which every contender has one block; ``between(round)`` runs before each round."""
    for steps in contenders.values():
        turn(steps, 3)  # warm-up
    out: dict[str, list[tuple[float, float, float]]] = {name: [] for name in contenders}
    for number in range(rounds):
        if between is not None:
            between(number)
        for name, steps in contenders.items():
            out[name].append(turn(steps, block))
    return out


def median_ratio(rounds: dict[str, list[tuple[float, float, float]]], over: str, under: str, column: int) -> float:
    return statistics.median(a[column] / b[column] for a, b in zip(rounds[over], rounds[under], strict=True))


def long_tail(vocabulary: int, longest: int, n_rows: int = TAIL_ROWS) -> Any:
    """Rows of random tokens with log-normal lengths (median 60, sigma 1), cut at ``longest``; all of them trained."""
    import numpy as np

    from guardrail.training.data import TokenisedRows

    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(60), 1.0, n_rows), 8, longest).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    spans = np.stack([np.arange(n_rows), np.zeros(n_rows, np.int64), lengths], axis=1)
    ids = rng.integers(5, vocabulary, offsets[-1]).astype(np.int32)
    return TokenisedRows(ids, offsets, spans, lengths, tuple(str(i) for i in range(n_rows)))


def align_anything(args: Any, flags: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """Steps and real tokens per second of align-anything's own trainer in its environment; None without one."""
    python = args.align_anything_python
    if python is None:
        return None
    launcher = Path(python).parent / "deepspeed"
    if not launcher.is_file():
        raise UserError(f"no deepspeed launcher beside {python}; see requirements-align-anything.txt")
    record = folder / "align_anything.json"
    keys = ("model_name_or_path", "train_datasets", "train_template", "train_split", "model_max_length", "bf16")
    own = {key: flags[key] for key in (*keys, "gradient_checkpointing", "per_device_train_batch_size", "learning_rate")}
    own |= {"output_dir": folder / "aa", "save_checkpoint": False}
    own["train_size"] = args.align_anything_steps * args.batch_size
    command = [launcher, "--num_gpus", "1", REPOSITORY / "benchmarks" / "align_anything_reference.py"]
    command += ["--record_out", record, "--record_rows", "0"]
    command += [part for key, value in own.items() for part in (f"--{key}", value)]
    environment = {**os.environ, "ZERO_STAGE_FILE": flags["ds_cfgs"], "WANDB_MODE": "offline"}
    environment["PATH"] = f"{launcher.parent}{os.pathsep}{os.environ['PATH']}"
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "VIRTUAL_ENV"):
        environment.pop(name, None)
    done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"align-anything's trainer failed: {done.stderr.strip().splitlines()[-1][:300]}")
    value = json.loads(record.read_text())
    ends, tokens = value["step_end_sec"], value["n_real_tokens"]
    seconds = [b - a for a, b in itertools.pairwise(ends[5:])]
    cpu_seconds = [b - a for a, b in itertools.pairwise(value["step_end_cpu_sec"][5:])]
    return {
        "steps_per_sec": 1 / statistics.median(seconds),
        "real_tokens_per_sec": statistics.median(t / s for t, s in zip(tokens[6:], seconds, strict=True)),
        "steps_per_cpu_sec": 1 / statistics.median(cpu_seconds),
        "peak_memory_bytes": value["peak_memory_bytes"],
        "parameter_dtype": value["parameter_dtype"],
        "versions": value["versions"],
    }


def gpu_model(folder: Path) -> str:
    """A LLaMA of 1.3B parameters with random bf16 weights and the golden test tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sys.path.insert(0, str(REPOSITORY / "tests" / "training"))
    import toy

    tokenizer = toy.golden_tokenizer(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000, hidden_size=2048, intermediate_size=5504, num_hidden_layers=24, num_attention_heads=16
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = build_parser().parse_args(argv)
    import torch

    on_gpu = args.preset == "llama_1b3"
    if on_gpu and not torch.cuda.is_available():
        raise UserError("--preset llama_1b3 needs a GPU; leave it out to measure on this machine's CPU")
    with tempfile.TemporaryDirectory() as name:
        result = measure(args, on_gpu, Path(name))
    if args.out:
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def measure(args: Any, on_gpu: bool, folder: Path) -> dict[str, Any]:
    import torch

    from guardrail.core.provenance import run_record
    from guardrail.training.logs import flops_per_token, peak_flops, peak_memory_bytes

    flags: dict[str, Any] = {
        "model_name_or_path": gpu_model(folder / "model") if on_gpu else args.model,
        "train_datasets": args.dataset,
        "train_template": "UltraChat",
        "train_split": args.split,
        "output_dir": folder / "out",
        "model_max_length": 2048 if on_gpu else 512,
        "bf16": on_gpu,
        "ds_cfgs": "ds_z0_config.json",
        "gradient_checkpointing": False,
        "per_device_train_batch_size": args.batch_size,
        "learning_rate": 1e-4,
        "log_type": "none",
    }
    log("same rows: plain loop and this trainer")
    ours = trainer(flags)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    plain = plain_steps(flags["model_name_or_path"], ours.data, args.batch_size, dtype, 1e-4)
    theirs: list[dict[str, Any] | None] = []

    def between(number: int) -> None:
        if number == args.rounds // 2:
            log("align-anything" if args.align_anything_python else "align-anything: not given, left out")
            theirs.append(align_anything(args, flags, folder))

    free = trainer({**flags, "batching": "padding_free"})
    contenders = {"plain": plain, "ours": steps_of(ours), "ours_padding_free": steps_of(free)}
    rounds = take_turns(contenders, args.rounds, args.block, between)
    log("long tail of lengths: padded, padding-free and packed")
    longest = int(flags["model_max_length"])
    tail = long_tail(ours.engine.module.config.vocab_size, longest)
    # as many tokens per step either way: B rows of mean length m, or B m / L sequences of L tokens
    n_sequences = max(1, round(args.batch_size * float(tail.lengths.mean()) / longest))
    padded = trainer(flags, tail)
    packed = trainer({**flags, "batching": "packed", "per_device_train_batch_size": n_sequences}, tail)
    free = trainer({**flags, "batching": "padding_free"}, tail)
    contenders = {"padded": steps_of(padded), "padding_free": steps_of(free), "packed": steps_of(packed)}
    tails = take_turns(contenders, args.rounds, args.block)
    ratios = {
        "ours_over_plain": median_ratio(rounds, "ours", "plain", 0),
        "padding_free_over_padded": median_ratio(rounds, "ours_padding_free", "ours", 0),
        "ours_over_align_anything": None,
        "packed_over_padded_tokens": median_ratio(tails, "packed", "padded", 1),
        "padding_free_over_padded_tokens": median_ratio(tails, "padding_free", "padded", 1),
    }
    speed = {
        name: {
            "steps_per_sec": statistics.median(value[0] for value in values),
            "real_tokens_per_sec": statistics.median(value[1] for value in values),
            "steps_per_cpu_sec": statistics.median(value[2] for value in values),
        }
        for name, values in {**rounds, **tails}.items()
    }
    if theirs and theirs[0] is not None:
        speed["align_anything"] = theirs[0]
        half = args.rounds // 2
        near = rounds["ours"][max(half - 1, 0) : half + 1]  # the rounds just before and after its run
        ratios["ours_over_align_anything"] = statistics.mean(value[0] for value in near) / theirs[0]["steps_per_sec"]
    peak = peak_flops()
    if peak:
        model_config = packed.engine.module.config
        n = sum(p.numel() for p in packed.engine.module.parameters())
        flops = flops_per_token(model_config, n, float(tail.lengths.mean()))
        speed["packed"]["mfu_fraction"] = speed["packed"]["real_tokens_per_sec"] * flops / peak
    by_cpu_time = {
        f"ours_over_{name}": round(speed["ours"]["steps_per_cpu_sec"] / speed[name]["steps_per_cpu_sec"], 3)
        for name in ("plain", "align_anything")
        if name in speed
    }
    return {
        "ratios_by_processor_time": by_cpu_time,  # steadier on a busy machine
        "ratios": {key: None if value is None else round(value, 3) for key, value in ratios.items()},
        "speed": speed,
        "tail": {
            "n_rows": len(tail),
            "mean_tokens": float(tail.lengths.mean()),
            "longest_tokens": int(tail.lengths.max()),
            "packed_sequences_per_step": n_sequences,
        },
        "peak_memory_bytes": peak_memory_bytes(),
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()),
        "run": run_record("benchmark_training", vars(args), n=len(ours.data)),
    }


if __name__ == "__main__":
    run(main)
