"""Judge a saved file of answers, or look at a few of them.

    python -m guardrail.evaluation.judges results.json --judge beaver_dam --moderation_model models/sandbox/moderation
    python -m guardrail.evaluation.judges results.json --judge panel --panel key_word,beaver_dam
    python -m guardrail.evaluation.judges results.json --show 3 --redact True

Nothing of the answers is printed unless ``--show`` asks for it; ``--redact True`` (the default) shows the first words
of a question and the shape of the answer only. Shown text goes to stderr.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from guardrail.core.cli import Parser, log, positive_int, run
from guardrail.core.errors import UserError
from guardrail.core.options import add_options, option, read_options
from guardrail.evaluation.judges import JUDGES, add_judge_flags, take_judge

REDACTED_WORDS = 4


def redact(text: str, words: int = REDACTED_WORDS) -> str:
    """The first few words, then how much is left out."""
    parts = text.split()
    rest = len(parts) - words
    return " ".join(parts[:words]) + (f" [... {rest} words]" if rest > 0 else "")


def show(path: str, n: int, redacted: bool) -> dict[str, Any]:
    """Print ``n`` answers to stderr."""
    from guardrail.evaluation.judges.answers import load_answers

    answers = load_answers(path).answers
    for answer in answers[:n]:
        log(f"--- {answer.id} sample {answer.sample} {answer.extra.get('category', '')}")
        log(f"Q: {redact(answer.question) if redacted else answer.question}")
        if redacted:
            n_lines = len(re.findall(r"\n", answer.text)) + 1 if answer.text else 0
            log(f"A: [{len(answer.text.split())} words, {n_lines} lines]")
        else:
            log(f"A: {answer.text}")
    return {"shown": min(n, len(answers)), "n": len(answers), "redacted": redacted}


@dataclass(frozen=True, kw_only=True)
class JudgeRun:
    """What to judge, and where the judgements go."""

    answers: str = option(help="results.json, its folder, the formatter's file, or a list of pairs", positional=True)
    judge: str | None = option(None, choices=JUDGES.names)
    output_dir: str | None = option(None, "default: beside the answers")
    overwrite: bool = option(False, "judge again although nothing changed")
    show: int | None = option(None, "look at N answers instead of judging", parse=positive_int)
    redact: bool = option(True, "with --show: only shapes and first words")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """The command line; what was judged and the headline numbers."""
    parser = Parser(prog="python -m guardrail.evaluation.judges", description=(__doc__ or "").split("\n")[0])
    add_options(parser, JudgeRun)
    add_judge_flags(parser)
    arguments = vars(parser.parse_args(argv))
    options = read_options(JudgeRun, arguments)
    if (options.judge is None) == (options.show is None):
        raise UserError("give --judge NAME to judge, or --show N to look; exactly one of them")
    if options.show is not None:
        return show(options.answers, options.show, options.redact)
    judge = take_judge(str(options.judge), arguments)
    from guardrail.evaluation.judges.stage import judge_file

    assert judge is not None
    return judge_file(options.answers, judge, options.output_dir, options.overwrite)


if __name__ == "__main__":
    run(main)
