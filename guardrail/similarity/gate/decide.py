"""Reasons, decisions and the verdict: plain arithmetic on measurements, no text anywhere.

A row is kept, kept with a loss mask, or quarantined. A reason with the action ``flag`` is noted and changes nothing. A
row to which a rule's scorer does not apply is noted as ``not_scored``: it was looked at by fewer eyes, not found clean.

Shapes: N rows, S scorers.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from guardrail.similarity.gate.duplicates import find_duplicates
from guardrail.similarity.gate.measure import Chunk
from guardrail.similarity.gate.policy import DUPLICATE, FLAG, FORMAT, KEEP, MASK, QUARANTINE, SECRETS, SEGMENT, Policy
from guardrail.similarity.gate.references import Limit, References, limits, percentiles, quantile, rarity
from guardrail.similarity.gate.source import FORMAT_CODES

NOT_SCORED = "not_scored"
ACCEPT, ACCEPT_WITH_QUARANTINE, REFUSE = "accept", "accept_with_quarantine", "refuse"
EXIT_CODES = {ACCEPT: 0, ACCEPT_WITH_QUARANTINE: 3, REFUSE: 4}
BEYOND = 100.0
NEAR_LIMIT = 0.1  # a distance this close to 1 would change sides with a slightly different limit
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Whole:
    """What is kept of all N rows: numbers alone, about 0.7 KB a row. Sentences beyond their limit are in ``masks``."""

    lines: Array
    format: Array
    scores: Array
    secrets: Array
    duplicate_of: Array
    shape: Array
    unscored: Array
    masks: dict[int, list[tuple[int, int, float]]]

    def __len__(self) -> int:
        return len(self.lines)


@dataclass(frozen=True)
class Decisions:
    """``reasons[rule]`` (N,) which rows have it; ``decision`` (N,); ``percentiles`` (N, S).

    ``risk`` (N,): a row's `references.rarity` summed over the rules that hold rows back (Fisher's method of combining
    tests, which ignores that rules agree), and `BEYOND` for each limit in a score's own unit that it is beyond: those
    rows come first. ``distance`` (N,): its largest distance, 1 at a limit.
    """

    reasons: dict[str, Array]
    decision: Array
    risk: Array
    distance: Array
    percentiles: Array
    limits: dict[str, Limit]
    segment_limit: float | None


def segment_limit(policy: Policy, references: References) -> float | None:
    if policy.segments is None:
        return None
    if policy.segments.above is not None:
        return policy.segments.above
    assert policy.segments.above_percentile is not None
    return quantile(references.segment_scores, references.segment_sets, policy.segments.above_percentile)


def gather(chunks: list[Chunk], policy: Policy, limit: float | None) -> Whole:
    """The rows of all chunks. ``chunks`` are dropped by the caller; of their sentences those beyond ``limit`` stay."""
    masks: dict[int, list[tuple[int, int, float]]] = {}
    start = 0
    for chunk in chunks:
        if limit is not None and len(chunk.segments):
            for place in np.flatnonzero(chunk.segment_scores > limit):
                row, first, last = (int(value) for value in chunk.segments[place])
                masks.setdefault(start + row, []).append((first, last, float(chunk.segment_scores[place])))
        start += len(chunk)
    rule = policy.rule(DUPLICATE)
    n = start
    duplicate_of: Array = np.full(n, -1, dtype=np.int64)
    if rule is not None and n:
        hashes = np.concatenate([chunk.text_hashes for chunk in chunks])
        duplicate_of = find_duplicates(hashes, np.concatenate([chunk.signatures for chunk in chunks]), rule.jaccard)
    codes: Array = np.concatenate([chunk.format for chunk in chunks])
    own = np.concatenate([chunk.own_ids for chunk in chunks])
    _, first_of = np.unique(own, return_index=True)
    repeated = (own != 0) & ~np.isin(np.arange(n), first_of)
    codes = np.where((codes == 0) & repeated, FORMAT_CODES.index("repeated_id"), codes)
    return Whole(
        np.concatenate([chunk.lines for chunk in chunks]),
        codes,
        np.concatenate([chunk.scores for chunk in chunks]),
        np.concatenate([chunk.secrets for chunk in chunks]),
        duplicate_of,
        np.concatenate([chunk.shape for chunk in chunks]),
        np.concatenate([(chunk.why >= 0).any(axis=1) for chunk in chunks]),
        masks,
    )


def decide(policy: Policy, whole: Whole, references: References) -> Decisions:
    """Reasons and decision of every row."""
    n, places = len(whole), {name: place for place, name in enumerate(policy.scorers)}
    found = limits(policy, references)
    reasons: dict[str, Array] = {}
    risk, distance = np.zeros(n), np.full(n, -np.inf)
    for rule in policy.rules:
        if rule.name == FORMAT:
            reasons[rule.name] = whole.format != 0
        elif rule.name == DUPLICATE:
            reasons[rule.name] = whole.duplicate_of >= 0
        elif rule.name == SECRETS:
            reasons[rule.name] = whole.secrets != 0
        else:
            column = whole.scores[:, places[str(rule.scorer)]]
            reasons[rule.name] = found[rule.name].beyond(column)
            if rule.action == QUARANTINE:
                if rule.needs_references:
                    known = references.scores[:, places[str(rule.scorer)]]
                    risk += rarity(column, found[rule.name], known, references.sets)
                else:
                    risk += np.where(reasons[rule.name], BEYOND + found[rule.name].distance(column), 0.0)
                distance = np.maximum(distance, found[rule.name].distance(column))
    limit = segment_limit(policy, references)
    masked_rows = np.zeros(n, dtype=bool)
    rescued: tuple[str, ...] = ()
    if policy.segments is not None:
        reasons[SEGMENT] = np.zeros(n, dtype=bool)
        for row, spans in whole.masks.items():
            reasons[SEGMENT][row] = True
            length = max(1, int(whole.shape[row, 1]))
            masked_rows[row] = (
                sum(last - first for first, last, _ in spans) <= policy.segments.max_masked_fraction * length
            )
        rescued = policy.segments.instead_of
    held = np.zeros(n, dtype=bool)
    for rule in policy.rules:
        if rule.action == QUARANTINE:
            held |= reasons[rule.name] & ~(masked_rows & (rule.name in rescued))
    if policy.segments is not None:
        held |= reasons[SEGMENT] & ~masked_rows
    decision = np.where(held, QUARANTINE, np.where(masked_rows, MASK, KEEP))
    if policy.rule(FORMAT) is None:  # nobody can train on them, whatever the policy says
        decision = np.where(whole.format != 0, QUARANTINE, decision)
    reasons[NOT_SCORED] = whole.unscored & (whole.format == 0)
    ranks = [percentiles(whole.scores[:, i], references.scores[:, i], references.sets) for i in range(len(places))]
    shares = np.stack(ranks, axis=1) if ranks else np.zeros((n, 0))
    return Decisions(reasons, decision, risk, distance, shares, found, limit)


def judge(policy: Policy, whole: Whole, found: Decisions) -> dict[str, Any]:
    """The verdict, why, and what would change it; counts only."""
    n = len(whole)
    counts = {name: int(hits.sum()) for name, hits in found.reasons.items()}
    decisions = Counter(found.decision.tolist())
    n_kept, n_out = decisions[KEEP] + decisions[MASK], decisions[QUARANTINE]
    refuse = policy.refuse
    tests = [
        {
            "what": "rows quarantined",
            "fraction": round(n_out / n, 6),
            "limit": refuse.quarantined_fraction,
            "broken": n_out > refuse.quarantined_fraction * n,
        }
    ]
    for name, limit in refuse.fractions.items():
        hits = counts.get(name, 0)
        tests.append({"what": name, "fraction": round(hits / n, 6), "limit": limit, "broken": hits > limit * n})
    broken = [test for test in tests if test["broken"]]
    verdict = ACCEPT if not n_out and not decisions[MASK] else ACCEPT_WITH_QUARANTINE
    if broken or n_kept < refuse.min_kept_rows:
        verdict = REFUSE
    alone = {}
    held = np.stack(
        [found.reasons[rule.name] for rule in policy.rules if rule.action == QUARANTINE] or [np.zeros(n, bool)]
    )
    for number, one in enumerate(rule for rule in policy.rules if rule.action == QUARANTINE):
        alone[one.name] = int((held[number] & (held.sum(axis=0) == 1) & (found.decision == QUARANTINE)).sum())
    near = np.isfinite(found.distance) & (abs(found.distance - 1) <= NEAR_LIMIT)
    return {
        "verdict": verdict,
        "exit_code": EXIT_CODES[verdict],
        "n_rows": n,
        "n_kept": n_kept,
        "n_masked": decisions[MASK],
        "n_quarantined": n_out,
        "n_flagged": int(sum(flags_only(policy, found))),
        "reasons": counts,
        "only_reason": alone,
        "n_near_limit": int(near.sum()),
        "refusal_tests": tests,
        "min_kept_rows": refuse.min_kept_rows,
        "too_few_kept": n_kept < refuse.min_kept_rows,
        "format": {
            code: int((whole.format == i).sum())
            for i, code in enumerate(FORMAT_CODES)
            if i and (whole.format == i).any()
        },
    }


def flags_only(policy: Policy, found: Decisions) -> Array:
    """(N,) which kept rows have a reason that is only noted."""
    flagged = np.zeros(len(found.decision), dtype=bool)
    for rule in policy.rules:
        if rule.action == FLAG:
            flagged |= found.reasons[rule.name]
    return flagged & (found.decision != QUARANTINE)
