"""Before any training: how similar is a customer's data set to each alignment set, and which checkpoint should hold?

    python similarity/audit.py --customer acme=acme.jsonl --alignment a=a.jsonl --alignment b=b.jsonl \
        --reference alpaca=alpaca.json --reference gsm8k=gsm8k.jsonl --model_name_or_path ENCODER_OR_CHAT_MODEL \
        --output_dir outputs/audit_acme

A set is NAME=PATH or NAME=PATH::SPLIT; PATH holds rows or stored representations (then no model is needed).
Writes audit.json and audit.html (one file, no network, texts redacted unless --show_text True).
Known limits: a prediction from data, not a measurement; at most --max_rows rows of a set are used (a random sample).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from guardrail.core.cli import run
from guardrail.similarity.audit.pipeline import build_parser, main

__all__ = ["build_parser", "main"]

if __name__ == "__main__":
    run(main)
