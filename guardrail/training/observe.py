"""Look at a model while it trains: at which steps, and without changing the training.

    result = guardrail.training.sft.main(argv, observer)

An observer is shown the model before the first step, after the steps that it asks for and after the last one. Weights
and losses of the training are the same, bit for bit, with and without it: it looks in evaluation mode and without
gradients, and random states are put back. What it sees decides nothing of the training, so it is in no key of it.
Under ZeRO 3 the weights are gathered for it on every rank (`guardrail.training.whole`).
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from typing import Any, Protocol


class Observer(Protocol):
    """Something that looks at a model in training."""

    def begin(self, mark: str) -> None:
        """Called first: ``mark`` is a hash over everything that decides the training (`guardrail.training.sft`)."""

    def steps(self, n_steps: int) -> Sequence[int]:
        """The optimizer steps, from 0 to ``n_steps``, after which it looks."""

    def look(self, step: int, model: Any, tokenizer: Any) -> None:
        """Look at ``model`` (whole on every rank) after ``step`` steps. Collective: every rank is here."""

    def is_complete(self) -> bool:
        """Has everything been seen by an earlier run? A finished training is not repeated then."""


def log_steps(n_steps: int, n_probes: int) -> list[int]:
    """0, then up to ``n_probes - 1`` distinct steps from 1 to ``n_steps``, even on a logarithmic scale where whole
    steps allow it: neighbours of small steps are taken first. Both ends are always among them.

    Raises ``ValueError`` for fewer than two probes or one step.
    """
    if n_probes < 2 or n_steps < 1:
        raise ValueError(f"log_steps needs at least 2 probes and 1 step, got {n_probes} and {n_steps}")
    import numpy as np

    wanted = min(n_probes - 1, n_steps)
    if wanted == 1:
        return [0, n_steps]
    resolution = wanted
    while True:
        steps = np.unique(np.rint(np.geomspace(1, n_steps, resolution)).astype(int))
        if len(steps) >= wanted:
            break
        resolution += 1
    return [0, *steps.tolist()]


@contextlib.contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Inside, ``model`` is in evaluation mode; afterwards modes and random states are what they were."""
    import numpy as np
    import torch

    modes = {module: module.training for module in model.modules()}
    states = (random.getstate(), np.random.get_state())
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    model.eval()
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        random.setstate(states[0])
        np.random.set_state(states[1])
