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

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from guardrail.core.cli import Parser, boolean, positive_int, run
from guardrail.core.errors import UserError
from guardrail.similarity.selection.names import DUPLICATES, MERGES, SELECTOR_NEEDS


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--dataset_folder", required=True, help="subsets go to <dataset_folder>/<save_folder>/")
    add("--stack_vector_tf", type=boolean, default=False, help="join reps-<number>.pt into --dataset_reps_dir first")
    add("--select_n", type=positive_int, default=100, help="rows per subset")
    add("--dataset_dir", required=True, help="rows of the pool: a file, a data-set folder or a hub name")
    add("--split", help="split of dataset_dir, where it has several")
    add("--dataset_reps_dir", help="representations of the pool: a store, .pt, .npy, .safetensors, folder of reps-*.pt")
    add("--anchoring_reps_dir", help="representations of the anchors (downstream rows)")
    add("--safe_anchoring_reps_dir", help="safe anchors, for the bi_anchor selectors")
    add("--anchoring_dataset_dir", help="rows of the anchors, for the length selectors")
    add("--anchoring_split", help="split of anchoring_dataset_dir")
    add("--selector", default="high,low", help=f"subsets to write, with commas: {', '.join(SELECTOR_NEEDS)}")
    add("--avg_n", type=positive_int, default=1, help="cosines averaged per row (1: the maximum)")
    add("--merge", default="score", choices=MERGES, help="how the anchors' lists become one")
    add("--duplicates", default="keep", choices=DUPLICATES, help="keep or drop rows whose conversation occurred before")
    add("--seed", type=int, default=42, help="seed of random and of random projections")
    add("--view", help="layer and position of a store with several, e.g. layer16_eos")
    add("--diversity", type=boolean, default=True, help="diversity measures of every subset in selection.json")
    add("--sweep", help="layers, positions or both with a comma: how much the subsets agree across a store's views")
    add("--save_folder", help="folder name under dataset_folder (default: selected_by_<anchors' folder>)")
    return parser


def default_save_folder(anchoring_reps: str | None) -> str:
    """``selected_by_list`` for ``data/list/reps/M/reps-full.pt``; ``selected`` without anchors."""
    if anchoring_reps is None:
        return "selected"
    path = Path(anchoring_reps)
    folder = path.parent if path.suffix else path
    name = folder.parent.parent.name if folder.parent.name == "reps" else folder.name
    return f"selected_by_{name or path.stem}"


def main(argv: list[str] | None = None) -> dict[str, Any]:
    args = build_parser().parse_args(argv)
    from guardrail.similarity.selection.pipeline import SelectionConfig, select

    if args.anchoring_split and not args.anchoring_dataset_dir:
        raise UserError("--anchoring_split names a split of --anchoring_dataset_dir, which is not given")
    name = args.save_folder or default_save_folder(args.anchoring_reps_dir)
    return select(
        SelectionConfig(
            pool_data=args.dataset_dir,
            folder=str(Path(args.dataset_folder) / name),
            pool_split=args.split,
            pool_reps=args.dataset_reps_dir,
            anchor_reps=args.anchoring_reps_dir,
            safe_anchor_reps=args.safe_anchoring_reps_dir,
            anchor_data=args.anchoring_dataset_dir,
            anchor_split=args.anchoring_split,
            selectors=tuple(dict.fromkeys(args.selector.split(","))),
            select_n=args.select_n,
            avg_n=args.avg_n,
            merge=args.merge,
            duplicates=args.duplicates,
            seed=args.seed,
            view=args.view,
            stack=args.stack_vector_tf,
            diversity=args.diversity,
            sweep=tuple(dict.fromkeys(args.sweep.split(","))) if args.sweep else (),
        )
    )


if __name__ == "__main__":
    run(main)
