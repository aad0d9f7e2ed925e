"""The first screen of the audit: four questions, answered from audit.json alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

from guardrail.similarity.audit.forecasts import sentences


def answers(audit: dict[str, Any]) -> list[dict[str, str]]:
    """Question and answer, in the order of the page."""
    return [
        {
            "question": "May I train on this?",
            "text": "This page does not say: it compares sets. The gate looks at every row (similarity/admit.py).",
        },
        {"question": "With which checkpoint?", "text": which_checkpoint(audit)},
        {"question": "What would change it?", "text": what_would_change_it(audit)},
        {"question": "How sure is that?", "text": how_sure(audit)},
    ]


def least_similar(audit: dict[str, Any]) -> str | None:
    name: str | None = audit["verdict"]["least_similar"]
    return name


def which_checkpoint(audit: dict[str, Any]) -> str:
    chosen = least_similar(audit)
    if chosen is None:
        return f"There is one alignment set, {audit['variants'][0]['name']}: nothing to choose."
    rank = f"{chosen} is least similar to the customer's rows of {len(audit['variants'])} sets"
    if "forecast" in audit:
        told = [one for one in sentences(audit) if one.startswith(("Forecast to hold best", "No set is preferred"))]
        return " ".join([*(told or ["The forecast abstains: no set is preferred."]), f"{rank}."])
    return f"No prediction. {rank}; choose it if nothing else speaks against it."


def what_would_change_it(audit: dict[str, Any]) -> str:
    judged, chosen = audit["verdict"], least_similar(audit)
    if chosen is None:
        return "A second alignment set to compare with."
    out = []
    others = Counter(name for name in judged["choices"].values() if name != chosen)
    if others:
        named = ", ".join(f"{name} in {count}" for name, count in others.most_common())
        out.append(f"Another layer, position or measure: of {judged['n_choices']} combinations, {named}.")
    else:
        out.append(f"No other layer, position or measure of the {judged['n_choices']} that were looked at.")
    if judged["bootstrap_fraction"] < 1:
        share = 100 * (1 - judged["bootstrap_fraction"])
        out.append(f"Other rows of the same kind: in {share:.0f}% of resamples another set is lowest.")
    out += [sentence for sentence in audit["summary"] if sentence.startswith("Caution")]
    return " ".join(out)


def how_sure(audit: dict[str, Any]) -> str:
    judged = audit["verdict"]
    stable = {"stable": "The rank is stable.", "leaning": "The rank is leaning, not stable."}
    out = [stable.get(judged["confidence"], "The rank is unclear: the sets are about equally similar.")]
    if least_similar(audit) is None:
        out = []
    if "forecast" in audit:
        best = judged["predicted_best"] or least_similar(audit) or audit["variants"][0]["name"]
        out += [sentence for sentence in sentences(audit) if f" for {best}: " in sentence]
    else:
        out.append("Whether the least similar set holds best for your models is not measured here.")
    if not audit["references"]:
        out.append("Without reference sets nobody knows what is usual.")
    return " ".join(out)
