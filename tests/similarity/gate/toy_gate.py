"""A gate without models: scorers that count words, a policy of them, a customer's file with awkward lines."""

from __future__ import annotations

import json

import numpy as np
import yaml

from guardrail.similarity.scorers import SCORERS

CANARY = "zqcanaryqz"
GOOD = [
    {"prompt": f"How do I paint boat {i}?", "response": f"Sand it {i} times. Prime it. Paint it."} for i in range(40)
]


def score_evil(rows, inputs):
    """How often the last answer says evil, per 10 words."""
    texts = [row["messages"][-1]["content"].lower() for row in rows]
    return np.asarray([10 * text.count("evil") / max(1, len(text.split())) for text in texts])


def score_zeal(rows, inputs):
    return np.asarray([float(row["messages"][-1]["content"].count("!")) for row in rows])


def add_scorers(monkeypatch) -> None:
    """Known for one test."""
    for name in ("evil", "zeal"):
        SCORERS.add(name, f"{__name__}:score_{name}", needs=(), cost="none")


def remove_scorers() -> None:
    for name in ("evil", "zeal"):
        SCORERS.remove(name)


def write_policy(path, **changes):
    """A policy file; a change of None takes the block out."""
    value = {
        "references": {"good": str(path.parent / "good.jsonl")},
        "reference_rows": 40,
        "rules": {
            "format": {},
            "harmful": {"scorer": "evil", "above": 1.0},
            "erodes": {"scorer": "zeal", "above_percentile": 99},
            "near_duplicate": {"jaccard": 0.9},
            "length": {"above_percentile": 100, "action": "flag"},
            "secrets": {},
        },
    }
    value = {name: one for name, one in {**value, **changes}.items() if one is not None}
    path.write_text(yaml.safe_dump(value))
    (path.parent / "good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GOOD))
    return path


def awkward_lines() -> list[bytes]:
    """Rows of many shapes with a canary in every text, id and column; malformed lines with one too."""
    c = CANARY
    rows = [
        {"id": f"{c}-1", "prompt": f"{c} Paint?", "response": f"Sand it, {c}. Then paint, friend."},
        {"prompt": f"Again {c}?", "response": f"This is evil {c}, evil."},
        {"instruction": f"Do {c}", "input": "", "output": f"Yes! {c}! Now! Here!", "category": c},
        {"messages": [{"role": "user", "content": c}, {"role": "assistant", "content": f"Fine — {c} 字😀."}], c: [c]},
        {"prompt": f"{c} no answer?", "response": " "},
        {"prompt": "x", "response": "yes it is", "loss_mask": [[0, 99]], "note": c},
        {"id": f"{c}-1", "prompt": f"{c} other", "response": f"An id that was there before, {c}."},
        {c: c},
        {"messages": [{"role": c, "content": c}]},
        {"prompt": f"{c}  Paint?", "response": f"sand it, {c}. Then PAINT, friend."},
        {"prompt": f"{c} key", "response": f"It is AKIAIOSFODNN7{c[:3].upper()}PLE and AKIAIOSFODNN7EXAMPLE {c}."},
    ]
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    lines += [f'{{"prompt": "{c}", '.encode(), b"\xff\xfe " + c.encode(), f'["{c}"]'.encode(), f'"{c}"'.encode()]
    lines += [b'{"prompt": "' + c.encode() + b'", "response": "NaN ' + c.encode() + b'", "x": NaN}']
    return lines
