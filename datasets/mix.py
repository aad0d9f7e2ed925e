"""Build the training split ``train_<task>_<high|low|random>_sim_<size>`` from instructions and a safety subset.

    python datasets/mix.py --instruct datasets/sandbox --instruct_split instruct --safety SELECTION/top1000.jsonl \
        --task list --sim high --size 1k --out datasets/mixtures

Writes ``OUT/data/<split>-00000-of-00001.parquet``, the card and ``OUT/manifests/<split>.json`` (ratio, order, hashes).
A split whose inputs and options are unchanged is not written again. Table of all data sets: datasets/README.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from guardrail.core.cli import Parser, positive_int, run
from guardrail.data.mix import ORDERS, SIMILARITIES, MixConfig, mix, parse_size


def build_parser() -> Parser:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--instruct", required=True, help="instruction rows: a file, a data-set folder or a hub name")
    parser.add_argument("--instruct_split", help="its split")
    parser.add_argument("--instruct_size", type=positive_int, help="use only its first rows")
    parser.add_argument("--safety", required=True, help="the selected subset (top/bottom file) or the whole pool")
    parser.add_argument("--safety_split", help="its split")
    parser.add_argument("--task", required=True, help="downstream task the subset was selected for; part of the name")
    parser.add_argument("--sim", required=True, choices=SIMILARITIES, help="which rows of a larger source are taken")
    parser.add_argument("--size", type=parse_size, help="safety rows, such as 1000 or 1k; default: all")
    parser.add_argument("--split", help="name of the split, instead of train_<task>_<sim>_sim_<size>")
    parser.add_argument("--order", choices=ORDERS, default="shuffled", help="order of the rows in the file")
    parser.add_argument("--seed", type=int, default=42, help="seed of the shuffle and of the random draw")
    parser.add_argument("--out", required=True, help="data-set folder")
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    return mix(MixConfig(**vars(build_parser().parse_args(argv))))


if __name__ == "__main__":
    run(main)
