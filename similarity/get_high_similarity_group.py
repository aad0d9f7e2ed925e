"""Cluster a data set by its representations and take out the group that is most alike inside (the paper's List group).

    python similarity/get_high_similarity_group.py --dataset_folder D --model_id M --clustering kmeans \
        --stack_vector_tf False --n_clusters 20 --dataset_data D/train.json --dataset_reps_dir D/reps/M/reps-full.pt

Writes D/clusters/M/: one file per cluster, the chosen group as a split and as group.jsonl, clusters.json, a picture.
Chosen: the cluster with the highest mean pairwise cosine among those of at least --min_group_size rows, unless
--select says otherwise; clusters.json states which and why, and how stable the clustering is over seeds.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from guardrail.core.cli import run
from guardrail.similarity.clustering.pipeline import build_parser, main

__all__ = ["build_parser", "main"]

if __name__ == "__main__":
    run(main)
