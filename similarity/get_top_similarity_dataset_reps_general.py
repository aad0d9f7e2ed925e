"""Select rows of a pool by similarity to anchor rows (pool = safety-alignment rows, anchors = downstream rows).

    python similarity/get_top_similarity_dataset_reps_general.py --dataset_folder D --stack_vector_tf False \
        --select_n N --dataset_dir D/train.jsonl --dataset_reps_dir D/reps/M/reps-full.pt \
        --anchoring_reps_dir TASK/reps/M/reps-full.pt

Writes D/<save_folder>/top{N}.jsonl, bottom{N}.jsonl, *_scores.npy, *_indices.npy and selection.json. --selector adds
or names other subsets (random, matched and diversity-controlled ones, ...): {selector}{N}.jsonl.
Score of a row: mean of its --avg_n largest cosines to the anchors, float32. Ranking: descending, ties by row order.
--merge: score, mean, union, round_robin (guardrail/similarity/selection/ranking.py has the rules beside the paper's).
Memory beyond the inputs stays below 256 MiB whatever the sizes; several processes under accelerate or torchrun.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from guardrail.core.cli import run
from guardrail.similarity.selection.pipeline import build_parser, main

__all__ = ["build_parser", "main"]

if __name__ == "__main__":
    run(main)
