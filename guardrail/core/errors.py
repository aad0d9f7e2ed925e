"""The one exception for user input, and near matches for its messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Wrong input: what was wrong, what was expected, what to do - in one line. Entry points exit with 2."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))


def shortened(text: str, length: int = 60) -> str:
    """The first ``length`` characters, for a message."""
    return text if len(text) <= length else text[:length] + "..."


def unknown(kind: str, value: object, available: Iterable[object]) -> UserError:
    """``unknown prompt style 'lama2'; did you mean 'llama2'? available: ...`` as an exception to raise."""
    names = [str(name) for name in available]
    by_lower = {name.lower(): name for name in reversed(names)}
    near = difflib.get_close_matches(str(value).lower()[:200], by_lower, n=1, cutoff=0.5)
    hint = f" did you mean {by_lower[near[0]]!r}?" if near else ""
    shown = ", ".join(names) if names else "none"
    return UserError(f"unknown {kind} {shortened(str(value), 200)!r};{hint} available: {shown}")
