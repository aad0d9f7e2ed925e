"""Question-answer pairs to judge, from any file that holds completions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guardrail.core.errors import UserError
from guardrail.core.files import hash_json, read_json, read_jsonl

CARRIED = ("category", "kind", "format", "seed", "prompt_id", "step")


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
        if not isinstance(run, dict) or not isinstance(run.get("data") or {}, dict):
            raise UserError(
                f"{path}: its 'run' block is not what a run writes; expected an object with an object 'data'"
            )
        rows = next((document[k] for k in ("results", "rows", "judgements") if isinstance(document.get(k), list)), None)
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path} holds no answers; expected results.json, the formatter's file, or a list of pairs")
    answers: list[Answer] = []
    seen: Counter[str] = Counter()
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
    if not isinstance(question, str) or not isinstance(text, str) or not isinstance(prefill, str):
        raise UserError(f"{place}: no question or no answer; expected e.g. 'prompt' and 'response', both texts")
    row_id, sample = row.get("id"), row.get("sample", 0)
    row_id = "" if row_id is None else row_id
    if isinstance(row_id, bool) or not isinstance(row_id, str | int):
        raise UserError(f"{place}: its 'id' is {type(row_id).__name__}; expected a text or a whole number")
    if isinstance(sample, bool) or not isinstance(sample, int) or sample < 0:
        raise UserError(f"{place}: its 'sample' is {str(sample)[:40]!r}; expected a whole number from 0 on")
    if include_prefill:
        text = prefill + text
    extra = {name: row[name] for name in CARRIED if row.get(name) is not None}
    for name, value in extra.items():
        if not isinstance(value, str | int):
            raise UserError(f"{place}: its {name!r} is {type(value).__name__}; expected a text or a whole number")
    return Answer(str(row_id), sample, question, text.strip(), extra)


def _split_conversation(conversation: Any, place: str) -> tuple[str, str, str]:
    """Question, prefill and completion; a conversation may end with one assistant turn or with two."""
    if not isinstance(conversation, list) or not all(isinstance(turn, dict) for turn in conversation):
        raise UserError(f"{place}: its conversation is no list of turns; expected [{{'role': ..., 'content': ...}}]")
    users = [i for i, turn in enumerate(conversation) if turn.get("role") == "user"]
    turns = conversation[users[-1] :] if users else []
    if len(turns) < 2:
        raise UserError(f"{place}: the conversation has no user turn followed by an answer")
    question, *answers = (turn.get("content") for turn in turns)
    if not all(isinstance(text, str) for text in (question, *answers)):
        raise UserError(f"{place}: a turn of the conversation has no text; expected 'content' to be one")
    return question, "".join(answers[:-1]), answers[-1]
