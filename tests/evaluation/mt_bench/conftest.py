"""A small question set in FastChat's layout, and answers to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

QUESTIONS = [
    {"question_id": 1, "category": "writing", "turns": ["Write about the quiet sea.", "Shorter, please."]},
    {"question_id": 2, "category": "math", "turns": ["What is 2 + 3?", "And twice that?"], "reference": ["5", "10"]},
    {"question_id": 3, "category": "stem", "turns": ["Why do boats float?", "Say it to a child."]},
]
REFERENCES = [
    {
        "question_id": 2,
        "answer_id": "r2",
        "model_id": "gpt-4",
        "choices": [{"index": 0, "turns": ["It is 5.", "It is 10."]}],
        "tstamp": 0.0,
    }
]


def write_lines(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def question_folder(tmp_path) -> Path:
    """``question.jsonl`` and ``reference_answer/gpt-4.jsonl``; no judge prompts: this project's own are used."""
    folder = tmp_path / "questions"
    write_lines(folder / "question.jsonl", QUESTIONS)
    write_lines(folder / "reference_answer" / "gpt-4.jsonl", REFERENCES)
    return folder


@pytest.fixture
def answers_file(tmp_path) -> Path:
    """A FastChat ``model_answer`` file for the three questions."""
    rows = [
        {
            "question_id": q["question_id"],
            "answer_id": f"a{q['question_id']}",
            "model_id": "toy",
            "choices": [{"index": 0, "turns": [f"first answer {q['question_id']}", f"second {q['question_id']}"]}],
            "tstamp": 0.0,
        }
        for q in QUESTIONS
    ]
    return write_lines(tmp_path / "toy.jsonl", rows)
