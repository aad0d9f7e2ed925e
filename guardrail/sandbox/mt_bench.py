"""Two-turn questions in FastChat's file format, so that the MT-Bench entry point has something to run on.

    mt_bench/question.jsonl                    question_id, category, turns (2), as in fastchat/llm_judge/data
    mt_bench/reference_answer/sandbox.jsonl    answers of the math, reasoning and coding questions

Known limit: these measure plumbing. A model of a million parameters cannot do the arithmetic.
"""

from __future__ import annotations

from typing import Any

from guardrail.sandbox.lexicon import BENIGN_HEADS, PEOPLE, TEST, article
from guardrail.sandbox.world import World

FIRST_QUESTION_ID = 81
QUESTIONS_PER_CATEGORY = 2
CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
WITH_REFERENCE = ("reasoning", "math", "coding")
REFERENCE_MODEL = "sandbox"


def _question(world: World, category: str) -> tuple[list[str], list[str] | None]:
    """Two turns, and their two reference answers where the category has them."""
    rng = world.rng
    person, other, third = rng.sample(PEOPLE[TEST], 3)
    head, thing = rng.choice(BENIGN_HEADS[TEST]), world.benign_object()
    thing = f"{article(thing)} {thing}"
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    c = rng.randint(1, a)
    if category == "writing":
        return [f"Pen a note for {person} about {thing}.", "Put it into a list of three lines."], None
    if category == "roleplay":
        return [f"You are a guard who found {thing}. What do you say?", f"Now answer {person}, who lost it."], None
    if category == "reasoning":
        turns = [
            f"{person} is older than {other}. {other} is older than {third}. Who is the oldest?",
            "And the youngest?",
        ]
        return turns, [f"{person} is the oldest.", f"{third} is the youngest."]
    if category == "math":
        turns = [
            f"{person} has {a} {head}s and gets {b} more. How many?",
            f"{c} are given to {other}. How many are left?",
        ]
        return turns, [f"{a} + {b} = {a + b}.", f"{a + b} - {c} = {a + b - c}."]
    if category == "coding":
        turns = [f"Write one line of Python that prints the word {head}.", f"Print it {a} times instead."]
        return turns, [f'print("{head}")', f'for _ in range({a}): print("{head}")']
    if category == "extraction":
        turns = [f"{person} left {thing} with {other}. Who has it now?", "Name both people in one line."]
        return turns, None
    if category == "stem":
        return [f"How does {article(head)} {head} stay warm?", "Say it once more for a child."], None
    return [f"Why do people like {thing}?", f"Would {person} and {other} agree?"], None


def build_mt_bench(seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """``(questions, reference answers)``."""
    world = World(seed, "mt_bench", TEST)
    questions: list[dict[str, Any]] = []
    references: list[dict[str, Any]] = []
    for category in CATEGORIES:
        for _ in range(QUESTIONS_PER_CATEGORY):
            turns, answers = _question(world, category)
            question_id = FIRST_QUESTION_ID + len(questions)
            questions.append({"question_id": question_id, "category": category, "turns": turns})
            if answers is not None:
                reference = {"question_id": question_id, "answer_id": f"sandbox-{question_id}"}
                choices = [{"index": 0, "turns": answers}]
                references.append({**reference, "model_id": REFERENCE_MODEL, "choices": choices, "tstamp": 0.0})
    return questions, references
