"""Two-turn answers: turn 1, then turn 2 with the first answer fed back; FastChat's ``model_answer`` file.

Temperatures come from the question's category (FastChat's table; an unknown category gets 0.7 there too), below 1e-4
means greedy; otherwise plain temperature sampling without top-p or top-k, every question and turn from its own seeded
stream. Answers are stripped, as in FastChat. ``align_anything`` is the older measure: 'Let's think step by step.' is
put into the model's mouth in both turns and everything is sampled at temperature 0.05.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.core.errors import UserError
from guardrail.core.files import hash_json, write_jsonl
from guardrail.data.prompts import encode_prompt
from guardrail.evaluation.mt_bench.data import QuestionSet, read_answer, read_lines
from guardrail.generation import Completion, Request, SamplingOptions, generate_resumable
from guardrail.generation.context import Messages, fit_conversation, prompt_limit

TEMPERATURES = {  # FastChat common.py
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
OTHER_TEMPERATURE = 0.7
GREEDY_BELOW = 1e-4
COT_PREFILL = "Let's think step by step."
ALIGN_ANYTHING_SAMPLING: dict[str, Any] = {
    "temperature": 0.05,
    "top_p": 0.9,
    "top_k": 20,
}  # its vllm_basic.json at 1e7699b
FASTCHAT, ALIGN_ANYTHING = "fastchat", "align_anything"
PROTOCOLS = (FASTCHAT, ALIGN_ANYTHING)


@dataclass(frozen=True)
class AnswerOptions:
    """What decides the answers beside model and questions."""

    protocol: str = FASTCHAT
    max_new_tokens: int = 1024
    seed: int = 0

    def sampling(self, category: str) -> SamplingOptions:
        common: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "seed": self.seed}
        if self.protocol == ALIGN_ANYTHING:
            return SamplingOptions(do_sample=True, **ALIGN_ANYTHING_SAMPLING, **common)
        temperature = TEMPERATURES.get(category, OTHER_TEMPERATURE)
        if temperature < GREEDY_BELOW:
            return SamplingOptions(do_sample=False, max_new_tokens=self.max_new_tokens)
        return SamplingOptions(do_sample=True, temperature=temperature, top_p=1.0, top_k=0, **common)


def answer_questions(
    backend: Any,
    style: str,
    questions: QuestionSet,
    options: AnswerOptions,
    context: int | None,
    work: Path,
    key: str,
) -> list[dict[str, Any]]:
    """One row per question, in order, on every rank: both answers and how each turn went.

    A row has ``question_id``, ``category``, ``answers`` (2) and ``turns``: finish reason, token counts, tokens cut
    from the prompt (``guardrail.generation.context`` has the rule). Call inside ``process_group()``.
    """
    limit = prompt_limit(context, options.max_new_tokens)
    rows = [
        {"question_id": q["question_id"], "category": q["category"], "answers": [], "turns": []}
        for q in questions.questions
    ]
    conversations: list[Messages] = [[] for _ in rows]
    for turn in (1, 2):
        for conversation, question in zip(conversations, questions.questions, strict=True):
            conversation.append({"role": "user", "content": question["turns"][turn - 1]})
        encoded = [_encode(backend.tokenizer, style, c, options.protocol, limit) for c in conversations]
        completions = _generate(backend, questions.questions, [ids for ids, _ in encoded], options, turn, work, key)
        for row, conversation, completion, (_, cut) in zip(rows, conversations, completions, encoded, strict=True):
            answer = completion.text.strip()
            conversation.append({"role": "assistant", "content": answer})
            row["answers"].append(answer)
            row["turns"].append(
                {
                    "turn": turn,
                    "finish_reason": completion.finish_reason,
                    "n_prompt_tokens": completion.n_prompt_tokens,
                    "n_completion_tokens": completion.n_completion_tokens,
                    "cut_at_stop": completion.cut_at_stop,
                    "prompt_cut_tokens": cut,
                }
            )
    return rows


def _encode(
    tokenizer: Any, style: str, conversation: Messages, protocol: str, limit: int | None
) -> tuple[list[int], int]:
    """``(prompt ids, tokens cut)``; the older protocol's prefill comes on top."""
    if protocol == FASTCHAT:
        fitted = fit_conversation(tokenizer, style, conversation, limit)
        return fitted.prompt_ids, fitted.cut_tokens
    prefill = {"role": "assistant", "content": COT_PREFILL}
    room = len(encode_prompt(tokenizer, style, [*conversation, prefill])) - len(
        encode_prompt(tokenizer, style, conversation)
    )
    fitted = fit_conversation(tokenizer, style, conversation, None if limit is None else limit - room)
    return encode_prompt(tokenizer, style, [*fitted.messages, prefill]), fitted.cut_tokens


def _generate(
    backend: Any,
    questions: Sequence[dict[str, Any]],
    prompts: Sequence[list[int]],
    options: AnswerOptions,
    turn: int,
    work: Path,
    key: str,
) -> list[Completion]:
    """Completions of one turn, in order; one resumable call per set of sampling options."""
    groups: dict[SamplingOptions, list[int]] = {}
    for position, question in enumerate(questions):
        groups.setdefault(options.sampling(question["category"]), []).append(position)
    out: dict[int, Completion] = {}
    for sampling, positions in groups.items():
        requests = [Request(f"{questions[i]['question_id']}/turn-{turn}", 0, prompts[i]) for i in positions]
        temperature = sampling.temperature if sampling.do_sample else 0
        done = generate_resumable(backend, requests, sampling, work, key, f"turn {turn}, temperature {temperature:g}")
        out.update(zip(positions, done, strict=True))
    return [out[position] for position in range(len(questions))]


def write_model_answer(path: Path, model_id: str, rows: Sequence[dict[str, Any]]) -> Path:
    """FastChat's ``model_answer/<model_id>.jsonl``: what its gen_judgment.py and question browser read."""
    now = time.time()
    return write_jsonl(
        path,
        (
            {
                "question_id": row["question_id"],
                "answer_id": hash_json([model_id, row["question_id"], row["answers"]]),
                "model_id": model_id,
                "choices": [{"index": 0, "turns": row["answers"]}],
                "tstamp": now,
            }
            for row in sorted(rows, key=lambda row: row["question_id"])
        ),
    )


def read_model_answer(path: Path, questions: QuestionSet) -> list[dict[str, Any]]:
    """Rows for judging from a FastChat ``model_answer`` file, in the order of the questions.

    Raises ``UserError`` when an answer is missing or has not two turns.
    """
    lines = [read_answer(row, f"{path}, line {i + 1}") for i, row in enumerate(read_lines(path))]
    found = dict(lines)
    if len(found) != len(lines):
        raise UserError(f"{path} answers a question twice; expected one line for each")
    rows = []
    for question in questions.questions:
        turns = found.get(question["question_id"])
        if turns is None:
            raise UserError(f"{path} has no answer to question {question['question_id']} of {questions.source}")
        if len(turns) != 2:
            raise UserError(f"{path}: the answer to question {question['question_id']} has {len(turns)} turns, not 2")
        rows.append(
            {"question_id": question["question_id"], "category": question["category"], "answers": turns, "turns": []}
        )
    return rows
