"""Beaver-Dam harmfulness of formatted answers: ``<output_dir>/beaver-dam.json`` and a bar figure by category.

    python beavertails_moderation/evaluate.py --eval_dataset $DATA_PATH/results_beaver-dam.json \\
        --model_path PKU-Alignment/beaver-dam-7b --max_length 512 --output_dir $DATA_PATH

A row per completion with its 14 probabilities and its outcome; the summary has HS, HS+, refusals, outcomes, intervals,
the threshold curve and how many texts were cut. One process, one device.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from guardrail.core.cli import run
from guardrail.evaluation.judges.beavertails import evaluate_main as main

if __name__ == "__main__":
    run(main)
