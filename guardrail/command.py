"""The ``guardrail`` command: one sub-command per thing that people do, each the entry point of the same stage.

    guardrail --help
    guardrail audit --customer acme=acme.jsonl --alignment pool=pool.jsonl --output_dir audit --model_name_or_path M
    guardrail plan quickstart            # a study file, or the name of a shipped one
    guardrail study quickstart --dry-run

Flags are those of the entry points. In a checkout these files are the first way; the command is what an installed
wheel has. Known limit: one process; a launcher (deepspeed, accelerate) starts the modules or files themselves.
"""

from __future__ import annotations

import importlib
import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from guardrail import __version__
from guardrail.core.cli import report_user_error, run
from guardrail.core.errors import UserError, unknown
from guardrail.core.places import RESOURCES, SCRIPTS, STUDIES

# Command -> what it does, and where: a file of the repository's layout, a module with `main(argv)`, or a function here.
COMMANDS = {
    "prepare": ("turn a published or private data set into a data-set folder", "guardrail.data.prepare"),
    "extract": ("one representation per row of a data set", "guardrail.similarity.representations.extract"),
    "cluster": ("the group of a data set that is most alike inside", "similarity/get_high_similarity_group.py"),
    "select": (
        "alignment subsets by similarity to a downstream data set",
        "guardrail.similarity.selection.pipeline",
    ),
    "mix": ("a training split from instructions and a safety subset", "guardrail.data.mix"),
    "dose": ("training splits with harmful rows within benign ones", "guardrail.data.dose"),
    "train": ("supervised fine-tuning on DeepSpeed", "guardrail.training.sft"),
    "evaluate": ("a model's answers to safety prompts", "guardrail.evaluation.safety.command"),
    "checkpoint": (
        "every evaluation of one checkpoint from one load of the model",
        "guardrail.evaluation.checkpoint",
    ),
    "judge": ("judge answers that are there already", "guardrail.evaluation.judges.__main__"),
    "utility": ("a model's score on its downstream task", "guardrail.evaluation.utility.evaluate"),
    "mt_bench": ("MT-Bench, or a task of lm-evaluation-harness", "guardrail.evaluation.benchmarks"),
    "compare": ("two checkpoints' answers to the same prompts", "guardrail.evaluation.compare"),
    "audit": ("before any training: how similar is a data set to each alignment set", "similarity/audit.py"),
    "score": ("before fine-tuning: how risky is each row of a data set", "similarity/score_rows.py"),
    "admit": ("before any training: which rows of a customer's file may be trained on", "similarity/admit.py"),
    "forecast": (
        "fit a forecast of durability on finished studies, or ask it",
        "guardrail.similarity.forecast.command",
    ),
    "plan": ("what a study will cost; runs nothing", "study_plan"),
    "study": ("run a whole study, or go on with it", "study"),
    "export": ("a finished study as a bundle without any text", "guardrail.study.export"),
    "card": ("a card with safety numbers for a checkpoint or a subset, and its upload", "guardrail.study.card"),
    "sandbox_data": ("write the sandbox's data set", "datasets/sandbox/generate.py"),
    "sandbox_models": ("train the sandbox's tiny models", "datasets/sandbox/train_models.py"),
    "bench": ("memory and speed of a model's shape; or a benchmark: safety, similarity, training, gpu_goals", "bench"),
}
BENCHMARKS = ("safety", "similarity", "training", "gpu_goals")
FIRST_LINE = "Will a model's safety guardrails survive fine-tuning on that data? Flags: guardrail COMMAND --help"


def help_text() -> str:
    """One line per command."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{text}" for name, (text, _) in COMMANDS.items()]
    return "\n".join(["usage: guardrail COMMAND [flags]", "", FIRST_LINE, "", *lines])


def study_file(name: str) -> str:
    """A study file by its path, or a shipped one by its name or by its path in the repository."""
    candidates = [Path(name), RESOURCES / name, STUDIES / f"{name}.yaml"]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        shipped = sorted(path.stem for path in STUDIES.glob("*.yaml"))
        raise unknown("study (no such file either):", name, shipped)
    return str(found)


def study(argv: Sequence[str]) -> int:
    """scripts/study.sh with this interpreter's environment first on the path."""
    script = SCRIPTS / "study.sh"
    flags = [part for part in argv if part.startswith("-")]
    if {"-h", "--help"} & set(flags):
        return subprocess.call(["bash", str(script), "--help"])
    if not argv or argv[0].startswith("-"):
        raise UserError("no study given; usage: guardrail study STUDY [snakemake options], guardrail plan STUDY")
    environment = {**os.environ, "PATH": os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", "")))}
    environment.setdefault("VIRTUAL_ENV", sys.prefix)
    return subprocess.call(["bash", str(script), study_file(argv[0]), *argv[1:]], env=environment)


def bench(argv: Sequence[str]) -> NoReturn:
    """One of benchmarks/ by its name; with flags alone, `guardrail.bench`."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: guardrail bench --shape SHAPE --stage STAGE [flags], or guardrail bench NAME [flags]\n")
        print("NAME is one of: " + ", ".join(BENCHMARKS) + "\nflags of the first: python -m guardrail.bench --help")
        sys.exit(0 if argv else 2)
    if argv[0].startswith("--"):
        from guardrail.bench import __main__ as shapes

        run(lambda: shapes.main(argv))
    if argv[0] not in BENCHMARKS:
        raise unknown("benchmark", argv[0], BENCHMARKS)
    run_file(f"benchmarks/{argv[0]}.py", f"bench {argv[0]}", argv[1:])


def run_file(file: str, command: str, argv: Sequence[str]) -> NoReturn:
    """An entry point's ``main`` on ``argv``; its usage line names the command."""
    found = runpy.run_path(str(RESOURCES / file))
    sys.argv = [f"guardrail {command}", *argv]
    run(found["main"], found.get("exit_code", lambda result: 0))


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command. Exit code 2 and one line for what is wrong with the command line."""
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        if not given:
            raise UserError("no command given; see guardrail --help")
        name, *rest = given
        if name in ("-h", "--help"):
            print(help_text())
            sys.exit(0)
        if name == "--version":
            print(__version__)
            sys.exit(0)
        if name not in COMMANDS:
            raise unknown("command", name, COMMANDS)
        target = COMMANDS[name][1]
        if target == "study":
            sys.exit(study(rest))
        if target == "study_plan":
            sys.exit(study([*rest, "--plan"]))
        if target == "bench":
            bench(rest)
        if target.endswith(".py"):
            run_file(target, name, rest)
    except UserError as error:
        sys.exit(report_user_error(error))
    module = importlib.import_module(target)
    sys.argv = [f"guardrail {name}", *rest]
    run(lambda: module.main(rest))


if __name__ == "__main__":
    main()
