"""The gate before training: which rows of a customer's file may be trained on, and may the file be at all?

    python similarity/admit.py customer.jsonl --policy configs/policies/sandbox.yaml --output_dir outputs/admit_acme

Writes kept.jsonl and quarantined.jsonl (the customer's rows as they are, a loss_mask where only a sentence is harmful),
rows.jsonl (scores and reasons, no text), gate.html (one file, no network, texts only with --show_text True) and
receipt.json. Exit code: 0 accept, 3 accept without the quarantined rows, 4 refuse; 2 is a user's mistake.
Known limits: one process; a good row's score says what rows do on average, not what this one will do.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from guardrail.core.cli import run
from guardrail.similarity.gate.pipeline import build_parser, main

__all__ = ["build_parser", "exit_code", "main"]


def exit_code(result: dict) -> int:
    return result["exit_code"]


if __name__ == "__main__":
    run(main, exit_code)
