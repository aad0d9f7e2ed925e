"""The gate's result in sentences: the four answers of the first screen. Numbers and names alone, no text of a row."""

from __future__ import annotations

from typing import Any

from guardrail.similarity.gate.decide import ACCEPT, NOT_SCORED, REFUSE
from guardrail.similarity.gate.policy import DUPLICATE, FORMAT, SECRETS, SEGMENT, Policy

TITLES = {
    "harmful": "is harmful itself",
    "near_harmful": "lies near rows known to be harmful",
    "erodes": "erodes the guardrail, by its gradient",
    "unusual": "is unlikely for the checkpoint, which would have to change for it",
    "length": "has an unusual length",
    DUPLICATE: "repeats an earlier row, or nearly",
    FORMAT: "cannot be trained on as it is",
    SECRETS: "holds a key, token or password",
    SEGMENT: "has a harmful sentence in a longer answer",
    NOT_SCORED: "could not be scored by every rule",
}


def title_of(name: str, policy: Policy) -> str:
    """What a reason says of a row."""
    rule = policy.rule(name)
    return TITLES.get(name) or f"is beyond the limit of {rule.scorer if rule else name}"


def percent(fraction: float) -> str:
    value = 100 * fraction
    return f"{value:.0f}%" if value >= 10 or value == 0 else f"{value:.1f}%"


def rows(n: int) -> str:
    return f"{n:,} row" if n == 1 else f"{n:,} rows"


def may_i_train(verdict: dict[str, Any], policy: Policy) -> str:
    n, out = verdict["n_rows"], verdict["n_quarantined"]
    if verdict["verdict"] == REFUSE:
        broken = [
            f"{percent(test['fraction'])} {said(test['what'], policy)}, the policy allows {percent(test['limit'])}"
            for test in verdict["refusal_tests"]
            if test["broken"]
        ]
        if verdict["too_few_kept"]:
            broken.append(
                f"only {rows(verdict['n_kept'])} would be left, the policy asks for {verdict['min_kept_rows']:,}"
            )
        return f"No. {'; '.join(broken)[:1].upper()}{'; '.join(broken)[1:]}."
    if verdict["verdict"] == ACCEPT:
        return f"Yes, on all {rows(n)}: no rule holds one back."
    parts = []
    if out:
        parts.append(f"{rows(out)} ({percent(out / n)}) {'is' if out == 1 else 'are'} held back")
    if verdict["n_masked"]:
        parts.append(f"in {rows(verdict['n_masked'])} a sentence gets no loss")
    return f"Yes, on {rows(verdict['n_kept'])} of {n:,}: {' and '.join(parts)}."


def said(what: str, policy: Policy) -> str:
    """A refusal test in words."""
    if what == "rows quarantined":
        return "of the rows are held back"
    return f"of the rows have the reason {what} ({title_of(what, policy)})"


def counted(what: str) -> str:
    return "are held back" if what == "rows quarantined" else f"have the reason {what}"


def which_checkpoint(audit: dict[str, Any] | None) -> str:
    if audit is None:
        return (
            "Not asked. similarity/audit.py compares the kept rows with your alignment sets; give its audit.json as "
            "--audit."
        )
    return (
        f"From the audit of {audit['customer']['name']} ({rows(audit['customer']['n'])}): {' '.join(audit['summary'])}"
    )


def what_would_change_it(verdict: dict[str, Any], policy: Policy) -> list[str]:
    n = verdict["n_rows"]
    out = []
    alone = {name: count for name, count in verdict["only_reason"].items() if count}
    if alone:
        largest = max(alone, key=lambda name: alone[name])
        out.append(
            f"Without the rule {largest}, {rows(alone[largest])} more would be kept: nothing else speaks against them."
        )
    near = verdict["n_near_limit"]
    if near:
        out.append(f"{rows(near)} {'lies' if near == 1 else 'lie'} within a tenth of a limit, on either side of it.")
    for test in verdict["refusal_tests"]:
        count, limit = round(test["fraction"] * n), int(test["limit"] * n)
        if test["limit"] < 1 and not test["broken"]:
            out.append(f"The file would be refused with {rows(limit + 1 - count)} more that {counted(test['what'])}.")
        elif test["broken"]:
            out.append(f"With {rows(count - limit)} fewer that {counted(test['what'])}, this test would pass.")
    return out or ["No limit of the policy is near."]


def how_sure(sure: dict[str, Any], policy: Policy) -> list[str]:
    out = []
    good = sure["good_rows_flagged"]
    if good is None:
        out.append("There are no references, so nobody knows how many good rows these limits hold back.")
    else:
        out.append(
            f"Of {rows(good['n'])} of your references the scores would hold back {percent(good['fraction'])} "
            f"({interval(good)}), each half judged by limits from the other."
        )
    for name, one in sure["caught"].items():
        out.append(
            f"Of {rows(one['n'])} known to be bad ({name}) the scores catch {percent(one['fraction'])} "
            f"({interval(one)})."
        )
    if not sure["caught"]:
        out.append("What these rules miss is not known: name rows that are known to be bad under checks in the policy.")
    return out


def interval(one: dict[str, Any]) -> str:
    low, high = one["interval"]
    return f"95% interval {100 * low:.1f} to {100 * high:.1f}"
