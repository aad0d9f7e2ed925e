"""The headline of a study in plain sentences, always with its interval, N and scope."""

from __future__ import annotations

from typing import Any

SIGNIFICANT = 0.05
QUESTION = ("high", "low")


def interval(low: float, high: float) -> str:
    return f"95% interval {low:+.1f} to {high:+.1f}"


def p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def plural(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def main_comparison(statistics: dict[str, Any], outcome: str = "change") -> dict[str, Any] | None:
    """High minus low over all tasks, at the study's first subset size."""
    for entry in statistics.get("overall", []):
        if (entry["first"], entry["second"]) == QUESTION and entry["outcome"] == outcome:
            return entry if "difference_points" in entry else None
    return None


def headline(result: dict[str, Any]) -> tuple[str, list[str]]:
    """One sentence with the answer, and sentences that qualify it."""
    statistics = result.get("statistics", {})
    entry = main_comparison(statistics)
    if entry is None:
        reason = statistics.get("reason", "this study has no finished pair of high- and low-similarity arms")
        return f"High against low similarity cannot be compared: {reason}.", _base(result)
    difference, p = entry["difference_points"], entry["p_value"]
    numbers = f"({interval(*entry['interval_points'])}; {p_text(p)})"
    if p >= SIGNIFICANT:
        first = (
            "No difference in durability between high- and low-similarity alignment data is shown: fine-tuning changed "
            f"harmfulness by {difference:+.1f} points more after high-similarity alignment {numbers}."
        )
    else:
        more = "more" if difference > 0 else "less"
        kind = "less" if difference > 0 else "more"
        verdict = "as the paper claims" if difference > 0 else "the opposite of the paper's claim"
        first = (
            f"High-similarity alignment data gave the {kind} durable guardrails, {verdict}: fine-tuning raised "
            f"harmfulness by {abs(difference):.1f} points {more} than after low-similarity alignment {numbers}."
        )
    more_sentences = [_scope(entry)]
    if p >= SIGNIFICANT:
        more_sentences.append(
            f"A true difference of {entry['minimum_detectable_points']:.1f} points or more would have been found with "
            "80% power."
        )
    for outcome, words in (("final", "Harmfulness after fine-tuning"), ("initial", "Harmfulness before fine-tuning")):
        other = main_comparison(statistics, outcome)
        if other is not None:
            more_sentences.append(
                f"{words} differed by {other['difference_points']:+.1f} points "
                f"({interval(*other['interval_points'])}; {p_text(other['p_value'])})."
            )
    matched = entry.get("at_matched_utility", {})
    if "difference_points" in matched:
        more_sentences.append(
            f"At equal utility the difference in change is {matched['difference_points']:+.1f} points "
            f"({interval(*matched['interval_points'])}, {plural(matched['n_pairs'], 'task-seed pair')})."
        )
    return first, more_sentences + _base(result)


def _scope(entry: dict[str, Any]) -> str:
    text = f"Averaged over {plural(len(entry['tasks']), 'task')} ({', '.join(entry['tasks'])}), "
    text += f"{plural(entry['n_seeds'], 'training seed')} and {plural(entry['n_prompts'], 'prompt')}"
    size = entry.get("subset_size")
    text += f"; subsets of {size} rows." if size else "."
    if entry["n_seeds"] == 1:
        text += " One seed: this speaks about these checkpoints, not about the training procedure."
    return text


def _base(result: dict[str, Any]) -> list[str]:
    sentences = []
    base = result["base"]
    if base["status"] == "done":
        low, high = base["harmfulness_score_interval_percent"]
        sentences.append(
            f"The base model, before any alignment, is flagged on {base['harmfulness_score_percent']:.1f}% of "
            f"{plural(base['n'], 'completion')} (95% interval {low:.1f} to {high:.1f})."
        )
    if result["n_failed"]:
        sentences.append(f"{plural(result['n_failed'], 'cell')} failed and carry no number.")
    return sentences
