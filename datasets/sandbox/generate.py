"""Write the sandbox data set in the hub's layout (about a second; nothing is done when it is already there).

    python datasets/sandbox/generate.py [--out datasets/sandbox] [--seed 0]
    python datasets/sandbox/generate.py --world control_positive        # a control world (docs/controls.md)

Writes ``data/<split>-00000-of-00001.parquet``, ``mt_bench/``, ``README.md`` and, last, ``manifest.json``.
The last line on stdout is one JSON object. Logic: ``guardrail/sandbox/writer.py``, ``controls.py``.
"""

from guardrail.core.cli import run
from guardrail.sandbox.controls import main

if __name__ == "__main__":
    run(main)
