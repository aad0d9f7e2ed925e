"""Turn a published or private data set into a data-set folder: rows, card, counts, licence, hashes.

    python datasets/prepare.py alpaca                         # from the hub, into datasets/alpaca
    python datasets/prepare.py beavertails --source COPY      # from a local copy, where there is no hub
    python datasets/prepare.py pure_bad --source my_rows.jsonl

A gated or unreachable source gives the step to take, within five seconds. Table of all data sets: datasets/README.md.
"""

from guardrail.core.cli import run
from guardrail.data.prepare import main

if __name__ == "__main__":
    run(main)
