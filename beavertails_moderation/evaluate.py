"""Beaver-Dam harmfulness of formatted answers: ``<output_dir>/beaver-dam.json`` and a bar figure by category.

    python beavertails_moderation/evaluate.py --eval_dataset $DATA_PATH/results_beaver-dam.json \\
        --model_path PKU-Alignment/beaver-dam-7b --max_length 512 --output_dir $DATA_PATH

A row per completion with its 14 probabilities and its outcome; the summary has HS, HS+, refusals, outcomes, intervals,
the threshold curve and how many texts were cut. One process, one device.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from guardrail.core.cli import Parser, boolean, fraction, positive_int, run
from guardrail.evaluation.judges.settings import JudgeSettings


def build_parser() -> Parser:
    default = JudgeSettings("beaver_dam")
    parser = Parser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--eval_dataset", required=True, help="what formatter.py wrote, or results.json")
    add("--model_path", default=default.moderation_model)
    add("--output_dir", required=True)
    add("--max_length", type=positive_int, default=default.max_length, help="tokens of question and answer together")
    add("--threshold", type=fraction, default=default.threshold, help="flagged: probability strictly above")
    add("--batch_tokens", type=positive_int, default=default.judge_batch_tokens, help="padded tokens per batch")
    add("--windows", type=boolean, default=False, help="also score long texts by overlapping windows")
    add("--torch_dtype", default="auto", choices=["auto", "bfloat16", "float16", "float32"])
    add("--backend", default="hf", choices=["hf", "vLLM"])
    add("--figure", type=boolean, default=True)
    return parser


def main(argv: list[str] | None = None) -> dict:
    args = build_parser().parse_args(argv)
    settings = JudgeSettings(
        "beaver_dam",
        moderation_model=args.model_path,
        moderation_backend=args.backend,
        max_length=args.max_length,
        threshold=args.threshold,
        windows=args.windows,
        judge_dtype=args.torch_dtype,
        judge_batch_tokens=args.batch_tokens,
        figure=args.figure,
    ).check()
    from guardrail.evaluation.judges.stage import judge_file

    return judge_file(args.eval_dataset, settings, args.output_dir)


if __name__ == "__main__":
    run(main)
