"""A toy moderation model for the runs of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from toys import make_classifier


@pytest.fixture
def tiny_classifier(tmp_path, tiny_tokenizer) -> Path:
    return make_classifier(tmp_path / "classifier", tiny_tokenizer)
