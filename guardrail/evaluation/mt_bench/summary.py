"""Scores of one model: overall, per turn, per category, with 95% bootstrap intervals over questions.

Both judgements of a question are drawn together. Failed judgements are left out of every mean, counted, and shown
beside it; a mean over nothing is null, and so is an interval over fewer than five questions. The older align-anything
measure counts a failure as 0, as it did there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from guardrail.evaluation.mt_bench.answers import ALIGN_ANYTHING, FASTCHAT

MIN_QUESTIONS_FOR_INTERVAL = 5  # with fewer, the bootstrap's interval is mostly chance
SCORE_NAME = {FASTCHAT: "score_1_to_10", ALIGN_ANYTHING: "score_0_to_10"}


def measure_name(question_set: str, protocol: str) -> str:
    """``mt_bench``, ``sandbox_mt_bench``, ...; the older measure has a name that nothing else has."""
    return question_set if protocol == FASTCHAT else f"align_anything_old_protocol_on_{question_set}"


def metric_name(question_set: str, protocol: str) -> str:
    return f"{measure_name(question_set, protocol)}_{SCORE_NAME[protocol]}"


def summarise(judgements: Sequence[dict[str, Any]], protocol: str = FASTCHAT, seed: int = 0) -> dict[str, Any]:
    """Scores of ``judgements`` (``question_id``, ``category``, ``turn``, ``score``, ``failure``, ``ambiguous``)."""
    if protocol == ALIGN_ANYTHING:  # reproduced: its saver writes 0 where there is no rating
        judgements = [{**row, "score": 0 if row["score"] is None else row["score"]} for row in judgements]
    failures = Counter(row["failure"] for row in judgements if row["failure"])
    categories = list(dict.fromkeys(row["category"] for row in judgements))
    turns = sorted({row["turn"] for row in judgements})
    return {
        "overall": _mean(judgements, seed),
        "turns": {str(turn): _mean([r for r in judgements if r["turn"] == turn], seed) for turn in turns},
        "categories": {
            name: {
                **_mean([r for r in judgements if r["category"] == name], seed),
                **{
                    f"turn_{turn}": _mean([r for r in judgements if r["category"] == name and r["turn"] == turn], seed)
                    for turn in turns
                },
            }
            for name in categories
        },
        "n_questions": len({row["question_id"] for row in judgements}),
        "n_judgements": len(judgements),
        "n_failed": sum(failures.values()),
        "failures": dict(failures),
        "failed_percent": 100 * sum(failures.values()) / len(judgements) if judgements else None,
        "n_ambiguous": sum(1 for row in judgements if row["ambiguous"]),
        "failures_count_as": 0 if protocol == ALIGN_ANYTHING else None,
    }


def _mean(rows: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """``score`` (mean over valid judgements), ``interval``, and how many judgements it rests on."""
    from guardrail.statistics.resampling import bootstrap_mean

    valid = [row for row in rows if row["score"] is not None]
    out: dict[str, Any] = {"score": None, "interval": None, "n": len(valid), "n_failed": len(rows) - len(valid)}
    if valid:
        questions = [row["question_id"] for row in valid]
        estimate = bootstrap_mean([row["score"] for row in valid], questions, seed=seed)
        enough = len(set(questions)) >= MIN_QUESTIONS_FOR_INTERVAL
        out |= {"score": estimate.value, "interval": [estimate.low, estimate.high] if enough else None}
    return out


def markdown_table(summary: dict[str, Any], title: str) -> str:
    """A table of turns and categories with N and failures, for people."""
    turns = list(summary["turns"])

    def cell(part: dict[str, Any] | None) -> str:
        return "-" if not part or part["score"] is None else f"{part['score']:.2f}"

    def line(name: str, part: dict[str, Any], by_turn: list[dict[str, Any] | None]) -> str:
        interval = "-" if part["interval"] is None else f"{part['interval'][0]:.2f} to {part['interval'][1]:.2f}"
        cells = [name, cell(part), interval, *(cell(one) for one in by_turn), str(part["n"]), str(part["n_failed"])]
        return "| " + " | ".join(cells) + " |"

    header = ["", "score", "95% interval", *(f"turn {turn}" for turn in turns), "n", "failed"]
    lines = [f"**{title}**", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines.append(line("overall", summary["overall"], [summary["turns"][turn] for turn in turns]))
    for name, part in summary["categories"].items():
        lines.append(line(name, part, [part.get(f"turn_{turn}") for turn in turns]))
    return "\n".join(lines) + "\n"
