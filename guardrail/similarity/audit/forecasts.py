"""What a forecast of durability (docs/forecast.md) says about every alignment set of an audit, or that there is none.

Without a fitted forecast an audit ranks by similarity and predicts nothing. With one, the set to prefer is the one with
the best forecast; where a forecast abstains for one of the sets, or its order on left-out tasks was no better than
chance, none is preferred and the reason stands there.
"""

from __future__ import annotations

from typing import Any

from guardrail.similarity.forecast.command import audit_extraction, check_names, parse_before
from guardrail.similarity.forecast.file import answer
from guardrail.similarity.forecast.observations import audit_properties
from guardrail.similarity.forecast.words import heading, main_outcome, say

NO_PREDICTION = (
    "No prediction: nothing was measured that this audit could go by (--forecast takes what `guardrail forecast fit` "
    "makes of finished studies). The sets are ranked by similarity."
)
CHANCE = 0.5


def add_forecast(audit: dict[str, Any], forecast: dict[str, Any] | None, before: tuple[str, ...]) -> None:
    """Put ``forecast`` into every variant and ``predicted_best``, ``prediction`` into the verdict.

    Raises ``UserError`` for a name in ``before`` that is no alignment set.
    """
    verdict, variants = audit["verdict"], audit["variants"]
    verdict |= {"predicted_best": None, "prediction": None}
    known = parse_before(before)
    check_names(known, [one["name"] for one in variants])
    if forecast is None:
        return
    audit["forecast"] = {name: forecast[name] for name in ("hash", "version", "level", "studies", "extraction")}
    extraction = audit_extraction(audit)
    for one in variants:
        values = audit_properties(one, audit["customer"], known.get(one["name"]))
        one["forecast"] = answer(forecast, values, extraction)
    outcome = main_outcome([one["forecast"] for one in variants])
    verdict["prediction"] = outcome
    if outcome is None or len(variants) < 2:
        return
    order = variants[0]["forecast"][outcome]["order_right_fraction"]
    if order is not None and order > CHANCE:
        sign = -1 if outcome == "life_percent" else 1
        best = min(variants, key=lambda one: sign * one["forecast"][outcome]["forecast"])
        verdict["predicted_best"] = best["name"]


def sentences(audit: dict[str, Any]) -> list[str]:
    """The forecasts in words, the preferred set first; `NO_PREDICTION` without a fitted forecast."""
    variants, verdict = audit["variants"], audit["verdict"]
    if "forecast" not in audit:
        return [NO_PREDICTION]
    outcome, best = verdict["prediction"], verdict["predicted_best"]
    out = [f"{heading(one['forecast'])} for {one['name']}: {say(one['forecast'], outcome)}." for one in variants]
    if outcome is None or len(variants) < 2:
        return out
    found = variants[0]["forecast"][outcome]
    if found["order_right_fraction"] is None:
        return [*out, "No set is preferred: the studies hold no task with two arms that differ."]
    share = (
        f"the order of two arms of a left-out task was forecast right in {100 * found['order_right_fraction']:.0f}% "
    )
    share += f"of {found['n_pairs']} pairs"
    if best is None:
        return [*out, f"No set is preferred: {share}."]
    apart = separated(variants, outcome, best)
    tail = "" if apart else "; the intervals overlap, so the difference may be none"
    return [f"Forecast to hold best: {best} ({share}{tail}).", *out]


def separated(variants: list[dict[str, Any]], outcome: str, best: str) -> bool:
    """Does the interval of ``best`` meet no other one's?"""
    intervals = {one["name"]: one["forecast"][outcome]["interval"] for one in variants}
    low, high = intervals.pop(best)
    return all(high < other[0] or other[1] < low for other in intervals.values())
