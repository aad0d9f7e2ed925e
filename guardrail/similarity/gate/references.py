"""Where good rows lie: percentiles of a score among the reference sets, limits from them, and how often they are right.

Every reference set weighs the same, whatever its size. A limit is a number: the smallest reference score that has at
least the asked share of the references at or below it; a row is beyond it when its score is larger.

How sure is a policy? Two numbers, neither from the customer's file:

* ``good_rows_flagged``: share of reference rows that it would hold back, each judged by limits from the other half of
  its set;
* ``caught``: share of the rows of each check (rows that are known to be bad) that it holds back.

Shapes: R reference rows, S scorers, n rows.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from guardrail.similarity.gate.measure import Chunk
from guardrail.similarity.gate.policy import QUARANTINE, Policy, Rule
from guardrail.statistics.rates import wilson_interval

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class References:
    """``scores`` (R, S) and ``sets`` (R,) the set of each row; ``segment_scores`` (K,) and ``segment_sets`` (K,)."""

    names: tuple[str, ...]
    scores: Array
    sets: Array
    segment_scores: Array
    segment_sets: Array

    @classmethod
    def of(cls, chunks: dict[str, Chunk], n_scorers: int) -> References:
        scores = [chunk.scores for chunk in chunks.values()]
        segments = [chunk.segment_scores for chunk in chunks.values()]
        return cls(
            tuple(chunks),
            np.concatenate(scores) if scores else np.zeros((0, n_scorers)),
            np.repeat(np.arange(len(scores)), [len(one) for one in scores]),
            np.concatenate(segments) if segments else np.zeros(0),
            np.repeat(np.arange(len(segments)), [len(one) for one in segments]),
        )

    def half(self, number: int) -> References:
        """Every second row (the sets are samples in random order)."""
        keep = np.arange(len(self.scores)) % 2 == number
        return References(self.names, self.scores[keep], self.sets[keep], self.segment_scores, self.segment_sets)


def percentiles(values: Array, reference: Array, sets: Array) -> Array:
    """(n,) 100 x the mean over sets of P(reference < value), ties half; NaN for NaN or without references."""
    out = np.zeros(len(values))
    n_sets = 0
    for number in np.unique(sets):
        ordered = np.sort(reference[(sets == number) & np.isfinite(reference)])
        if len(ordered):
            n_sets += 1
            below, up_to = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
            out += (below + up_to) / 2 / len(ordered)
    out = 100 * out / n_sets if n_sets else np.full(len(values), np.nan)
    return np.where(np.isnan(values), np.nan, out)


def quantile(reference: Array, sets: Array, percent: float) -> float:
    """The smallest reference value with ``percent`` of the weight at or below it; NaN without any."""
    known = np.isfinite(reference)
    values, owners = reference[known], sets[known]
    if not len(values):
        return float("nan")
    counts = np.bincount(owners)
    weights = 1.0 / counts[owners]
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order]) / weights.sum()
    place = np.searchsorted(reached, percent / 100 - 1e-9, side="left")
    return float(values[order][min(int(place), len(values) - 1)])


@dataclass(frozen=True)
class Limit:
    """A rule in the score's own unit: beyond ``high`` or below ``low`` (infinite where there is none)."""

    high: float
    low: float
    median: float

    def beyond(self, values: Array) -> Array:
        """(n,) which values are beyond the limit; never NaN."""
        with np.errstate(invalid="ignore"):
            return (values > self.high) | (values < self.low)

    def distance(self, values: Array) -> Array:
        """(n,) 0 at the references' median, 1 at the limit; -inf for NaN."""
        out = np.full(len(values), -np.inf)
        for limit, sign in ((self.high, 1.0), (self.low, -1.0)):
            if np.isfinite(limit):
                span = sign * (limit - self.median)
                distance = sign * (values - self.median)
                over = sign * (values - limit)
                scaled = distance / span if span > 0 else np.where(over > 0, 1 + over, 0.0)
                out = np.fmax(out, scaled)
        return out


def rarity(values: Array, limit: Limit, reference: Array, sets: Array) -> Array:
    """(n,) how rare such a score is among good rows, in decades: 2 means that one reference row in 100 is as far out.

    Only the sides that have a limit count. Beyond the references' last tenth an exponential tail is fitted to that
    tenth (peaks over a threshold: Pickands 1975), so that scores of different rules can be added and compared whatever
    their units and tails, also beyond every reference row. 0 for NaN, and without references.
    """
    out = np.zeros(len(values))
    known = np.isfinite(reference)
    if not known.any():
        return out
    for bound, sign in ((limit.high, 1.0), (limit.low, -1.0)):
        if not np.isfinite(bound):
            continue
        column, ours = sign * reference[known], sign * values
        share, n_sets = np.zeros(len(values)), 0
        for number in np.unique(sets[known]):
            ordered = np.sort(column[sets[known] == number])
            share += 1 - np.searchsorted(ordered, ours, side="left") / len(ordered)
            n_sets += 1
        start = quantile(column, sets[known], 90)
        beyond = column > start
        decades = np.minimum(-np.log10(np.maximum(share / n_sets, 0.1)), 1.0)
        if beyond.any():
            excess = float((column[beyond] - start).mean())
            decades = np.where(ours > start, 1 + (ours - start) / (excess * np.log(10)), decades)
        else:  # a tenth of the references or more is the largest
            decades = np.where(ours > start, 2.0, decades)
        out = np.fmax(out, decades)
    return np.where(np.isnan(values), 0.0, out)


def limit_of(rule: Rule, column: Array, sets: Array) -> Limit:
    """The limits of ``rule`` with the references' scores ``column`` (R,)."""
    high, low = rule.above, rule.below
    if rule.above_percentile is not None:
        found = quantile(column, sets, rule.above_percentile)
        high = found if high is None else min(high, found)
    if rule.below_percentile is not None:
        found = quantile(column, sets, rule.below_percentile)
        low = found if low is None else max(low, found)
    median = quantile(column, sets, 50)
    return Limit(
        np.inf if high is None else high,
        -np.inf if low is None else low,
        0.0 if np.isnan(median) else median,
    )


def limits(policy: Policy, references: References) -> dict[str, Limit]:
    """The limits of every scored rule."""
    places = {name: place for place, name in enumerate(policy.scorers)}
    return {
        rule.name: limit_of(rule, references.scores[:, places[rule.scorer]], references.sets)
        for rule in policy.rules
        if rule.scorer is not None
    }


def held_back(policy: Policy, found: dict[str, Limit], scores: Array) -> Array:
    """(n,) which rows a scored rule would quarantine."""
    places = {name: place for place, name in enumerate(policy.scorers)}
    out = np.zeros(len(scores), dtype=bool)
    for rule in policy.rules:
        if rule.scorer is not None and rule.action == QUARANTINE:
            out |= found[rule.name].beyond(scores[:, places[rule.scorer]])
    return out


def share(hits: Array) -> dict[str, Any] | None:
    """A share with its 95% interval (Wilson); None of nothing."""
    if not len(hits):
        return None
    low, high = wilson_interval(int(hits.sum()), len(hits))
    return {
        "n": len(hits),
        "count": int(hits.sum()),
        "fraction": round(float(hits.mean()), 6),
        "interval": [round(low, 6), round(high, 6)],
    }


def good_rows_flagged(policy: Policy, references: References) -> dict[str, Any] | None:
    """See the module: each half judged by the other."""
    if len(references.scores) < 2:
        return None
    hits = [
        held_back(policy, limits(policy, references.half(1 - number)), references.half(number).scores)
        for number in (0, 1)
    ]
    return share(np.concatenate(hits))


def caught(policy: Policy, found: dict[str, Limit], checks: dict[str, Chunk]) -> dict[str, Any]:
    """Share of the rows of every check that a scored rule holds back."""
    return {name: share(held_back(policy, found, chunk.scores)) for name, chunk in checks.items()}


def sample(n: int, wanted: int, name: str) -> Array:
    """Up to ``wanted`` of ``n`` row numbers in a random order that the set's name decides."""
    return np.random.default_rng(zlib.crc32(name.encode())).permutation(n)[:wanted]
