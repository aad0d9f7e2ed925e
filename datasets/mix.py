"""Build the training split ``train_<task>_<high|low|random>_sim_<size>`` from instructions and a safety subset.

    python datasets/mix.py --instruct datasets/sandbox --instruct_split instruct --safety SELECTION/top1000.jsonl \
        --pool datasets/sandbox --pool_split safety_pool --task list --sim high --size 1k --out datasets/mixtures

Writes ``OUT/data/<split>-00000-of-00001.parquet``, the card and ``OUT/manifests/<split>.json`` (ratio, order, hashes).
A split whose inputs and options are unchanged is not written again. Table of all data sets: datasets/README.md.
"""

from guardrail.core.cli import run
from guardrail.data.mix import main

if __name__ == "__main__":
    run(main)
