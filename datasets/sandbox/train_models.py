"""Train the sandbox's tiny models: base, uncensored chat model, moderation model.

    python datasets/sandbox/train_models.py [--data datasets/sandbox] [--out models/sandbox] [--seed 0]

Two processes of one thread; finished models are not trained again. Progress goes to stderr, the last line on stdout is
one JSON object with the folders and the moderation model's agreement with the generator's labels on held-out pairs
(all of it in ``<out>/moderation/agreement.json``). Logic and limits: ``guardrail/sandbox/models.py``.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parents[1]))  # last, so that the folder datasets/ cannot hide the datasets library

from guardrail.core.cli import Parser, positive_int, run  # noqa: E402
from guardrail.core.places import SANDBOX_DATA, SANDBOX_MODELS  # noqa: E402

STAGES = ("base", "chat", "moderation")


def main() -> dict[str, object]:
    parser = Parser(description="Train the sandbox's tiny models.")
    parser.add_argument("--data", default=str(SANDBOX_DATA), help="sandbox data-set folder")
    parser.add_argument("--out", default=str(SANDBOX_MODELS), help="folder of the models")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and row order")
    parser.add_argument(
        "--stages", nargs="+", default=STAGES, choices=STAGES, help="which models; chat and moderation need base"
    )
    parser.add_argument("--row_limit", type=positive_int, default=None, help="cut every training split (for tests)")
    args = parser.parse_args()

    from guardrail.sandbox.models import train_models

    start = time.perf_counter()
    result = train_models(args.out, args.data, args.seed, args.row_limit, args.stages)
    return {**result, "seconds": round(time.perf_counter() - start, 1)}


if __name__ == "__main__":
    run(main)
