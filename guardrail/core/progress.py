"""Progress bars on stderr, from rank 0; one line per update where stderr is no terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any


def progress(iterable: Iterable[Any] | None = None, *, total: int | None = None, desc: str, unit: str = "row") -> Any:
    """A ``tqdm`` bar: rate and ETA, redrawn at most twice a second (every 10 s into a log file)."""
    from tqdm import tqdm

    interactive = sys.stderr.isatty()
    return tqdm(
        iterable,
        total=total,
        desc=desc,
        unit=unit,
        file=sys.stderr,
        disable=int(os.environ.get("RANK", "0")) != 0,
        mininterval=0.5 if interactive else 10.0,
        ncols=None if interactive else 90,
        dynamic_ncols=interactive,
    )
