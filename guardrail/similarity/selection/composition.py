"""What a set of rows is made of: category, length, list share, duplicates; and how scores go with length and format."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from guardrail.core.files import hash_json
from guardrail.data.rows import Row, response
from guardrail.statistics import agreement

CATEGORY_COLUMNS = ("category", "categories", "label", "source", "format")
LIST_ITEM = re.compile(r"^\s*(?:\d{1,2}[.):]|[-*•–])\s+\S", re.MULTILINE)
Array = np.ndarray[Any, Any]


def is_list(text: str) -> bool:
    """Does ``text`` hold a list: at least two lines that begin with a bullet or a number?"""
    return len(LIST_ITEM.findall(text)) >= 2


def answer_text(row: Row) -> str:
    """The response, or the last message where a row has only a prompt."""
    return response(row) or row["messages"][-1]["content"]


def length_chars(row: Row) -> int:
    """Characters of the response (of the prompt where there is no response)."""
    return len(answer_text(row))


def category_column(rows: Sequence[Row]) -> str | None:
    """The first known category column that all rows have."""
    return next((c for c in CATEGORY_COLUMNS if all(row.get(c) not in (None, "") for row in rows)), None)


def category_of(row: Row, column: str) -> str:
    """A row's category; BeaverTails' dictionary of flags becomes the names that are set, joined by ``+``."""
    value = row[column]
    if isinstance(value, dict):
        return "+".join(sorted(name for name, flag in value.items() if flag)) or "none"
    return "+".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def content_hash(row: Row) -> str:
    """Equal for rows with the same conversation, whatever their ids."""
    return hash_json(row["messages"])


def count_duplicates(rows: Sequence[Row]) -> int:
    """Rows whose conversation occurred in an earlier row."""
    return len(rows) - len({content_hash(row) for row in rows})


def describe_lengths(values: Sequence[int]) -> dict[str, float]:
    """Mean and quantiles (in characters of the response)."""
    array = np.asarray(values, dtype=np.float64)
    names = (("p10", 10), ("median", 50), ("p90", 90))
    quantiles = {name: float(np.percentile(array, q)) for name, q in names}
    return {"mean": round(float(array.mean()), 2), **quantiles, "min": float(array.min()), "max": float(array.max())}


def describe_rows(rows: Sequence[Row], top_categories: int = 30) -> dict[str, Any]:
    """Composition of ``rows``: n, lengths, list share, categories, exact duplicates."""
    column = category_column(rows)
    counts = Counter(category_of(row, column) for row in rows) if column else Counter()
    return {
        "n": len(rows),
        "length_chars": describe_lengths([length_chars(row) for row in rows]),
        "list_fraction": round(sum(is_list(answer_text(row)) for row in rows) / len(rows), 4),
        "category_column": column,
        "categories": dict(counts.most_common(top_categories)),
        "n_categories": len(counts),
        "duplicate_rows": count_duplicates(rows),
    }


def spearman(a: Sequence[float] | Array, b: Sequence[float] | Array) -> float | None:
    """Spearman's rank correlation in [-1, 1], average ranks for ties; ``None`` when one side is constant."""
    found = agreement.spearman(a, b)
    return None if found is None else round(found, 4)


def score_correlations(scores: Array, rows: Sequence[Row]) -> dict[str, float | None]:
    """Rank correlation of the similarity score with length and with being a list (over the whole pool).

    Large values say that the score reflects template and length more than content.
    """
    return {
        "spearman_score_length": spearman(scores, [length_chars(row) for row in rows]),
        "spearman_score_is_list": spearman(scores, [float(is_list(answer_text(row))) for row in rows]),
    }
