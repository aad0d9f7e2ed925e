"""Write the sandbox data set in the hub's layout (about a second; nothing is done when it is already there).

    python datasets/sandbox/generate.py [--out datasets/sandbox] [--seed 0]

Writes ``data/<split>-00000-of-00001.parquet``, ``mt_bench/``, ``README.md`` and, last, ``manifest.json``.
The last line on stdout is one JSON object. Logic: ``guardrail/sandbox/writer.py``.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parents[1]))  # last, so that the folder datasets/ cannot hide the datasets library

from guardrail.core.cli import Parser, log, run  # noqa: E402
from guardrail.core.places import SANDBOX_DATA  # noqa: E402


def main() -> dict[str, object]:
    parser = Parser(description="Write the sandbox data set in the hub's layout.")
    parser.add_argument("--out", default=str(SANDBOX_DATA), help="data-set folder")
    parser.add_argument("--seed", type=int, default=0, help="seed of the world")
    args = parser.parse_args()

    from guardrail.sandbox.writer import write_sandbox

    start = time.perf_counter()
    manifest = write_sandbox(args.out, args.seed)
    seconds = time.perf_counter() - start
    state = "written" if manifest["written"] else "unchanged"
    log(f"sandbox data: {sum(manifest['n_rows'].values())} rows in {len(manifest['n_rows'])} splits, {state}")
    return {"out": args.out, "written": manifest["written"], "n_rows": manifest["n_rows"], "seconds": round(seconds, 2)}


if __name__ == "__main__":
    run(main)
