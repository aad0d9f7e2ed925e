"""A tiny data set of fictional dialogues in SAMSum's shape."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

DIALOGUES = [
    ("Ann: Tea at four?\nBob: Yes, at the quiet mill.", "Bob meets Ann for tea at four at the mill."),
    ("Cleo: Where is the boat?\nDan: By the river.", "The boat is by the river, says Dan."),
    ("Ann: Tea at four?\nBob: Yes, at the quiet mill.", "Bob meets Ann for tea at four at the mill."),  # a true double
    ("Eve: I painted it red.\nFay: Lovely!", "Fay likes that Eve painted it red."),
    ("Gus: Did you sand it?\nHal: Twice.\nGus: Then prime it.", "Hal sanded it twice; Gus says to prime it."),
]


@pytest.fixture
def samsum_file(tmp_path) -> Path:
    """Five rows, one of them twice."""
    path = tmp_path / "samsum.jsonl"
    path.write_text("".join(json.dumps({"dialogue": d, "summary": s}) + "\n" for d, s in DIALOGUES))
    return path
