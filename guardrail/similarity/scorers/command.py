"""The command of scoring: score rows into a file, compare two files of scores, or both."""

from __future__ import annotations

from typing import Any

from guardrail.core import ranks
from guardrail.core.errors import UserError
from guardrail.core.options import read_options
from guardrail.similarity.scorers.options import ScoringConfig, build_parser


def main(argv: list[str] | None = None) -> dict[str, Any]:
    config = read_options(ScoringConfig, build_parser().parse_args(argv))
    if config.out is None or not config.out.endswith(".jsonl"):
        raise UserError("--out names the file of scores; give one that ends with .jsonl")
    if config.rows is None and config.compare is None:
        raise UserError("nothing to do; give --rows to score some, or --compare with the target model's scores")
    config.names  # noqa: B018 - unknown names and missing sets are refused before anything is loaded
    from guardrail.similarity.scorers.run import score_file

    out: dict[str, Any] = {"scores": config.out}
    if config.rows is not None:
        record = score_file(config)
        scorers = record["scorers"].items()
        out |= {"n": record["n"], "n_scored": {name: one["n_scored"] for name, one in scorers}}
        out["not_applicable"] = [name for name, one in scorers if not one["applicable"]]
        out["reused"] = record["reused"]
    if config.compare is not None and ranks.is_main():
        from guardrail.similarity.scorers.compare import compare_files

        out["agreement"] = compare_files(config.out, config.compare, config.seed)
    return out
