"""The command line of ``eval_safety.py``: answers, or a sweep of decoding settings, and a judge on the spot."""

from __future__ import annotations

from typing import Any

from guardrail.core.cli import Parser
from guardrail.core.errors import UserError
from guardrail.core.options import add_options, read_options
from guardrail.core.ranks import is_main
from guardrail.evaluation.attacks import ATTACKS, make_attack
from guardrail.evaluation.judges import JUDGES, add_judge_flags, take_judge
from guardrail.evaluation.safety.decoding_sweep import SweepOptions, run_sweep
from guardrail.evaluation.safety.evaluate import SafetyConfig, evaluate_safety


def build_parser() -> Parser:
    """Flags of the paper's command, shallow-vs-deep's decoding flags, and this project's."""
    parser = Parser(description="Safety prompts in, completions out: ``<save_path>/results.json``.")
    add_options(parser, SafetyConfig)
    add_options(parser, SweepOptions)
    parser.add_argument("--attack", default="none", help=f"one of {', '.join(ATTACKS)} (docs/attacks.md)")
    parser.add_argument("--attack_options", type=attack_texts, default=(), help="its options, name=value;name=value")
    parser.add_argument("--evaluator", default="none", choices=["none", *JUDGES], help="judge on the spot")
    add_judge_flags(parser)
    return parser


def attack_texts(text: str) -> tuple[str, ...]:
    """``a=1;b=two, three`` as ``("a=1", "b=two, three")``: texts may hold commas."""
    return tuple(part.strip() for part in text.split(";") if part.strip())


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    args = vars(build_parser().parse_args(argv))
    judge = take_judge(args.pop("evaluator"), args)
    config = read_options(SafetyConfig, args)
    attack = make_attack(args.pop("attack"), args.pop("attack_options"))
    if args["decoding_sweep"]:
        if attack.name != "none":
            raise UserError("--decoding_sweep is an attack of its own; leave out --attack, or use --attack decoding")
        return run_sweep(config, read_options(SweepOptions, args), judge)
    headline = evaluate_safety(config, attack=attack)
    if judge is not None and is_main() and headline is not None:
        from guardrail.evaluation.judges.stage import judge_file

        headline |= judge_file(config.results_file, judge)
    return headline
