"""Put harmful rows into benign ones at several doses: nested training splits ``dose_<percent>`` of constant size.

    python datasets/dose.py --benign datasets/alpaca --harmful my_rows.jsonl --rows 1000 --percents 0,1,10 \
        --out datasets/doses

Writes ``OUT/data/dose_<percent>-00000-of-00001.parquet``, the card and ``OUT/manifests/``. A study makes its own from
the ``dose:`` block of a task (docs/dose.md).
"""

from guardrail.core.cli import run
from guardrail.data.dose import main

if __name__ == "__main__":
    run(main)
