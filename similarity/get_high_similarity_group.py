"""Cluster a data set by its representations and take out the group that is most alike inside (the paper's List group).

    python similarity/get_high_similarity_group.py --dataset_folder D --model_id M --clustering kmeans \
        --stack_vector_tf False --n_clusters 20 --dataset_data D/train.json --dataset_reps_dir D/reps/M/reps-full.pt

Writes D/clusters/M/: one file per cluster, the chosen group as a split and as group.jsonl, clusters.json, a picture.
Chosen: the cluster with the highest mean pairwise cosine among those of at least --min_group_size rows, unless
--select says otherwise; clusters.json states which and why, and how stable the clustering is over seeds.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from guardrail.core.cli import Parser, boolean, positive_int, run
from guardrail.core.errors import UserError
from guardrail.similarity.clustering.pipeline import ALGORITHMS, ClusteringConfig, find_group


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--dataset_folder", required=True, help="results go to <dataset_folder>/clusters/<model_id>/")
    add("--model_id", required=True, help="name of the model that gave the representations")
    add("--clustering", default="kmeans", choices=ALGORITHMS, help="algorithm; all work on unit rows (cosine)")
    add("--stack_vector_tf", type=boolean, default=False, help="join reps-<number>.pt into --dataset_reps_dir first")
    add("--n_clusters", type=positive_int, help="number of clusters (default 20; not with hdbscan)")
    add("--dataset_data", required=True, help="rows: a file, a data-set folder or a hub name")
    add("--split", help="split of dataset_data, where it has several")
    add(
        "--dataset_reps_dir",
        required=True,
        help="representations: a store, .pt, .npy, .safetensors or reps-*.pt folder",
    )
    add("--restarts", type=positive_int, default=10, help="k-means starts per seed; the best is kept")
    add("--seed", type=int, default=42, help="first seed")
    add("--stability_seeds", type=positive_int, default=3, help="clusterings compared by adjusted Rand index")
    add("--select", default="similarity", help="similarity, list, or a cluster's number")
    add("--min_group_size", type=positive_int, default=20, help="smallest group that a rule may choose")
    add("--group_size", type=positive_int, help="keep this many rows of the group, nearest to its centre first")
    add("--split_name", default="high_similarity_group", help="name of the group's split")
    add("--view", help="layer and position of a store with several, e.g. layer16_eos")
    add("--output_dir", help="instead of <dataset_folder>/clusters/<model_id>")
    return parser


def main(argv: list[str] | None = None) -> dict[str, Any]:
    args = build_parser().parse_args(argv)
    if args.clustering == "hdbscan" and args.n_clusters is not None:
        raise UserError("hdbscan finds the number of clusters itself; leave --n_clusters out")
    if "/" in args.model_id:
        raise UserError(f"--model_id {args.model_id!r} names a folder under clusters/; give a plain name without '/'")
    if not re.fullmatch(r"\w+", args.split_name):
        raise UserError(f"--split_name {args.split_name!r}: use letters, digits and underscores")
    folder = Path(args.output_dir) if args.output_dir else Path(args.dataset_folder) / "clusters" / args.model_id
    return find_group(
        ClusteringConfig(
            data=args.dataset_data,
            reps=args.dataset_reps_dir,
            folder=str(folder),
            split=args.split,
            clustering=args.clustering,
            n_clusters=args.n_clusters or 20,
            restarts=args.restarts,
            seed=args.seed,
            stability_seeds=args.stability_seeds,
            select=args.select,
            min_group_size=args.min_group_size,
            group_size=args.group_size,
            split_name=args.split_name,
            view=args.view,
            stack=args.stack_vector_tf,
        )
    )


if __name__ == "__main__":
    run(main)
