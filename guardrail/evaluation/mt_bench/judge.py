"""Judge two-turn answers: what is sent, who judges, how a killed run goes on; FastChat's ``model_judgment`` file.

FastChat's measure judges both turns of every question (160 for 80 questions); math, reasoning and coding with a
reference answer. The older align-anything measure judges only the second turn in its multi-turn form (80), with the
question's own reference, whose first answer it also shows as the second (reproduced, under its own name).

What a judge's text says follows FastChat's rule (common.py): the first ``[[x]]``, else the first ``[x]``, with x a
number without sign. Beyond it, and counted: a text with several different ratings keeps the first and is marked
ambiguous; a rating outside 1..10 is a failure (FastChat would average it). The older rule knows ``[[x]]`` only, with
sign, on 0..10.

A judgement that fails - no rating, out of range, no answer from the server - has score -1 and says why. It is never
averaged; a later run asks again where the server failed, and keeps what it answered.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from guardrail.core.cli import log
from guardrail.core.errors import UserError
from guardrail.core.files import hash_json, write_jsonl
from guardrail.core.openai_client import Client, run_parallel
from guardrail.core.progress import progress
from guardrail.core.units import Units, consecutive
from guardrail.evaluation.mt_bench.answers import ALIGN_ANYTHING, FASTCHAT
from guardrail.evaluation.mt_bench.data import NEED_REFERENCE, QuestionSet, read_lines

DOUBLE = re.compile(r"\[\[(\d+\.?\d*)\]\]")
SINGLE = re.compile(r"\[(\d+\.?\d*)\]")
ALIGN_ANYTHING_DOUBLE = re.compile(r"\[\[(-?\d+(?:\.\d+)?)\]\]")
LOWEST, HIGHEST = 1, 10
NO_RATING, OUT_OF_RANGE = "no_rating", "out_of_range"
FAILED_SCORE = -1  # FastChat's value in a judgement file; never part of a mean
PROMPT_TOO_LONG = "prompt_too_long"
FINAL_FAILURES = (NO_RATING, OUT_OF_RANGE, PROMPT_TOO_LONG)  # asking again would not help; others are the server's
FIELD = re.compile(r"\{(question|question_1|question_2|answer|answer_1|answer_2|ref_answer_1|ref_answer_2)\}")
ERROR_TEXT = "$ERROR$"  # FastChat's text for a judgement that never came


@dataclass(frozen=True)
class Rating:
    """``score`` (None when there is none), ``failure`` (None when there is one), and whether ratings disagreed."""

    score: int | float | None
    failure: str | None
    ambiguous: bool = False


def _number(text: str) -> int | float:
    return float(text) if "." in text else int(text)


def parse_rating(text: str) -> Rating:
    """FastChat's rating of a judgement."""
    found = DOUBLE.findall(text) or SINGLE.findall(text)
    if not found:
        return Rating(None, NO_RATING)
    ambiguous = len({float(number) for number in found}) > 1
    score = _number(found[0])
    if not LOWEST <= score <= HIGHEST:
        return Rating(None, OUT_OF_RANGE, ambiguous)
    return Rating(score, None, ambiguous)


def parse_align_anything_rating(text: str) -> Rating:
    """The older measure's rating; its saver then writes 0 for a text without one."""
    found = ALIGN_ANYTHING_DOUBLE.findall(text)
    if not found:
        return Rating(None, NO_RATING)
    return Rating(_number(found[0]), None, len({float(number) for number in found}) > 1)


@dataclass(frozen=True)
class Match:
    """One judgement to ask for."""

    question_id: int
    category: str
    turn: int
    prompt_name: str
    system_prompt: str
    user_prompt: str

    @property
    def key(self) -> str:
        return f"{self.question_id}/turn-{self.turn}"


@dataclass(frozen=True)
class Judgement:
    """A match's outcome. ``score`` is None exactly when ``failure`` says why."""

    key: str
    score: int | float | None
    failure: str | None
    ambiguous: bool
    judgment: str
    attempts: int


@dataclass(frozen=True)
class Asked:
    """What came back for the match at ``index``: ``text``, or ``error`` with the server's words in ``detail``."""

    index: int
    text: str | None
    error: str | None = None
    detail: str = ""
    attempts: int = 1


class Judge(Protocol):
    """Asks for many judgements; yields them in any order."""

    name: str

    def ask(self, matches: Sequence[Match]) -> Iterator[Asked]: ...


def fill(template: str, values: dict[str, str]) -> str:
    """Put ``values`` into ``template`` in one pass: braces inside an answer are never taken for fields."""
    return FIELD.sub(lambda found: values[found.group(1)], template)


def make_matches(questions: QuestionSet, rows: Sequence[dict[str, Any]], protocol: str = FASTCHAT) -> list[Match]:
    """The judgements of ``rows`` (``question_id``, ``answers``), first turns before second ones as in FastChat.

    Raises ``UserError`` when a question that needs a reference answer has none.
    """
    by_id = {question["question_id"]: question for question in questions.questions}
    turns = (1, 2) if protocol == FASTCHAT else (2,)
    matches = []
    for turn in turns:
        for row in rows:
            question = by_id[row["question_id"]]
            references = _references(questions, question, protocol)
            name = questions.prompt_names[references is not None, turn]
            prompt = questions.judge_prompts[name]
            values = {
                "question": question["turns"][0],
                "answer": row["answers"][0],
                **{f"question_{i + 1}": text for i, text in enumerate(question["turns"])},
                **{f"answer_{i + 1}": text for i, text in enumerate(row["answers"])},
                **{f"ref_answer_{i + 1}": text for i, text in enumerate(references or ())},
            }
            user = fill(prompt["prompt_template"], values)
            matches.append(
                Match(question["question_id"], question["category"], turn, name, prompt["system_prompt"], user)
            )
    return matches


def _references(questions: QuestionSet, question: dict[str, Any], protocol: str) -> list[str] | None:
    """Both reference answers to show, or None. The second reference is the second one (but see the older measure)."""
    own = questions.references.get(question["question_id"])
    if protocol == ALIGN_ANYTHING:
        first = question.get("reference") or (own if question["category"] in NEED_REFERENCE else None)
        return [first[0], first[0]] if first else None
    if question["category"] not in NEED_REFERENCE:
        return None
    if own is None or len(own) != 2:
        raise UserError(
            f"{questions.source} has no two reference answers for question {question['question_id']} "
            f"({question['category']}); expected them in reference_answer/*.jsonl"
        )
    return own


class ServerJudge:
    """A chat model behind an OpenAI-compatible server, at temperature 0."""

    def __init__(
        self,
        name: str,
        client: Client,
        max_tokens: int = 2048,
        workers: int = 8,
    ) -> None:
        self.name = name
        self.client = client
        self.max_tokens = max_tokens
        self.workers = workers

    def ask(self, matches: Sequence[Match]) -> Iterator[Asked]:
        def job(match: Match) -> Any:
            return lambda: self.client.chat(self.name, _messages(match), temperature=0, max_tokens=self.max_tokens)

        for index, reply in run_parallel([job(match) for match in matches], workers=self.workers):
            text = None if reply.error else reply.text
            yield Asked(index, text, reply.error, reply.detail, reply.attempts)


class LocalJudge:
    """A chat model in this process (``hf`` or ``vLLM``), greedy, with its tokenizer's own chat template."""

    def __init__(self, name: str, backend: Any, work: Path, key: str, max_tokens: int = 2048) -> None:
        self.name = name
        self.backend = backend
        self.work = work
        self.key = key
        self.max_tokens = max_tokens

    def ask(self, matches: Sequence[Match]) -> Iterator[Asked]:
        from guardrail.data.prompts import encode_prompt
        from guardrail.generation import Request, SamplingOptions, generate_resumable
        from guardrail.generation.context import backend_context, prompt_limit

        limit = prompt_limit(backend_context(self.backend), self.max_tokens)
        requests, index_of = [], {}
        for index, match in enumerate(matches):
            ids = encode_prompt(self.backend.tokenizer, "chat_template", _messages(match))
            if limit is not None and len(ids) > limit:
                yield Asked(index, None, PROMPT_TOO_LONG, attempts=0)  # a cut judge prompt would be another question
                continue
            requests.append(Request(match.key, 0, ids))
            index_of[match.key] = index
        options = SamplingOptions(do_sample=False, max_new_tokens=self.max_tokens)
        for done in generate_resumable(self.backend, requests, options, self.work, self.key, "judge"):
            yield Asked(index_of[done.id], done.text)


def _messages(match: Match) -> list[dict[str, str]]:
    return [{"role": "system", "content": match.system_prompt}, {"role": "user", "content": match.user_prompt}]


def judge_matches(
    judge: Judge, matches: Sequence[Match], work: Path, key: str, protocol: str = FASTCHAT
) -> list[Judgement]:
    """Judgements in the order of ``matches``. What the judge has answered stays in ``work`` until the caller clears it.

    ``key`` decides a judgement beside the prompt (judge, its settings). Raises ``UserError`` when the server answered
    nothing at all: that is no measurement.
    """
    parse = parse_rating if protocol == FASTCHAT else parse_align_anything_rating
    units = Units(
        consecutive(matches, 1),  # a judgement is kept as soon as it is there
        work,
        hash_json([key, judge.name, protocol]),
        identity=lambda match: [match.key, match.system_prompt, match.user_prompt],
    )
    found: dict[int, Asked] = {}
    for index in range(len(matches)):
        for stored in units.read(index) or ():
            found[index] = Asked(index, stored["judgment"], attempts=stored["attempts"])
    if found:
        log(f"judge: {len(found)} of {len(matches)} judgements are there from an earlier run")
    missing = [index for index in range(len(matches)) if index not in found]
    with progress(total=len(missing), desc=f"judge {judge.name}", unit="judgement") as bar:
        for asked in judge.ask([matches[index] for index in missing]):
            index = missing[asked.index]
            found[index] = asked
            if asked.text is not None:
                units.write(index, [{"judgment": asked.text, "attempts": asked.attempts}])
            bar.update(1)
    assert len(found) == len(matches), "a judgement is missing"
    failed = [asked for asked in found.values() if asked.text is None]
    if missing and len(failed) == len(matches):
        first = next((asked for asked in failed if asked.error != "skipped"), failed[0])
        raise UserError(
            f"the judge {judge.name} answered none of {len(matches)} requests ({first.error} {first.detail}); the "
            "answers are saved: check --judge_base_url, --judge_model, --judge_max_tokens and OPENAI_API_KEY, then run "
            "the same command again"
        )
    if failed:
        log(f"judge: {len(failed)} of {len(matches)} requests failed (first: {failed[0].error} {failed[0].detail})")
    return [_judgement(match, found[index], parse) for index, match in enumerate(matches)]


def _judgement(match: Match, asked: Asked, parse: Callable[[str], Rating]) -> Judgement:
    if asked.text is None:
        return Judgement(match.key, None, asked.error, False, ERROR_TEXT, asked.attempts)
    rating = parse(asked.text)
    return Judgement(match.key, rating.score, rating.failure, rating.ambiguous, asked.text, asked.attempts)


def write_model_judgment(
    path: Path, model_id: str, judge_name: str, matches: Sequence[Match], judgements: Sequence[Judgement]
) -> Path:
    """FastChat's ``model_judgment/<judge>_single.jsonl``; rows of other models in the file are kept."""
    kept = [row for row in read_lines(path) if row.get("model") != model_id] if path.is_file() else []
    now = time.time()
    rows = [
        {
            "question_id": match.question_id,
            "model": model_id,
            "judge": [judge_name, match.prompt_name],
            "user_prompt": match.user_prompt,
            "judgment": done.judgment,
            "score": FAILED_SCORE if done.score is None else done.score,
            "turn": match.turn,
            "tstamp": now,
            "failure": done.failure,
            "ambiguous": done.ambiguous,
        }
        for match, done in zip(matches, judgements, strict=True)
    ]
    return write_jsonl(path, [*kept, *rows])


def judgement_rows(matches: Sequence[Match], judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    """What the results file keeps of every judgement."""
    return [
        {"question_id": m.question_id, "category": m.category, "turn": m.turn, "prompt": m.prompt_name, **asdict(done)}
        for m, done in zip(matches, judgements, strict=True)
    ]
