"""Judge a saved file of answers, or look at a few of them.

    python -m guardrail.evaluation.judges results.json --judge beaver_dam --moderation_model models/sandbox/moderation
    python -m guardrail.evaluation.judges results.json --judge panel --panel key_word,beaver_dam
    python -m guardrail.evaluation.judges results.json --show 3 --redact True

Nothing of the answers is printed unless ``--show`` asks for it; ``--redact True`` (the default) shows the first words
of a question and the shape of the answer only. Shown text goes to stderr.
"""

from __future__ import annotations

import re

from guardrail.core.cli import Parser, boolean, log, positive_int, run
from guardrail.core.errors import UserError
from guardrail.evaluation.judges.settings import JUDGES, JudgeSettings, add_judge_flags

REDACTED_WORDS = 4


def redact(text: str, words: int = REDACTED_WORDS) -> str:
    """The first few words, then how much is left out."""
    parts = text.split()
    rest = len(parts) - words
    return " ".join(parts[:words]) + (f" [... {rest} words]" if rest > 0 else "")


def show(path: str, n: int, redacted: bool) -> dict:
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


def main(argv: list[str] | None = None) -> dict:
    parser = Parser(prog="python -m guardrail.evaluation.judges", description=__doc__.split("\n")[0])
    parser.add_argument("answers", help="results.json, its folder, the formatter's file, or a list of pairs")
    parser.add_argument("--judge", default=None, choices=[*JUDGES, "panel"])
    parser.add_argument("--output_dir", default=None, help="default: beside the answers")
    parser.add_argument("--overwrite", type=boolean, default=False, help="judge again although nothing changed")
    parser.add_argument("--show", type=positive_int, default=None, help="look at N answers instead of judging")
    parser.add_argument("--redact", type=boolean, default=True, help="with --show: only shapes and first words")
    add_judge_flags(parser)
    args = vars(parser.parse_args(argv))
    judge, path, output_dir = args.pop("judge"), args.pop("answers"), args.pop("output_dir")
    overwrite, n_shown, redacted = args.pop("overwrite"), args.pop("show"), args.pop("redact")
    if (judge is None) == (n_shown is None):
        raise UserError("give --judge NAME to judge, or --show N to look; exactly one of them")
    if n_shown is not None:
        return show(path, n_shown, redacted)
    settings = JudgeSettings.from_args(judge, args)
    from guardrail.evaluation.judges.stage import judge_file

    return judge_file(path, settings, output_dir, overwrite)


if __name__ == "__main__":
    run(main)
