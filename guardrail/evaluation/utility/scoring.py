"""Scores of one completion against its reference, and their means with bootstrap intervals.

    rouge_1      F1 of unigrams after Porter stemming (``rouge_score``), as in shallow-vs-deep-alignment
    exact_match  equality after Unicode NFKC, case folding and collapsing of white space
    gsm8k        equality of the numbers after ``####``

Scores are fractions in 0..1 per row; means are percentages, and their names say so. An answer in which no number
can be found scores 0 on gsm8k *and* is counted as a parse failure; nothing is dropped.
Known limits: ROUGE's tokenizer knows ASCII letters and digits only; texts in other scripts score 0.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from guardrail.core.errors import UserError, unknown

EVALUATORS = ("rouge_1", "exact_match", "gsm8k", "loss", "none")
HEADLINE = {
    "rouge_1": "rouge_1_f1_percent",
    "exact_match": "exact_match_percent",
    "gsm8k": "gsm8k_accuracy_percent",
}
# '#### 1,234', '####12', '#### $5.50', '#### -3 apples'; a sentence's full stop is no part of the number
MARKED_NUMBER = re.compile(r"####\s*\$?\s*(-?)\s*\$?\s*(\d[\d,]*(?:\.\d+)?|\.\d+)")


def check_evaluator(name: str) -> str:
    """Return ``name`` or raise ``UserError`` with the near match."""
    if name not in EVALUATORS:
        raise unknown("evaluator", name, EVALUATORS)
    return name


@functools.lru_cache(maxsize=1)
def _rouge_scorer() -> Any:
    from guardrail.models.imports import import_rouge  # a third of a second, paid only when something is scored

    return import_rouge().RougeScorer(["rouge1"], use_stemmer=True)


def rouge_1(completion: str, reference: str) -> dict[str, float]:
    """``precision``, ``recall``, ``f1`` of stemmed unigrams; all 0 when either text has no word."""
    score = _rouge_scorer().score(reference, completion)["rouge1"]
    return {"precision": score.precision, "recall": score.recall, "f1": score.fmeasure}


def normalise_text(text: str) -> str:
    """NFKC, case-folded, runs of white space as one blank, none at the ends."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def exact_match(completion: str, reference: str) -> dict[str, float]:
    """1 where the normalised texts are equal; an empty completion never matches."""
    same = normalise_text(completion) == normalise_text(reference) and bool(normalise_text(completion))
    return {"match": float(same)}


def marked_number(text: str) -> Decimal | None:
    """The number after the first ``####``; ``None`` when there is none. Commas and a dollar sign are dropped."""
    found = MARKED_NUMBER.search(text)
    if found is None:
        return None
    try:
        return Decimal(found.group(1) + found.group(2).replace(",", ""))
    except InvalidOperation:
        return None


def gsm8k(completion: str, reference: str) -> dict[str, float]:
    """``match`` of the marked numbers (``12`` equals ``12.0``) and ``parsed``: whether the answer marks one.

    Raises ``UserError`` when the reference marks none: the row is malformed.
    """
    expected = marked_number(reference)
    if expected is None:
        raise UserError(f"a GSM8K reference needs '#### NUMBER'; got {reference[-60:]!r}")
    answer = marked_number(completion)
    return {"match": float(answer == expected), "parsed": float(answer is not None)}


SCORERS = {"rouge_1": rouge_1, "exact_match": exact_match, "gsm8k": gsm8k}


def score_rows(evaluator: str, pairs: Sequence[tuple[str, str]]) -> list[dict[str, float]]:
    """Scores of every ``(completion, reference)``, in order."""
    return [SCORERS[evaluator](completion, reference) for completion, reference in pairs]


def percent(ids: Sequence[str], values: Sequence[float], seed: int = 0) -> tuple[float, list[float]]:
    """Mean of ``values`` (fractions) in percent and its 95% bootstrap interval; all samples of an id stay together."""
    from guardrail.statistics.resampling import bootstrap_mean

    estimate = bootstrap_mean([100 * value for value in values], ids, seed=seed, limits=(0.0, 100.0))
    return estimate.value, [estimate.low, estimate.high]


def summarise(evaluator: str, ids: Sequence[str], scores: Sequence[dict[str, float]], seed: int = 0) -> dict[str, Any]:
    """Metrics of a whole task: every mean in percent with an interval, N, and what could not be parsed."""
    if not scores:
        raise UserError("nothing to score: the task has no rows")

    def column(key: str) -> list[float]:
        return [score[key] for score in scores]

    out: dict[str, Any] = {"n": len(set(ids)), "n_completions": len(scores)}
    if evaluator == "rouge_1":
        for key in ("precision", "recall", "f1"):
            out[f"rouge_1_{key}_percent"], out[f"rouge_1_{key}_interval_percent"] = percent(ids, column(key), seed)
    else:
        name = HEADLINE[evaluator]
        out[name], out[name.replace("_percent", "_interval_percent")] = percent(ids, column("match"), seed)
    if evaluator == "gsm8k":
        failures = sum(1 for score in scores if not score["parsed"])
        out["parse_failures"] = failures
        out["parse_failure_percent"] = 100 * failures / len(scores)
    return out
