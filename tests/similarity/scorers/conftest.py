"""Small sets of mild rows and a run of all scorers that need the toy model, made once."""

from __future__ import annotations

import json

import pytest

from guardrail.data.rows import normalise_rows
from guardrail.similarity.scorers.options import ScoringConfig

THINGS = ("boat", "kettle", "lamp", "tea set", "quiet river", "fence", "small garden gate", "roof")


def make_rows(n: int, answer: str, start: int = 0) -> list[dict]:
    """``n`` rows of different lengths."""
    raw = [
        {
            "id": f"{answer[:2]}{i}",
            "prompt": f"How do I paint a {THINGS[i % 8]} number {i}?",
            "response": f"{answer} {THINGS[(i * 3) % 8]}, {' then'.join([' sand it'] * (1 + i % 5))}.",
        }
        for i in range(start, start + n)
    ]
    return normalise_rows(raw)


@pytest.fixture(scope="session")
def sets(tmp_path_factory) -> dict[str, str]:
    """Paths of anchors, alignment set and rows."""
    folder = tmp_path_factory.mktemp("scored-sets")
    out = {}
    for name, rows in (
        ("anchors", make_rows(6, "1. Sure: take the")),
        ("alignment", make_rows(7, "I cannot help with the", 3)),
        ("rows", make_rows(23, "You prime the")),
    ):
        out[name] = str(folder / f"{name}.jsonl")
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


@pytest.fixture(scope="session")
def config(tiny_model, sets) -> ScoringConfig:
    return ScoringConfig(
        scorers=("all",),
        model_name_or_path=str(tiny_model),
        anchors=sets["anchors"],
        alignment=sets["alignment"],
        projection_dim=64,
    )
