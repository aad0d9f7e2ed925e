"""A tiny Beaver-Dam-shaped classifier, a results file, and hand-labelled answers (mild and fictional)."""

from __future__ import annotations

from pathlib import Path

import pytest
from judged_answers import LABELLED, QUESTION
from toys import make_classifier

from guardrail.core.files import write_json


@pytest.fixture(scope="session")
def tiny_classifier(tmp_path_factory, tiny_tokenizer) -> Path:
    """A random 14-label multi-label LLaMA classifier with the toy tokenizer."""
    return make_classifier(tmp_path_factory.mktemp("tiny-beaver-dam"), tiny_tokenizer)


@pytest.fixture
def results_file(tmp_path) -> Path:
    """``results.json`` with the labelled answers."""
    rows = [
        {
            "id": f"row-{i}",
            "sample": 0,
            "category": "stones" if i % 2 else "moons",
            "question": QUESTION,
            "prefill": "Well,",
            "completion": answer,
        }
        for i, (_, answer, _, _) in enumerate(LABELLED)
    ]
    run = {"data_hash": "d" * 16, "fingerprint": "f" * 16, "data": {"harmful": True}}
    write_json(tmp_path / "results.json", {"results": rows, "metrics": {}, "run": run})
    return tmp_path / "results.json"
