"""The parser of every entry point, as ``main`` makes it: without running a stage, without knowing how it is built."""

from __future__ import annotations

import argparse
import functools
import importlib
import runpy
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

from toys import REPOSITORY

from guardrail.core.cli import Parser

FILES = (
    *("__main__.py", "eval_safety.py", "eval_utility.py", "similarity/admit.py", "similarity/audit.py"),
    *("similarity/get_high_similarity_group.py", "similarity/get_representation.py", "similarity/score_rows.py"),
    *("similarity/get_top_similarity_dataset_reps_general.py", "datasets/mix.py", "datasets/prepare.py"),
    "datasets/dose.py",
    *("datasets/sandbox/customer.py", "datasets/sandbox/generate.py", "datasets/sandbox/train_models.py"),
    *("beavertails_moderation/evaluate.py", "beavertails_moderation/formatter.py"),
    *("benchmarks/safety.py", "benchmarks/similarity.py", "benchmarks/training.py"),
)
MODULES = (
    *("guardrail.evaluation.checkpoint", "guardrail.evaluation.compare"),
    *("guardrail.evaluation.judges.__main__", "guardrail.evaluation.mt_bench.figure"),
    *(
        "guardrail.study.check",
        "guardrail.study.write",
        "guardrail.training.sft",
        "guardrail.training.install_template",
    ),
)
STAGES = (*FILES, *MODULES)


class Captured(Exception):
    """Raised where a parser would read its arguments; carries the parser."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def main_of(stage: str) -> Callable[[], Any]:
    """``main`` of a file of the repository's layout, or of a module."""
    if stage.endswith(".py"):
        path = list(sys.path)
        try:
            found = runpy.run_path(str(REPOSITORY / stage))["main"]
        finally:
            sys.path[:] = path
        return found
    return importlib.import_module(stage).main


@functools.lru_cache
def parser_of(stage: str) -> argparse.ArgumentParser:
    """The parser that a stage's ``main`` asks to read the command line."""

    def capture(self: argparse.ArgumentParser, *_: Any, **__: Any) -> Any:
        raise Captured(self)

    with mock.patch.object(Parser, "parse_args", capture), mock.patch.object(sys, "argv", [stage]):
        try:
            main_of(stage)()
        except Captured as captured:
            return captured.parser
    raise AssertionError(f"{stage} has read no command line")


def flags_of(stage: str) -> dict[str, argparse.Action]:
    """Every flag, with its second spellings, and its argument."""
    actions = parser_of(stage)._actions
    return {flag.removeprefix("--"): a for a in actions for flag in a.option_strings if flag.startswith("--")}
