"""Train the sandbox's tiny models: base, uncensored chat model, moderation model.

    python datasets/sandbox/train_models.py [--data datasets/sandbox] [--out models/sandbox] [--seed 0]

Two processes of one thread; finished models are not trained again. Progress goes to stderr, the last line on stdout is
one JSON object with the folders and the moderation model's agreement with the generator's labels on held-out pairs
(all of it in ``<out>/moderation/agreement.json``). Logic and limits: ``guardrail/sandbox/models.py``.
"""

from guardrail.core.cli import run
from guardrail.sandbox.models import main

if __name__ == "__main__":
    run(main)
