"""The speed goals on one GPU, each measured and set against its goal: training, extraction, generation, moderation.

    python benchmarks/gpu_goals.py --output benchmarks/results/gpu_goals.json      # one H200 or the like
    python benchmarks/gpu_goals.py --only extract,moderate
    python benchmarks/gpu_goals.py --small True --only sft,extract,moderate   # on a CPU

Goals: `sft` of the 7B shape with LoRA at 50% of the data sheet's bf16 peak or more (MFU; of the 1.3B shape, all
weights, where 7B does not fit); `extract` at 65% of the measured rate of matrix products, and ten times one row at a
time; `generate` (vLLM) at 0.9 of vLLM's own throughput benchmark; `moderate` at ten times one row at a time.

Each stage runs in a process of its own (`python -m guardrail.bench`), so that its memory is its own. Full rows of equal
length: what a packed batch is made of. Known limits: one GPU; random weights, so nothing about quality. It has not been
run on a GPU by its authors (none at hand).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from guardrail.core.cli import Parser, boolean, log, run
from guardrail.core.errors import UserError, unknown
from guardrail.core.files import write_json

REPOSITORY = Path(__file__).resolve().parents[1]
GOALS = {
    "sft_mfu_fraction": 0.5,
    "extract_share_of_matrix_product_rate_fraction": 0.65,
    "extract_times_one_row_at_a_time": 10.0,
    "generate_share_of_vllm_benchmark_fraction": 0.9,
    "moderate_times_one_row_at_a_time": 10.0,
}
STAGES = ("sft", "extract", "generate", "moderate")
VLLM_SIZES = {"n_prompts": 512, "prompt_tokens": 512, "new_tokens": 256}
SMALL = {  # a CPU's sizes
    "shape": "sandbox",
    "dtype": "float32",
    "batch_size": "8",
    "row_tokens": "64",
    "steps": "2",
    "bucket_numbers": "100000",
}


def build_parser() -> Parser:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", default="llama2-7b", help="shape of every stage")
    parser.add_argument("--only", default=",".join(STAGES), help="which stages, with commas")
    parser.add_argument("--small", type=boolean, default=False, help="sizes for a CPU: shows that it runs")
    parser.add_argument("--output", default="", help="also write the result to this file")
    return parser


def bench(flags: dict[str, str]) -> dict[str, Any]:
    """One run of ``python -m guardrail.bench`` with ``--run always``; what it measured. Raises ``UserError``."""
    command = [sys.executable, "-m", "guardrail.bench", "--run", "always"]
    command += [part for name, value in flags.items() for part in (f"--{name}", value)]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"{' '.join(command[1:])} failed with exit code {done.returncode}; its reason is above")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["measured"]
    return found


def sft(shape: str, small: dict[str, str]) -> dict[str, Any]:
    """7B with adapters; the 1.3B shape with all weights where that is refused."""
    base = {"stage": "sft", "zero_stage": "0", "gradient_checkpointing": "False"}
    large = {"shape": shape, "use_lora": "True", "batch_size": "4", "row_tokens": "2048"}
    fallback = {"shape": "llama-1.3b", "batch_size": "8", "row_tokens": "2048"}
    if small:
        return {**bench({**base, **small}), "shape": small["shape"]}
    try:
        return {**bench({**base, **large}), "shape": shape}
    except UserError as error:
        log(f"{error}; trying llama-1.3b with all weights")
        return {**bench({**base, **fallback}), "shape": "llama-1.3b"}


def extract(shape: str, small: dict[str, str]) -> dict[str, Any]:
    return bench({"stage": "extract", "shape": shape, "row_tokens": "512", "batch_size": "64", **small})


def moderate(shape: str, small: dict[str, str]) -> dict[str, Any]:
    """Short rows, as question-answer pairs are: one at a time they leave a GPU idle."""
    return bench({"stage": "moderate", "shape": shape, "row_tokens": "128", "batch_size": "128", **small})


def generate(shape: str, small: dict[str, str]) -> dict[str, Any]:
    """Answers of our vLLM backend against vLLM's own throughput benchmark, on one checkpoint of random weights."""
    if small:
        raise UserError("--small True has no generate: vLLM's benchmark takes minutes on a CPU; leave it out of --only")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        worker = [sys.executable, str(Path(__file__)), "--write_checkpoint", shape, str(folder)]
        if subprocess.run(worker).returncode:
            raise UserError(f"cannot write a checkpoint of {shape}; its reason is above")
        own = [sys.executable, str(Path(__file__)), "--vllm_worker", str(folder), str(Path(name) / "ours.json")]
        if subprocess.run(own).returncode:
            raise UserError("our vLLM backend failed; its reason is above")
        ours = json.loads((Path(name) / "ours.json").read_text())
        sizes = VLLM_SIZES
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", "throughput", "--model", str(folder)]
        command += ["--dtype", "bfloat16", "--dataset-name", "random", "--num-prompts", str(sizes["n_prompts"])]
        command += ["--input-len", str(sizes["prompt_tokens"]), "--output-len", str(sizes["new_tokens"])]
        command += ["--output-json", str(Path(name) / "theirs.json")]
        if subprocess.run(command, stdout=sys.stderr).returncode:
            raise UserError("vLLM's own benchmark failed; its reason is above")
        theirs = json.loads((Path(name) / "theirs.json").read_text())
    share = ours["total_tokens_per_sec"] / float(theirs["tokens_per_second"])
    return {**ours, "vllm_benchmark": theirs, "share_of_vllm_benchmark_fraction": share}


def write_checkpoint(shape: str, folder: str) -> None:
    """Random bf16 weights with a small tokenizer (ids are given, so its texts do not matter)."""
    from guardrail.bench.build import build
    from guardrail.bench.shapes import find_shape
    from guardrail.models.loading import pick_device
    from guardrail.sandbox.tokenizer import train_tokenizer

    build(find_shape(shape), "generate", "bfloat16", pick_device()).save_pretrained(folder)
    train_tokenizer(["Where does the river go? To the quiet sea, they say."]).save_pretrained(folder)


def vllm_worker(folder: str, output: str) -> None:
    """Seconds of one call of our backend after a warm-up, all answers at full length."""
    from guardrail.bench.shapes import find_shape
    from guardrail.bench.workloads import random_ids
    from guardrail.generation import Request, SamplingOptions
    from guardrail.generation.vllm_engine import VLLMBackend

    class Endless(VLLMBackend):
        eos_ids = ()  # random weights: an EOS by chance would make the work smaller than the benchmark's

    sizes = VLLM_SIZES
    ids = random_ids(find_shape(folder), sizes["n_prompts"], sizes["prompt_tokens"])
    requests = [Request(str(i), 0, row.tolist()) for i, row in enumerate(ids)]
    backend = Endless(folder, "bfloat16")
    options = SamplingOptions(True, 1.0, 1.0, 0, sizes["new_tokens"], 0)
    backend.generate(requests[:8], options)
    started = time.perf_counter()
    done = backend.generate(requests, options)
    seconds = time.perf_counter() - started
    new = sum(completion.n_completion_tokens for completion in done)
    total = new + sizes["n_prompts"] * sizes["prompt_tokens"]
    found = {"seconds": seconds, "new_tokens": new, "total_tokens_per_sec": total / seconds}
    Path(output).write_text(json.dumps(found))


RUN: dict[str, Callable[[str, dict[str, str]], dict[str, Any]]] = {
    "sft": sft,
    "extract": extract,
    "generate": generate,
    "moderate": moderate,
}


def verdicts(measured: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each goal of the stages that ran: its value, whether it is reached; None where this device cannot say."""
    out = {}
    for name, goal in GOALS.items():
        stage, _, key = name.partition("_")
        if stage in measured:
            value = measured[stage].get(key)
            out[name] = {"value": value, "goal": goal, "reached": None if value is None else value >= goal}
    return out


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = build_parser().parse_args(argv)
    names = [name.strip() for name in args.only.split(",")]
    for name in names:
        if name not in RUN:
            raise unknown("stage", name, STAGES)
    from guardrail.core.provenance import run_record

    measured = {}
    for name in names:
        log(f"== {name}")
        measured[name] = RUN[name](args.shape, dict(SMALL) if args.small else {})
    result = {
        "goals": verdicts(measured),
        "measured": measured,
        "run": run_record("benchmark_gpu_goals", {**vars(args), "load_average": list(os.getloadavg())}, n=len(names)),
    }
    if args.output:
        write_json(Path(args.output), result)
    return result


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write_checkpoint"]:
        write_checkpoint(*sys.argv[2:4])
    elif sys.argv[1:2] == ["--vllm_worker"]:
        vllm_worker(*sys.argv[2:4])
    else:
        run(main)
