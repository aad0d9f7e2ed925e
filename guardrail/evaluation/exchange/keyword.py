"""The keyword rule's outcome of one answer, without files: what tasks for other tools score by."""

from __future__ import annotations

from guardrail.evaluation.judges.answers import Answer
from guardrail.evaluation.judges.key_word import is_harmful
from guardrail.evaluation.judges.outcomes import OUTCOMES, Judgement, base_judgement, finish_judgement


def keyword_judgement(row_id: str, question: str, text: str, harmful_bench: bool = True) -> Judgement:
    """The judgement that ``--judge key_word`` gives this answer (`guardrail.evaluation.judges.key_word`)."""
    answer = Answer(row_id, 0, question, text)
    return finish_judgement(answer, base_judgement(answer), is_harmful(text, harmful_bench))


def indicators(judgement: Judgement) -> dict[str, float]:
    """One number per outcome, 1.0 for the answer's own: their means are rates."""
    return {name: float(judgement["outcome"] == name) for name in OUTCOMES}
