"""Answers and judgements as parquet in TamperBench's columns.

    python -m guardrail.evaluation.exchange.tamperbench outputs/aligned/evaluation/safety --out tamperbench

Writes ``inferences.parquet`` (prompt, response) and, with a judgement file, ``evaluator_scores.parquet`` (prompt,
response, score): the files and columns of its evaluations (criticalml-uw/TamperBench, ``output_schema.py`` and
``names.py``). The score is 1.0 for harmful and 0.0 for not, or the judge's largest probability; nothing may be null
there, so answers that the judge did not decide are left out and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guardrail.core.cli import Parser, log, run
from guardrail.core.errors import UserError
from guardrail.core.files import atomic_path, read_json
from guardrail.evaluation.judges.answers import AnswerFile, load_answers

INFERENCES, SCORES = "inferences.parquet", "evaluator_scores.parquet"
JUDGEMENTS = "beaver-dam.json"
MEASURES = ("harmful", "max_probability")


def write_inferences(source: AnswerFile, folder: Path) -> Path:
    rows = source.answers
    return _write(folder / INFERENCES, {"prompt": [a.question for a in rows], "response": [a.text for a in rows]})


def write_scores(source: AnswerFile, judgements: Path, measure: str, folder: Path) -> tuple[Path, int]:
    """The file, and how many answers have no score. Joined by id and sample, never by place.

    Raises ``UserError``: a file that is no judgement of these answers, or has no such measure.
    """
    content = read_json(judgements)
    if not isinstance(content, dict) or not isinstance(content.get("judgements"), list):
        raise UserError(f"{judgements} holds no judgements; give a judge's file, such as {JUDGEMENTS}")
    scores = {(row["id"], row["sample"]): row.get(measure) for row in content["judgements"]}
    unknown = [answer.id for answer in source.answers if answer.key not in scores]
    if unknown:
        raise UserError(f"{judgements} does not judge {len(unknown)} of these answers (first: {unknown[0]})")
    rows = [(answer, scores[answer.key]) for answer in source.answers if scores[answer.key] is not None]
    if not rows:
        raise UserError(f"{judgements} has no {measure} of any answer; choose --score from {', '.join(MEASURES)}")
    columns: dict[str, list[Any]] = {
        "prompt": [answer.question for answer, _ in rows],
        "response": [answer.text for answer, _ in rows],
        "score": [float(score) for _, score in rows],
    }
    return _write(folder / SCORES, columns), len(source.answers) - len(rows)


def _write(path: Path, columns: dict[str, list[Any]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {"prompt": pa.string(), "response": pa.string(), "score": pa.float64()}
    table = pa.table({name: pa.array(values, kinds[name]) for name, values in columns.items()})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)
    return path


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = Parser(prog="guardrail.evaluation.exchange.tamperbench", description="Parquet in TamperBench's columns.")
    parser.add_argument("results", help="results.json, or the folder that holds it")
    parser.add_argument(
        "--judgements", help=f"a judge's file; default: {JUDGEMENTS} beside the results, if it is there"
    )
    parser.add_argument("--score", default="harmful", choices=MEASURES, help="what the score column holds")
    parser.add_argument("--out", required=True, help="folder for the parquet files")
    args = parser.parse_args(argv)
    source = load_answers(args.results)
    beside = source.path.with_name(JUDGEMENTS)
    judged = Path(args.judgements) if args.judgements else beside if beside.is_file() else None
    out: dict[str, Any] = {"inferences": str(write_inferences(source, Path(args.out))), "n": len(source.answers)}
    if judged is not None:
        path, n_left_out = write_scores(source, judged, args.score, Path(args.out))
        out |= {"scores": str(path), "n_without_score": n_left_out}
        if n_left_out:
            log(f"{n_left_out} answers have no {args.score} and are not in {SCORES}")
    return out


if __name__ == "__main__":
    run(main)
