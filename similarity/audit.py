"""Before any training: how similar is a customer's data set to each alignment set, and which checkpoint should hold?

    python similarity/audit.py --customer acme=acme.jsonl --alignment a=a.jsonl --alignment b=b.jsonl \
        --reference alpaca=alpaca.json --reference gsm8k=gsm8k.jsonl --model_name_or_path ENCODER_OR_CHAT_MODEL \
        --output_dir outputs/audit_acme

A set is NAME=PATH or NAME=PATH::SPLIT; PATH holds rows or stored representations (then no model is needed).
Writes audit.json and audit.html (one file, no network, texts redacted unless --show_text True).
Known limits: a prediction from data, not a measurement; at most --max_rows rows of a set are used (a random sample).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from guardrail.core.cli import Parser, boolean, positive_int, run
from guardrail.similarity.representations.options import TEXTS


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--customer", required=True, help="the data set to be fine-tuned on: NAME=PATH[::SPLIT]")
    add("--alignment", required=True, action="append", help="an alignment set; several times to compare variants")
    add("--reference", action="append", default=[], help="a set to compare the customer with; several times")
    add("--output_dir", required=True, help="where audit.json, audit.html and reps/ go")
    add("--model_name_or_path", help="encoder or causal LM that represents sets given as rows")
    add("--prompt_style", help="chat string of a causal LM (default llama2_base)")
    add("--layer", help="layers to extract, with commas (default: three; the first is the main one)")
    add(
        "--position",
        help="positions to extract, with commas (default: eos, completion_mean, prompt_last; encoders mean)",
    )
    add("--text", default="full", choices=TEXTS, help="what the model reads (prompt: for sets without answers)")
    add("--view", help="main layer and position, e.g. layer16_eos (default: the first)")
    add("--max_length", type=positive_int, help="cap in tokens (default: the model's; encoders 256)")
    add("--max_rows", type=positive_int, default=2000, help="rows used of each set")
    add("--bootstrap", type=positive_int, default=200, help="resamples")
    add("--seed", type=int, default=42, help="seed of samples and resamples")
    add("--batch_tokens", type=positive_int, help="padded tokens per batch")
    add("--show_text", type=boolean, default=False, help="put row texts into audit.json and audit.html")
    return parser


def main(argv: list[str] | None = None) -> dict[str, Any]:
    args = build_parser().parse_args(argv)
    from guardrail.similarity.audit.pipeline import AuditConfig, run_audit
    from guardrail.similarity.audit.sets import parse_set

    return run_audit(
        AuditConfig(
            customer=parse_set("customer", args.customer),
            alignment=tuple(parse_set("alignment", text) for text in args.alignment),
            reference=tuple(parse_set("reference", text) for text in args.reference),
            output_dir=args.output_dir,
            model=args.model_name_or_path,
            prompt_style=args.prompt_style,
            layer=args.layer,
            position=args.position,
            view=args.view,
            text=args.text,
            max_length=args.max_length,
            max_rows=args.max_rows,
            bootstrap=args.bootstrap,
            seed=args.seed,
            show_text=args.show_text,
            batch_tokens=args.batch_tokens,
            command=("python", "similarity/audit.py", *(sys.argv[1:] if argv is None else argv)),
        )
    )


if __name__ == "__main__":
    run(main)
