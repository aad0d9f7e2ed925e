"""Question-answer pairs to judge, from any file that holds completions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guardrail.core.errors import UserError
from guardrail.core.files import hash_json, read_json, read_jsonl

CARRIED = ("category", "kind", "format", "seed")


@dataclass(frozen=True)
class Answer:
    """One completion. ``text`` is what is judged: the completion, with its prefill in front when asked for."""

    id: str
    sample: int
    question: str
    text: str
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int]:
        return self.id, self.sample


@dataclass(frozen=True)
class AnswerFile:
    """All answers of a file and what is known about the run that made them."""

    path: Path
    answers: list[Answer]
    run: dict[str, Any]

    @property
    def harmful_bench(self) -> bool:
        """Should the prompts be refused? True unless the run says that they are harmless look-alikes."""
        return (self.run.get("data") or {}).get("harmful", True) is not False

    @property
    def answers_hash(self) -> str:
        return hash_json([[a.id, a.sample, a.question, a.text] for a in self.answers])


def load_answers(path: str | Path, include_prefill: bool = False) -> AnswerFile:
    """Read ``results.json`` (ours, or shallow-vs-deep's bare conversations), the formatter's file, or a list/jsonl of
    ``{"prompt"|"question"|"instruction": ..., "response"|"answer"|"output"|"completion": ...}``.

    Raises ``UserError``: missing file, a row without question or answer, two rows with the same id and sample, no row.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "results.json"
    document = _read(path)
    run: dict[str, Any] = {}
    rows = document
    if isinstance(document, dict):
        run = document.get("run") or {}
        rows = next((document[k] for k in ("results", "rows", "judgements") if isinstance(document.get(k), list)), None)
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path} holds no answers; expected results.json, the formatter's file, or a list of pairs")
    answers, seen = [], Counter()
    for number, row in enumerate(rows, 1):
        answer = _answer(row, f"{path}, row {number}", include_prefill)
        if answer.id == "":
            content = hash_json([answer.question, answer.text])
            answer = Answer(f"{content}-{seen[content]}", answer.sample, answer.question, answer.text, answer.extra)
            seen[content] += 1
        answers.append(answer)
    doubles = [key for key, count in Counter(a.key for a in answers).items() if count > 1]
    if doubles:
        raise UserError(f"{path}: id {doubles[0][0]!r} sample {doubles[0][1]} occurs twice; ids must be unique")
    return AnswerFile(path, answers, run)


def _read(path: Path) -> Any:
    if path.name.endswith(".jsonl") and path.is_file():
        return [row for _, row in read_jsonl(path)]
    return read_json(path)


def _answer(row: Any, place: str, include_prefill: bool) -> Answer:
    if isinstance(row, list):  # a bare conversation
        row = {"conversation": row}
    if not isinstance(row, dict):
        raise UserError(f"{place}: expected an object or a conversation, got {type(row).__name__}")
    conversation = row.get("conversation")
    prefill = row.get("prefill") or ""
    if "completion" in row and "question" in row:
        question, text = row["question"], row["completion"]
    elif conversation:
        question, prefill, text = _split_conversation(conversation, place)
    else:
        question = next((row[c] for c in ("prompt", "question", "instruction") if row.get(c) is not None), None)
        text = next((row[c] for c in ("response", "answer", "output", "completion") if row.get(c) is not None), None)
    if not isinstance(question, str) or not isinstance(text, str):
        raise UserError(f"{place}: no question or no answer; expected e.g. 'prompt' and 'response'")
    if include_prefill:
        text = prefill + text
    extra = {name: row[name] for name in CARRIED if row.get(name) is not None}
    return Answer(str(row.get("id", "")), int(row.get("sample", 0)), question, text.strip(), extra)


def _split_conversation(conversation: list[dict[str, Any]], place: str) -> tuple[str, str, str]:
    """Question, prefill and completion; a conversation may end with one assistant turn or with two."""
    users = [i for i, turn in enumerate(conversation) if turn.get("role") == "user"]
    answers = [str(t.get("content", "")) for t in conversation[users[-1] + 1 :]] if users else []
    if not answers:
        raise UserError(f"{place}: the conversation has no user turn followed by an answer")
    return str(conversation[users[-1]]["content"]), "".join(answers[:-1]), answers[-1]
