"""The paper's two steps of moderation, with its flags: ``beavertails_moderation/formatter.py`` and ``evaluate.py``.

Both are the stage of `guardrail.evaluation.judges.stage` under other names: the first writes the question-answer pairs
of a results file, the second judges them with the judge ``beaver_dam``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.core.cli import Parser, fraction, positive_int
from guardrail.core.options import add_options, option, read_options
from guardrail.evaluation.judges.beaver_dam import BeaverDam

RUN_COLUMNS = ("fingerprint", "data_hash", "model_hash", "model", "data", "seeds")
DEFAULTS = BeaverDam()
RESULTS, PAIRS = "results.json", "results_beaver-dam.json"


@dataclass(frozen=True, kw_only=True)
class Format:
    """From ``results.json`` to the rows that the moderation model judges: question and answer, by id and sample."""

    input: str = option(help="results.json", positional=True, metavar="IN")
    output: str = option(help="file to write", positional=True, metavar="OUT", decides=False)
    include_prefill: bool = option(False)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Beaver-Dam harmfulness of formatted answers: ``<output_dir>/beaver-dam.json`` and a bar figure by category."""

    eval_dataset: str = option(help="what formatter.py wrote, or results.json")
    model_path: str = option(DEFAULTS.moderation_model)
    output_dir: str = option(decides=False)
    max_length: int = option(DEFAULTS.max_length, "tokens of question and answer together", parse=positive_int)
    threshold: float = option(DEFAULTS.threshold, "flagged: probability strictly above", parse=fraction)
    batch_tokens: int | None = option(None, "padded tokens per batch", parse=positive_int, decides=False)
    windows: bool = option(DEFAULTS.windows, "also score long texts by overlapping windows")
    torch_dtype: str = option("auto", choices=("auto", "bfloat16", "float16", "float32"))
    backend: str = option("hf", choices=("hf", "vLLM"))
    figure: bool = option(True, decides=False)

    def judge(self) -> BeaverDam:
        """The judge that these flags ask for."""
        return BeaverDam(
            moderation_model=self.model_path,
            moderation_backend=self.backend,
            max_length=self.max_length,
            threshold=self.threshold,
            windows=self.windows,
            judge_dtype=self.torch_dtype,
            judge_batch_tokens=self.batch_tokens,
            figure=self.figure,
        )


@dataclass(frozen=True, kw_only=True)
class Moderate(Evaluate):
    """Both steps on one folder: its ``results.json`` is formatted, then judged; everything lies beside it."""

    data_path: str = option(help="folder of results.json", decides=False)
    eval_dataset: str = option("", decides=False)  # made on the way
    output_dir: str = option("", decides=False)
    include_prefill: bool = option(False)


def _parse(kind: Any, argv: list[str] | None) -> Any:
    parser = Parser(description=kind.__doc__)
    add_options(parser, kind)
    return read_options(kind, parser.parse_args(argv))


def format_main(argv: list[str] | None = None) -> dict[str, Any]:
    """``formatter.py IN OUT``: the file written and its number of rows."""
    options = _parse(Format, argv)
    from guardrail.core.files import write_json
    from guardrail.evaluation.judges.answers import load_answers

    source = load_answers(options.input, options.include_prefill)
    rows = [
        {"id": a.id, "sample": a.sample, "prompt": a.question, "response": a.text, **a.extra} for a in source.answers
    ]
    run_block = {name: source.run[name] for name in RUN_COLUMNS if name in source.run}
    run_block |= {"stage": "format_beaver_dam", "n": len(rows), "include_prefill": options.include_prefill}
    write_json(options.output, {"rows": rows, "run": run_block})
    return {"rows": options.output, "n": len(rows)}


def evaluate_main(argv: list[str] | None = None) -> dict[str, Any]:
    """``evaluate.py --eval_dataset F --output_dir D``: the judgement file and its headline numbers."""
    options = _parse(Evaluate, argv)
    judge = options.judge()
    judge.check()
    from guardrail.evaluation.judges.stage import judge_file

    return judge_file(options.eval_dataset, judge, options.output_dir)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """What scripts/moderate.sh does, in one process."""
    options = _parse(Moderate, argv)
    folder = Path(options.data_path)
    pairs = str(folder / PAIRS)
    format_main([str(folder / RESULTS), pairs, f"--include_prefill={options.include_prefill}"])
    judge = options.judge()
    judge.check()
    from guardrail.evaluation.judges.stage import judge_file

    return judge_file(pairs, judge, folder)
