"""What a scorer costs: seconds and peak memory per 1,000 rows, as ratios to one forward pass over the same rows.

    python benchmarks/scorers.py                                              # sandbox models and data
    python benchmarks/scorers.py --model_name_or_path M --scorers length,self_influence --rows 200 --rounds 1
    python benchmarks/scorers.py --steps 60                                   # also: predicted against actual steps

Every scorer runs by itself, as if it were the only one; several of one run share their pass. A round times the forward
pass (hidden states of the last layer, no logits) before and after each scorer; ``ratio`` is the median over rounds of
the scorer's processor time over the mean of the two, so that a machine that is busy with other things slows both.
``prepare_sec`` is what the anchors and sets cost, once per run. ``peak_bytes`` are the bytes of tensors that are alive
at most while one batch of rows is scored (guardrail.bench.meter), the model and the anchors not counted.

``--steps N``: take one step of gradient descent on each of N rows, every weight, and measure the safety loss;
Spearman's correlation with the scorer safety_step.

Known limits: processor time, so on a GPU only what the host does (use ``wall_sec`` there); the moderation model is
another model than the one whose forward pass is the unit.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from guardrail.core.cli import Parser, log, positive_int, run
from guardrail.core.errors import UserError
from guardrail.core.files import write_json
from guardrail.core.options import names_list
from guardrail.core.places import SANDBOX_DATA, SANDBOX_MODELS
from guardrail.core.provenance import run_record
from guardrail.data.rows import Row, load_rows
from guardrail.similarity.scorers import SCORERS

SPLITS = ("alpaca", "samsum", "list")
CHUNK = 256  # rows at once, as in a run


def build_parser() -> Parser:
    parser = Parser(description="Seconds and peak memory of every scorer, as ratios to one forward pass.")
    parser.add_argument("--model_name_or_path", default=str(SANDBOX_MODELS / "chat"), help="causal LM")
    parser.add_argument("--moderation_model", default=str(SANDBOX_MODELS / "moderation"), help="moderation model")
    parser.add_argument("--data", default=str(SANDBOX_DATA), help="sandbox data-set folder")
    parser.add_argument("--scorers", type=names_list, default=tuple(SCORERS), help="names with commas")
    parser.add_argument("--rows", type=positive_int, default=1000, help="rows of alpaca, samsum and list together")
    parser.add_argument("--set_rows", type=positive_int, default=100, help="anchors, and rows of the other sets")
    parser.add_argument("--rounds", type=positive_int, default=3, help="times that each scorer is timed")
    parser.add_argument("--steps", type=int, default=0, help="rows for predicted against actual steps; 0: none")
    parser.add_argument("--step_size", type=float, default=1e-3, help="learning rate of the actual step")
    parser.add_argument("--gradient_parameters", default="auto", help="as in similarity/score_rows.py")
    parser.add_argument("--output", default="outputs/benchmarks/scorers.json", help="where the result goes")
    return parser


def sample_rows(data: str, n: int) -> list[Row]:
    """The first ``n`` rows of the splits, dealt in turn so that few rows are of every kind."""
    rows = [load_rows(data, split=split) for split in SPLITS]
    total = sum(map(len, rows))
    if n > total:
        raise UserError(f"--rows {n} is more than the {total} rows of {', '.join(SPLITS)}")
    order = sorted((i / len(part), k, i) for k, part in enumerate(rows) for i in range(len(part)))
    return [rows[k][i] for _, k, i in order[:n]]


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Processor seconds (all threads) and wall seconds of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def chunks(rows: Sequence[Row]) -> list[Sequence[Row]]:
    return [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]


def measure(name: str, args: Any, rows: list[Row], forward: Callable[[], None]) -> dict[str, Any]:
    """One scorer's times over ``args.rounds`` rounds, and its peak memory."""
    from guardrail.bench.meter import MemoryMeter
    from guardrail.models.loading import pick_device
    from guardrail.similarity.scorers.run import RowScoring

    scoring = RowScoring(make_config(args, (name,)))
    needs_model = bool({"model", "representations"} & set(SCORERS.facts(name)["needs"]))
    if needs_model:
        scoring.resources.model, scoring.resources.tokenizer  # noqa: B018 - loading is not what is measured
    prepare, _ = timed(scoring.prepare)
    scoring.score(rows[:8])  # what is made at the first batch
    ratios, seconds, walls, base = [], [], [], []
    for _ in range(args.rounds):
        before, _ = timed(forward)
        cpu, wall = timed(lambda: [scoring.score(some) for some in chunks(rows)])
        after, _ = timed(forward)
        unit = (before + after) / 2
        ratios.append(cpu / unit)
        seconds.append(cpu)
        walls.append(wall)
        base.append(unit)
    with MemoryMeter(pick_device()) as meter:
        scoring.score(rows[:CHUNK])
    per_1000 = 1000 / len(rows)
    out = {
        "cost": SCORERS.facts(name)["cost"],
        "prepare_sec": round(prepare, 4),
        "cpu_sec_per_1000_rows": round(statistics.median(seconds) * per_1000, 4),
        "wall_sec_per_1000_rows": round(statistics.median(walls) * per_1000, 4),
        "forward_cpu_sec_per_1000_rows": round(statistics.median(base) * per_1000, 4),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(one, 3) for one in ratios],
        "peak_bytes": meter.peak_bytes,
    }
    log(
        f"{name}: {out['ratio']:.2f} forward passes ({out['cpu_sec_per_1000_rows']:.2f} s per 1,000 rows), "
        f"{out['peak_bytes'] / 2**20:.1f} MiB"
    )
    return out


def make_config(args: Any, scorers: tuple[str, ...]) -> Any:
    from guardrail.similarity.scorers.options import ScoringConfig

    return ScoringConfig(
        scorers=scorers,
        model_name_or_path=args.model_name_or_path,
        moderation_model=args.moderation_model,
        anchors=f"{args.data}::pure_bad",
        alignment=f"{args.data}::safety_pool",
        max_set_rows=args.set_rows,
        gradient_parameters=args.gradient_parameters,
    )


def forward_pass(args: Any, rows: list[Row]) -> tuple[Callable[[], None], int]:
    """A call that takes the last layer's hidden state of every row, and its peak bytes."""
    from guardrail.bench.meter import MemoryMeter
    from guardrail.models.loading import pick_device
    from guardrail.similarity.scorers.resources import Resources

    resources = Resources(make_config(args, ("mean_similarity",)))
    resources.vectors(rows[:8])
    with MemoryMeter(pick_device()) as meter:
        resources.vectors(rows[:CHUNK])
    return lambda: [resources.vectors(some) for some in chunks(rows)] and None, meter.peak_bytes


def compare_steps(args: Any, rows: list[Row]) -> dict[str, Any]:
    """Predicted change of the safety loss per unit learning rate against the change that one step makes."""
    import numpy as np
    import torch

    from guardrail.similarity.scorers.run import RowScoring
    from guardrail.similarity.scorers.tokens import row_losses
    from guardrail.statistics.agreement import spearman_interval

    scoring = RowScoring(make_config(args, ("safety_step",)))
    resources = scoring.resources
    predicted = scoring.score(rows)["safety_step"].values
    moved = scoring.scorers["safety_step"].parameters()  # type: ignore[attr-defined]  # of this scorer
    before = {name: one.detach().clone() for name, one in moved.items()}
    safety, _ = resources.encode(resources.set_rows("safety"))

    def safety_loss() -> float:
        with torch.no_grad():
            parts = [
                part for _, part in resources.each_batch(safety, lambda b: row_losses(resources.model, b).double())
            ]
        return float(torch.cat(parts).mean())

    start, actual = safety_loss(), []
    for row in rows:
        encoded, _ = resources.encode([row])
        for one in moved.values():
            one.requires_grad_(True)
        ((_, gradients),) = resources.each_batch(
            encoded, lambda b: torch.autograd.grad(row_losses(resources.model, b).sum(), list(moved.values()))
        )
        with torch.no_grad():
            for one, gradient in zip(moved.values(), gradients, strict=True):
                one -= args.step_size * gradient
            actual.append((safety_loss() - start) / args.step_size)
            for name, one in moved.items():
                one.copy_(before[name])
    found = spearman_interval(predicted, actual)
    log(f"safety step: Spearman {found.value:.4f} ({found.low:.4f} to {found.high:.4f}) over {len(rows)} rows")
    return {
        "n": len(rows),
        "step_size": args.step_size,
        "spearman": found.value,
        "spearman_interval": [found.low, found.high],
        "largest_difference": float(np.abs(predicted - actual).max()),
        "largest_actual": float(np.abs(actual).max()),
    }


def main(argv: list[str] | None = None) -> dict[str, Any]:
    args = build_parser().parse_args(argv)
    for name in args.scorers:
        SCORERS.check(name)
    rows = sample_rows(args.data, args.rows)
    forward, peak = forward_pass(args, rows)
    result: dict[str, Any] = {
        "n": len(rows),
        "forward_peak_bytes": peak,
        "scorers": {name: measure(name, args, rows, forward) for name in args.scorers},
    }
    for one in result["scorers"].values():
        one["peak_ratio"] = round(one["peak_bytes"] / peak, 2)
    if args.steps:
        result["steps"] = compare_steps(args, rows[: args.steps])
    result["run"] = run_record("benchmark_scorers", {k: v for k, v in vars(args).items() if k != "output"}, n=len(rows))
    write_json(Path(args.output), result)
    ratios = {name: one["ratio"] for name, one in result["scorers"].items()}
    return {"output": args.output, "ratios": ratios, "steps": result.get("steps")}


if __name__ == "__main__":
    run(main)
