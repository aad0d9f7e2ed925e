"""Speed and memory of extraction and selection against reference loops, in one run, interleaved; JSON out.

    python benchmarks/similarity.py --output outputs/benchmarks/similarity.json          (about 5 minutes on two cores)
    python benchmarks/similarity.py --scale 0.05 --output /dev/null                      (a smoke run)

Extraction: a random LLaMA (8 layers, width 512, vocabulary 32k), rows with log-normal lengths. The reference is the
public loop: one row at a time, all layers' hidden states, full-vocabulary logits and a loss that is thrown away.
Tokenising is left out on both sides. Selection: 20k x 5k x 1024, against the bare matrix product and against
scikit-learn's cosine_similarity followed by a full sort of every row. Memory: 200k x 20k x 256 in a fresh process.
With a GPU: a LLaMA-2-7B-shaped model with random weights in bf16 against the measured bf16 matrix rate and the batch-1
reference, and 1M x 100k x 4096 against the bare product. Without one these are reported as not run.
Every ratio is the median over --repeats of ratios of neighbouring runs: other load on the machine hits both sides.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from guardrail.core.cli import Parser, log, positive_int, run
from guardrail.core.files import write_json

GOALS = {
    "extraction_over_reference": ">= 2.0",
    "selection_over_sklearn": ">= 1.6",
    "selection_time_over_matmul": "<= 1.15",
    "memory_beyond_inputs_mib": "<= 256",
    "extraction_over_reference_gpu": ">= 10",
    "extraction_fraction_of_matrix_rate_gpu": ">= 0.65",
}


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", default="outputs/benchmarks/similarity.json", help="JSON file")
    parser.add_argument("--repeats", type=positive_int, default=5, help="interleaved repetitions")
    parser.add_argument("--scale", type=float, default=1.0, help="shrinks every size, for smoke runs")
    parser.add_argument("--threads", type=positive_int, help="CPU threads (default: torch's own)")
    parser.add_argument(
        "--clock", default="wall", choices=("wall", "cpu"), help="wall or processor time (busy machine)"
    )
    parser.add_argument("--parts", default="extraction,selection,memory,gpu", help="which parts, with commas")
    return parser


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Wall seconds and result; waits for the GPU where there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def interleave(
    sides: dict[str, Callable[[], Any]], repeats: int, clock: str = "wall"
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Run all sides in turn, ``repeats`` times after one warm-up; seconds and last results per side.

    ``clock`` ``cpu`` counts this process's processor time over all its threads: less disturbed where other work
    shares the machine, and the honest cost where threads wait for one another.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    results: dict[str, Any] = {}
    for repeat in range(repeats + 1):
        for name, function in sides.items():
            before = time.process_time()
            elapsed, results[name] = timed(function)
            if repeat:
                seconds[name].append(time.process_time() - before if clock == "cpu" else elapsed)
    return seconds, results


def median_ratio(numerator: list[float], denominator: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(numerator, denominator, strict=True)), 3)


def bench_extraction(
    folder: Path, repeats: int, scale: float, clock: str = "wall", big: bool = False
) -> dict[str, Any]:
    """Reference loop against ``HfRunner`` on the same model and the same token sequences."""
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from guardrail.similarity.representations.hidden_states import HfRunner
    from guardrail.similarity.representations.options import model_facts, resolve_options
    from guardrail.similarity.representations.sequences import TokenSequence

    layers, width, inner, heads = (32, 4096, 11008, 32) if big else (8, 512, 1376, 8)
    if scale < 1:
        layers, width, inner = max(2, int(layers * scale)), 64, 128
    device = torch.device("cuda" if big and torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
    )
    torch.set_default_dtype(dtype)
    with device:
        model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    path = folder / ("llama_7b_shape" if big else "llama_small")
    path.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(path)
    (path / "model.safetensors").touch()  # the runner gets the module itself; only config.json is read
    generator = np.random.default_rng(0)
    n = max(8, int((512 if big else 192) * scale))
    lengths = np.clip(generator.lognormal(mean=4.6, sigma=0.7, size=n), 16, 1024).astype(int)
    sequences = [
        TokenSequence(generator.integers(3, 32_000, size=length).tolist(), {"eos": (length - 1, length)}, length)
        for length in lengths.tolist()
    ]

    def reference() -> Any:
        out = []
        with torch.inference_mode():
            for sequence in sequences:
                ids = torch.tensor([sequence.input_ids], device=device)
                mask = torch.ones_like(ids)
                result = model(ids, labels=ids, attention_mask=mask, output_hidden_states=True)
                out.append(result.hidden_states[-1][0, -1].float().cpu())
        return torch.stack(out)

    facts = model_facts(str(path))
    options = resolve_options(facts)
    runner = HfRunner.from_module(model.model, options, facts, pad_id=0)

    def ours() -> Any:
        out = torch.full((n, width), float("nan"))
        for rows, values in runner.run(list(enumerate(sequences))):
            out[rows] = values[options.views[0]]
        return out

    seconds, results = interleave({"reference": reference, "ours": ours}, repeats, clock)
    tokens = int(lengths.sum())
    difference = float((results["reference"] - results["ours"]).abs().max())
    out = {
        "shape": {"layers": layers, "width": width, "vocabulary": 32_000, "rows": n, "tokens": tokens},
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "seconds": seconds,
        "tokens_per_sec": {name: round(tokens / statistics.median(values)) for name, values in seconds.items()},
        "batch_tokens": runner.budget.tokens,
        "largest_difference": difference,
        "extraction_over_reference": median_ratio(seconds["reference"], seconds["ours"]),
    }
    if device.type == "cuda":
        weights = sum(p.numel() for name, p in model.model.named_parameters() if "embed" not in name)
        rate = matrix_rate(dtype, device)
        out["matrix_tflops"] = round(rate / 1e12, 1)
        out["fraction_of_matrix_rate"] = round(2 * weights * out["tokens_per_sec"]["ours"] / rate, 3)
    return out


def matrix_rate(dtype: Any, device: Any, size: int = 8192) -> float:
    """Measured FLOP/s of a square matrix product, best of five."""
    import torch

    a = torch.randn(size, size, device=device, dtype=dtype)
    b = torch.randn(size, size, device=device, dtype=dtype)
    torch.mm(a, b)
    return 2 * size**3 / min(timed(lambda: torch.mm(a, b))[0] for _ in range(5))


def bench_selection(repeats: int, scale: float, clock: str = "wall") -> dict[str, Any]:
    """Scores and ranking: ours, the bare product into a ready (N, M) matrix, scikit-learn with a full sort."""
    import numpy as np
    import torch
    from sklearn.metrics.pairwise import cosine_similarity

    from guardrail.similarity.scorers import cosines
    from guardrail.similarity.selection import ranking

    N, M, D = max(200, int(20_000 * scale)), max(50, int(5_000 * scale)), max(32, int(1024 * scale))
    generator = torch.Generator().manual_seed(0)
    pool, anchors = torch.randn(N, D, generator=generator), torch.randn(M, D, generator=generator)
    product = torch.empty(N, M)

    def ours() -> Any:
        return ranking.rank_rows(cosines.score_pool(pool, anchors, device=torch.device("cpu")))

    def sklearn() -> Any:
        similarity = np.sort(cosine_similarity(pool.numpy(), anchors.numpy()), axis=1)[:, ::-1]
        return np.argsort(-similarity[:, :1].mean(axis=1), kind="stable")

    sides = {"ours": ours, "matmul": lambda: torch.mm(pool, anchors.T, out=product), "sklearn": sklearn}
    seconds, results = interleave(sides, repeats, clock)
    same = float((results["ours"][:1000] == results["sklearn"][:1000]).mean())
    return {
        "shape": {"pool": N, "anchors": M, "width": D},
        "seconds": seconds,
        "same_order_first_1000_fraction": same,
        "selection_over_sklearn": median_ratio(seconds["sklearn"], seconds["ours"]),
        "selection_time_over_matmul": median_ratio(seconds["ours"], seconds["matmul"]),
    }


MEMORY_PROGRAM = """
import json, sys, time, torch
from guardrail.similarity.scorers import cosines
from guardrail.similarity.selection import ranking
N, M, D, threads = map(int, sys.argv[1:])
if threads: torch.set_num_threads(threads)
pool, anchors = torch.randn(N, D), torch.randn(M, D)
cosines.score_pool(pool[:64], anchors[:64])
def memory(name):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(name))
open("/proc/self/clear_refs", "w").write("5")  # the peak starts again from here: imports had a higher one
before, start = memory("VmRSS"), time.perf_counter()
ranking.rank_rows(cosines.score_pool(pool, anchors))
print(json.dumps({"inputs_mib": round(4 * (N + M) * D / 2**20, 1),
                  "similarity_matrix_would_be_mib": round(4 * N * M / 2**20, 1),
                  "memory_beyond_inputs_mib": round(memory("VmHWM") - before, 1),
                  "seconds": round(time.perf_counter() - start, 2)}))
"""


def bench_memory(scale: float, threads: int | None) -> dict[str, Any]:
    """Peak resident memory of a selection beyond its inputs, in a process of its own."""
    sizes = [max(500, int(200_000 * scale)), max(100, int(20_000 * scale)), 256]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_PROGRAM, *map(str, sizes), str(threads or 0)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[1],
    )
    return {"shape": dict(zip(("pool", "anchors", "width"), sizes, strict=True)), **json.loads(done.stdout)}


def bench_gpu(folder: Path, repeats: int, scale: float) -> dict[str, Any]:
    """7B-shaped extraction and million-row selection; says so where there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        return {"not_run": "no GPU on this machine"}
    from guardrail.similarity.scorers import cosines

    extraction = bench_extraction(folder, max(1, repeats // 2), scale, big=True)
    torch.cuda.empty_cache()
    N, M, D = int(1_000_000 * scale), int(100_000 * scale), 4096
    pool = torch.randn(N, D, dtype=torch.float32).to(torch.bfloat16)
    anchors = torch.randn(M, D, dtype=torch.float32).to(torch.bfloat16)
    selection, _ = timed(lambda: cosines.score_pool(pool, anchors))
    a, b = pool[:16384].cuda().float(), anchors[:16384].cuda().float()
    product, _ = timed(lambda: torch.mm(a, b.T))
    product, _ = timed(lambda: torch.mm(a, b.T))
    bare = product * (N / a.shape[0]) * (M / b.shape[0])
    sizes = {"pool": N, "anchors": M, "width": D}
    return {
        "extraction": extraction,
        "selection": {"shape": sizes, "sec": selection, "bare_product_sec": bare, "over_product": selection / bare},
    }


def main(argv: list[str] | None = None) -> dict[str, Any]:
    args = build_parser().parse_args(argv)
    import tempfile

    import torch

    from guardrail.core.provenance import run_record

    if args.threads:
        torch.set_num_threads(args.threads)
    parts = args.parts.split(",")
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, function in {
            "extraction": lambda: bench_extraction(Path(folder), args.repeats, args.scale, args.clock),
            "selection": lambda: bench_selection(args.repeats, args.scale, args.clock),
            "memory": lambda: bench_memory(args.scale, args.threads),
            "gpu": lambda: bench_gpu(Path(folder), args.repeats, args.scale),
        }.items():
            if name in parts:
                result[name] = function()
                log(f"{name}: {json.dumps(result[name])}")
    ratios = {}
    for part, keys in (
        ("extraction", ("extraction_over_reference",)),
        ("selection", ("selection_over_sklearn", "selection_time_over_matmul")),
    ):
        ratios |= {key: result[part][key] for key in keys if part in result}
    result |= {"ratios": ratios, "goals": GOALS, "threads": torch.get_num_threads(), "clock": args.clock}
    result["run"] = run_record("benchmark_similarity", vars(args), n=args.repeats, seed=0)
    if args.output != "/dev/null":
        write_json(args.output, result)
    return {"output": args.output, "ratios": ratios}


if __name__ == "__main__":
    run(main)
