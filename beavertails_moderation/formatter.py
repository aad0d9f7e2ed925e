"""From ``results.json`` to the rows that the moderation model judges: question and answer, joined by id and sample.

    python beavertails_moderation/formatter.py $DATA_PATH/results.json $DATA_PATH/results_beaver-dam.json

``--include_prefill True`` puts the prefilled words in front of the answer. Reads shallow-vs-deep's files too.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from guardrail.core.cli import run
from guardrail.evaluation.judges.beavertails import format_main as main

if __name__ == "__main__":
    run(main)
