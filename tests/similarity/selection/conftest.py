"""A pool with categories, lists and duplicates; representations made in place, no model."""

import json

import numpy as np
import pytest
import torch

from guardrail.data.rows import normalise_rows


def make_pool(n=60, seed=0):
    """Rows with uneven lengths, three categories, a third of them lists."""
    generator = np.random.default_rng(seed)
    out = []
    for i in range(n):
        words = " ".join(
            generator.choice(["boat", "river", "tea", "sand", "wood"], size=3 + int(generator.integers(30)))
        )
        answer = f"1. {words}\n2. {words}" if i % 3 == 0 else words
        out.append({"id": f"p{i}", "prompt": f"Ask {i}", "response": answer, "category": "abc"[i % 3 if i % 5 else 0]})
    return normalise_rows(out)


def random_matrix(n, width, seed):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32))


@pytest.fixture
def files(tmp_path):
    """Pool rows with representations and anchors, on disk: what the entry point takes."""
    rows = make_pool()
    with open(tmp_path / "pool.jsonl", "w") as handle:
        for row in rows:
            handle.write(json.dumps(row) + "\n")
    with open(tmp_path / "anchors.jsonl", "w") as handle:
        for row in make_pool(7, seed=9):
            handle.write(json.dumps(row) + "\n")
    torch.save(random_matrix(60, 16, 1), tmp_path / "pool.pt")
    torch.save(random_matrix(7, 16, 2), tmp_path / "anchors.pt")
    torch.save(random_matrix(5, 16, 3), tmp_path / "safe.pt")
    return tmp_path
