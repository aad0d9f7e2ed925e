"""torch's own ``F.linear`` in a process in which ZeRO 3 has been used."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def plain_linear() -> Iterator[None]:
    """Inside, ``F.linear`` is torch's own: ZeRO 3 replaces it, for the rest of the process, by one without a
    forward-mode derivative, which adds a bias in a step of its own."""
    import torch
    import torch.nn.functional as F

    before, F.linear = F.linear, torch._C._nn.linear
    try:
        yield
    finally:
        F.linear = before
