"""A forecast in words: number, interval and skill in one sentence; or that there is none, and why."""

from __future__ import annotations

from typing import Any

from guardrail.similarity.forecast.model import plural
from guardrail.similarity.forecast.observations import OUTCOMES, UNITS, WORDS


def main_outcome(rows: list[dict[str, Any]]) -> str | None:
    """The first outcome that has a forecast for every one of ``rows`` (`file.answer`)."""
    return next((name for name in OUTCOMES if rows and all("forecast" in row[name] for row in rows)), None)


def heading(row: dict[str, Any]) -> str:
    """What stands in front of `say`'s sentence."""
    return "No forecast" if main_outcome([row]) is None else "Forecast"


def say(row: dict[str, Any], outcome: str | None = None) -> str:
    """One sentence without a full stop: the forecast, or why there is none (the first outcome's reason)."""
    outcome = outcome or main_outcome([row])
    if outcome is None:
        reasons = list(dict.fromkeys(row[name]["abstains"] for name in OUTCOMES if "abstains" in row[name]))
        return str(reasons[0])
    found = row[outcome]
    sign = "+" if outcome == "delta_points" else ""
    low, high = found["interval"]
    skills = "; ".join(
        f"{one['value']:.2f} leaving out whole {plural(scheme)} (80% interval {one['interval'][0]:.2f} to "
        f"{one['interval'][1]:.2f})"
        for scheme, one in found["skill"].items()
    )
    return (
        f"{WORDS[outcome]} {found['forecast']:{sign}.1f} {UNITS[outcome]} ({100 * found['level']:.0f}% interval "
        f"{low:.1f} to {high:.1f}, {found['interval_from']}); skill {skills}, from {found['n_arms']} arms of "
        f"{found['n_tasks']} tasks"
    )
