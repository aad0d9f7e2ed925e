"""Benchmarks by name: MT-Bench (`guardrail.evaluation.mt_bench`) and any task of the lm-evaluation-harness.

The command line of ``__main__.py``: one parser for both, and what has no effect on the one asked for is refused.
"""

from __future__ import annotations

from typing import Any

from guardrail.core.cli import Parser
from guardrail.core.errors import UserError, unknown
from guardrail.core.options import add_options, given_options, option_names, read_options
from guardrail.evaluation.completions import BenchmarkOptions
from guardrail.evaluation.mt_bench.stage import MTBenchConfig, run_mt_bench
from guardrail.evaluation.utility.harness import WITHOUT_EFFECT, HarnessConfig, run_harness

MT_BENCH, LM_EVAL = "mt_bench", "lm_eval:"


def build_parser() -> Parser:
    parser = Parser(
        description="Benchmarks by name: MT-Bench as FastChat defines it, and any task of EleutherAI's "
        "lm-evaluation-harness."
    )
    parser.add_argument("--benchmark", help=f"{MT_BENCH}, or {LM_EVAL}TASK[,TASK]", required=True)
    add_options(parser, MTBenchConfig)
    add_options(parser, HarnessConfig, leave_out=option_names(BenchmarkOptions))
    return parser


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = build_parser()
    args = parser.parse_args(argv)
    given, benchmark = given_options(parser, args) - {"benchmark"}, args.benchmark
    if benchmark == MT_BENCH:
        _refuse(given - set(option_names(MTBenchConfig)), benchmark)
        return run_mt_bench(read_options(MTBenchConfig, args))
    if benchmark.startswith(LM_EVAL):
        _refuse(given - set(option_names(HarnessConfig)) | given & set(WITHOUT_EFFECT), benchmark)
        tasks = tuple(task for task in benchmark[len(LM_EVAL) :].split(",") if task)
        return run_harness(read_options(HarnessConfig, args, tasks=tasks))
    raise unknown("benchmark", benchmark, [MT_BENCH, f"{LM_EVAL}TASK[,TASK]"])


def _refuse(stray: set[str], benchmark: str) -> None:
    """An option that could not change anything is an error, not a no-op."""
    if stray:
        raise UserError(f"--{min(stray)} has no effect with --benchmark {benchmark}; leave it out")
