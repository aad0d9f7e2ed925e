"""The command line of ``eval_safety.py``: answers, or a sweep of decoding settings, and a judge on the spot."""

from __future__ import annotations

from typing import Any

from guardrail.core.cli import Parser
from guardrail.core.options import add_options, read_options
from guardrail.core.ranks import is_main
from guardrail.evaluation.judges import JUDGES, add_judge_flags, take_judge
from guardrail.evaluation.safety.decoding_sweep import SweepOptions, run_sweep
from guardrail.evaluation.safety.evaluate import SafetyConfig, evaluate_safety


def build_parser() -> Parser:
    """Flags of the paper's command, shallow-vs-deep's decoding flags, and this project's."""
    parser = Parser(description="Safety prompts in, completions out: ``<save_path>/results.json``.")
    add_options(parser, SafetyConfig)
    add_options(parser, SweepOptions)
    parser.add_argument("--evaluator", default="none", choices=["none", *JUDGES], help="judge on the spot")
    add_judge_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    args = vars(build_parser().parse_args(argv))
    judge = take_judge(args.pop("evaluator"), args)
    config = read_options(SafetyConfig, args)
    if args["decoding_sweep"]:
        return run_sweep(config, read_options(SweepOptions, args), judge)
    headline = evaluate_safety(config)
    if judge is not None and is_main() and headline is not None:
        from guardrail.evaluation.judges.stage import judge_file

        headline |= judge_file(config.results_file, judge)
    return headline
