"""The gate as one HTML file in the style of the study's report; texts of rows only where they were asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from guardrail.core import pages
from guardrail.similarity.gate import secrets, words
from guardrail.similarity.gate.decide import Decisions, Whole
from guardrail.similarity.gate.policy import DUPLICATE, FLAG, FORMAT, QUARANTINE, SECRETS, SEGMENT, Policy
from guardrail.similarity.gate.source import FORMAT_CODES, FORMAT_WORDS

TEMPLATE = Path(__file__).with_name("gate.html.j2")
EXAMPLES = 5
LEVELS = (50, 90, 95, 99)


def choose_examples(policy: Policy, whole: Whole, found: Decisions) -> dict[str, list[int]]:
    """Up to `EXAMPLES` rows of every reason by place: the farthest beyond a limit, of other reasons the first."""
    out = {}
    columns = {name: place for place, name in enumerate(policy.scorers)}
    for name, hits in found.reasons.items():
        places = np.flatnonzero(hits)
        rule = policy.rule(name)
        if rule is not None and rule.scorer is not None:
            distance = found.limits[name].distance(whole.scores[places, columns[rule.scorer]])
            places = places[np.argsort(-distance, kind="stable")]
        elif name == SEGMENT:
            worst = [max(score for *_, score in whole.masks[int(place)]) for place in places]
            places = places[np.argsort(-np.array(worst), kind="stable")]
        out[name] = [int(place) for place in places[:EXAMPLES]]
    return out


def view(
    policy: Policy,
    whole: Whole,
    found: Decisions,
    facts: dict[str, Any],
    examples: dict[str, list[int]],
    texts: dict[int, list[dict[str, str]]],
    audit: dict[str, Any] | None,
    command: str,
) -> dict[str, Any]:
    """Everything that the template shows."""
    verdict = facts["verdict"]
    first = [
        {"question": "May I train on this?", "text": words.may_i_train(verdict, policy)},
        {"question": "With which checkpoint?", "text": words.which_checkpoint(audit)},
        {"question": "What would change it?", "text": " ".join(words.what_would_change_it(verdict, policy))},
        {"question": "How sure is that?", "text": " ".join(words.how_sure(facts["how_sure"], policy))},
    ]
    reasons = [
        {
            "name": name,
            "title": words.title_of(name, policy),
            "action": action_of(name, policy),
            "limit": limit_text(name, policy, found),
            "count": count,
            "share": words.percent(count / verdict["n_rows"]),
            "alone": verdict["only_reason"].get(name),
            "examples": [example(place, name, policy, whole, found, texts) for place in examples.get(name, [])],
        }
        for name, count in verdict["reasons"].items()
    ]
    return {
        "first": first,
        "verdict": verdict,
        "reasons": reasons,
        "n_noted": verdict["n_flagged"],
        "noted": words.rows(verdict["n_flagged"]),
        "distribution": distribution(policy, found),
        "levels": LEVELS,
        "format_words": FORMAT_WORDS,
        "policy_text": yaml.safe_dump(policy.as_dict(), sort_keys=False, allow_unicode=True, width=100),
        "description": policy.description,
        "facts": facts,
        "command": command,
        "shows_text": bool(texts),
        "secrets_missing": policy.rule(SECRETS) is not None and not facts["secrets_looked_for"],
    }


def action_of(name: str, policy: Policy) -> str:
    rule = policy.rule(name)
    if rule is not None:
        return "held back" if rule.action == QUARANTINE else "noted"
    return "no loss there, or held back" if name == SEGMENT else "noted"


def limit_text(name: str, policy: Policy, found: Decisions) -> str:
    rule = policy.rule(name)
    if name == SEGMENT and policy.segments is not None and found.segment_limit is not None:
        return f"{policy.segments.scorer} of a sentence above {found.segment_limit:.4g}"
    if name == DUPLICATE and rule is not None:
        return f"estimated Jaccard similarity from {rule.jaccard:g}"
    if rule is None or rule.scorer is None:
        return "–"
    limit = found.limits[name]
    parts = []
    if np.isfinite(limit.high):
        which = "" if rule.above_percentile is None else f" (percentile {rule.above_percentile:g} of the references)"
        parts.append(f"above {limit.high:.4g}{which}")
    if np.isfinite(limit.low):
        which = "" if rule.below_percentile is None else f" (percentile {rule.below_percentile:g} of the references)"
        parts.append(f"below {limit.low:.4g}{which}")
    return f"{rule.scorer} {' or '.join(parts)}"


def example(
    place: int, name: str, policy: Policy, whole: Whole, found: Decisions, texts: dict[int, list[dict[str, str]]]
) -> dict[str, Any]:
    """A row as the page shows it: where it is, what was seen, how it is shaped."""
    rule = policy.rule(name)
    seen = ""
    if rule is not None and rule.scorer is not None:
        column = policy.scorers.index(rule.scorer)
        rank = found.percentiles[place, column]
        seen = f"{rule.scorer} {whole.scores[place, column]:.4g}"
        seen += "" if np.isnan(rank) else f", percentile {rank:.1f}"
    elif name == FORMAT:
        seen = FORMAT_WORDS[FORMAT_CODES[whole.format[place]]]
    elif name == DUPLICATE:
        seen = f"like line {whole.lines[whole.duplicate_of[place]]}"
    elif name == SECRETS:
        seen = ", ".join(secrets.kinds_of(int(whole.secrets[place])))
    elif name == SEGMENT:
        seen = "; ".join(f"characters {first} to {last}: {score:.4g}" for first, last, score in whole.masks[place])
    prompt, answer, sentences, listed = (int(number) for number in whole.shape[place])
    shape = f"{prompt:,} characters asked, {answer:,} answered"
    shape += f", {sentences} sentences" if sentences > 1 else ""
    shape += ", a list" if listed else ""
    return {
        "line": int(whole.lines[place]),
        "seen": seen,
        "shape": "–" if whole.format[place] and not answer else shape,
        "decision": {"keep": "kept", "mask": "kept with a mask", "quarantine": "held back"}[str(found.decision[place])],
        "text": texts.get(place),
    }


def distribution(policy: Policy, found: Decisions) -> list[dict[str, Any]]:
    """Per scorer the share of the customer's rows above levels of the references: of rows like them 50, 10, 5, 1%."""
    out = []
    for column, name in enumerate(policy.scorers):
        known = found.percentiles[:, column]
        known = known[~np.isnan(known)]
        if len(known):
            shares = [words.percent(float((known > level).mean())) for level in LEVELS]
            out.append({"name": name, "shares": shares, "median": f"{np.median(known):.0f}"})
    return out


def render(values: dict[str, Any]) -> str:
    return pages.render(TEMPLATE, **values, flag=FLAG)
