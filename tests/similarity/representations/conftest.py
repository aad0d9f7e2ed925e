"""Mild rows of uneven length, and one way to extract them."""

import pytest

from guardrail.data.rows import normalise_rows
from guardrail.similarity.representations import options as o
from guardrail.similarity.representations.extract import extract_representations

WORDS = ("boat", "river", "tea", "paint", "three", "gentle", "ways", "quiet", "sea", "wood", "sand", "prime")


def make_rows(n=23, **extra):
    """Rows of 1 to about 60 words, deterministic."""
    out = []
    for i in range(n):
        length = 1 + (i * i * 7) % 60
        answer = " ".join(WORDS[(i + j * 3) % len(WORDS)] for j in range(length))
        out.append({"prompt": f"Name {WORDS[i % len(WORDS)]} number {i}.", "response": answer, **extra})
    return normalise_rows(out)


@pytest.fixture
def rows():
    return make_rows()


@pytest.fixture
def extract(tiny_model, tmp_path):
    """``extract(rows, name="store", batch_tokens=..., **options) -> (store folder, manifest)``."""

    def run(rows, name="store", model=None, batch_tokens=None, path="rows.jsonl", overwrite=False, **options):
        model = str(model or tiny_model)
        facts = o.model_facts(model)
        resolved = o.resolve_options(facts, **options)
        store = tmp_path / name
        source = {"path": path, "split": None, "name": None, "limit": None}
        return store, extract_representations(
            rows, source, model, resolved, facts, store, batch_tokens, overwrite=overwrite
        )

    return run
