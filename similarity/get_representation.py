"""Extract one representation per example: hidden states at chosen layers and positions, computed without logits.

    python similarity/get_representation.py --dataset_folder D --dataset_data D/train.jsonl --model_id M \
        --model_name_or_path models/chat --prompt_style llama2_base
    accelerate launch --num_processes 4 similarity/get_representation.py ...        (rows are shared out)

Writes the store D/reps/M/ with its export D/reps/M/reps-full.pt. Defaults give the paper's feature: last layer after
the final norm, at the last token of prompt + response + EOS. Killed and started again, it goes on; unchanged, it
returns at once. Layers: 0 = embeddings, l = after block l, L = -1 = after the last block and the final norm.
Known limits: no encoder-decoder models; a model must fit on one device (per process).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from guardrail.core.cli import run
from guardrail.similarity.representations.extract import build_parser, main

__all__ = ["build_parser", "main"]

if __name__ == "__main__":
    run(main)
