"""Turn a published or private data set into a data-set folder: rows, card, counts, licence, hashes.

    python datasets/prepare.py alpaca                         # from the hub, into datasets/alpaca
    python datasets/prepare.py beavertails --source COPY      # from a local copy, where there is no hub
    python datasets/prepare.py pure_bad --source my_rows.jsonl

A gated or unreachable source gives the step to take, within five seconds. Table of all data sets: datasets/README.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from guardrail.core.cli import Parser, positive_int, run
from guardrail.core.places import DATASETS
from guardrail.data.sources import NAMES


def build_parser() -> Parser:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("name", metavar="NAME", help=f"one of: {', '.join(NAMES)}")
    parser.add_argument("--source", help="local copy: a file or a folder; default: the hub")
    parser.add_argument("--out", help="data-set folder; default: datasets/NAME")
    parser.add_argument("--split", help="only this split (of a file: the name to give it)")
    parser.add_argument("--revision", help="hub revision; default: the newest, recorded on the card")
    parser.add_argument("--limit", type=positive_int, help="only the first rows of every split")
    parser.add_argument("--instruct_size", type=positive_int, help="ultrachat_beavertails: instruction rows to use")
    parser.add_argument("--seed", type=int, default=42, help="ultrachat_beavertails: seed of the shuffle")
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = build_parser().parse_args(argv)
    from guardrail.data.prepare import PrepareConfig, canonical, prepare

    name = canonical(args.name)
    out = args.out or str(DATASETS / name)
    return prepare(
        PrepareConfig(name, out, args.source, args.split, args.revision, args.limit, args.instruct_size, args.seed)
    )


if __name__ == "__main__":
    run(main)
