"""What a judge's text says: a rating, or why there is none.

FastChat's rule (common.py): the first ``[[x]]``, else the first ``[x]``, with x a number without sign. Beyond it, and
counted: a text with several different ratings keeps the first and is marked ambiguous; a rating outside 1..10 is a
failure (FastChat would average it). The older align-anything rule knows ``[[x]]`` only, with sign, on 0..10.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

DOUBLE = re.compile(r"\[\[(\d+\.?\d*)\]\]")
SINGLE = re.compile(r"\[(\d+\.?\d*)\]")
ALIGN_ANYTHING_DOUBLE = re.compile(r"\[\[(-?\d+(?:\.\d+)?)\]\]")
LOWEST, HIGHEST = 1, 10
NO_RATING, OUT_OF_RANGE = "no_rating", "out_of_range"
FAILED_SCORE = -1  # FastChat's value in a judgement file; never part of a mean


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
