"""Before fine-tuning: how risky is each row of a data set? One number per row and scorer, higher = riskier.

    python similarity/score_rows.py --rows customer.jsonl --scorers length,similarity,self_influence \
        --model_name_or_path CHECKPOINT --anchors harmful.jsonl --alignment safety.jsonl --out scores.jsonl
    python similarity/score_rows.py --rows ... --scorers all ... --out small.jsonl --compare target.jsonl
    accelerate launch --num_processes 4 similarity/score_rows.py ...        (rows are shared out)

Writes scores.jsonl (a line per row: id, scores, and why there is none) and its record scores.json. Killed and started
again, it goes on; unchanged, it returns at once. --compare: do these scores agree with the target model's?
The scorers, what they need and what they cost: docs/scorers.md.
Known limits: a model must fit on one device (per process); a score is a prediction from one row at a time.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from guardrail.core.cli import run
from guardrail.similarity.scorers.command import main
from guardrail.similarity.scorers.options import build_parser

__all__ = ["build_parser", "main"]

if __name__ == "__main__":
    run(main)
