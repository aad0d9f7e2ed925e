"""From ``results.json`` to the rows that the moderation model judges: question and answer, joined by id and sample.

    python beavertails_moderation/formatter.py $DATA_PATH/results.json $DATA_PATH/results_beaver-dam.json

``--include_prefill True`` puts the prefilled words in front of the answer. Reads shallow-vs-deep's files too.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from guardrail.core.cli import Parser, boolean, run
from guardrail.core.files import write_json
from guardrail.evaluation.judges.answers import load_answers

RUN_COLUMNS = ("fingerprint", "data_hash", "model_hash", "model", "data", "seeds")


def main(argv: list[str] | None = None) -> dict:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("input", metavar="IN", help="results.json")
    parser.add_argument("output", metavar="OUT", help="file to write")
    parser.add_argument("--include_prefill", type=boolean, default=False)
    args = parser.parse_args(argv)
    source = load_answers(args.input, args.include_prefill)
    rows = [
        {"id": a.id, "sample": a.sample, "prompt": a.question, "response": a.text, **a.extra} for a in source.answers
    ]
    run_block = {name: source.run[name] for name in RUN_COLUMNS if name in source.run}
    run_block |= {"stage": "format_beaver_dam", "n": len(rows), "include_prefill": args.include_prefill}
    write_json(args.output, {"rows": rows, "run": run_block})
    return {"rows": args.output, "n": len(rows)}


if __name__ == "__main__":
    run(main)
