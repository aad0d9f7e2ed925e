"""Models that stay loaded while several stages run in one process (`guardrail.core.steps`).

Outside of `kept_loaded` nothing is kept: every stage loads what it needs and lets it go.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")
_kept: dict[tuple[object, ...], object] | None = None


@contextlib.contextmanager
def kept_loaded() -> Iterator[None]:
    """Inside, the model that was loaded last stays: one, so that no more memory is needed than by a stage alone.

    What a model is read from must not change meanwhile.
    """
    global _kept
    before, _kept = _kept, {}
    try:
        yield
    finally:
        _kept = before


def loaded(load: Callable[[], T], *what: object) -> T:
    """``load()``, or what it gave for the same ``what`` (kind, path, dtype, ...: everything that decides) before."""
    if _kept is None:
        return load()
    if what not in _kept:
        _kept.clear()  # first: two do not fit
        _kept[what] = load()
    return _kept[what]  # type: ignore[return-value]  # ``what`` names the kind
