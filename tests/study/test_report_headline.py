"""The rules of docs/headlines.md on results made by hand and generated: every verdict, and what must never be said."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import REPOSITORY

from guardrail.statistics.regression import MATCHED
from guardrail.study.report.headline import FAILED, MATCHED_ARMS, OPEN, PASSED, QUESTION, headline

VERDICT_WORDS = ("durable", "paper", "claim", "opposite", "is shown", "survive", "matters here", "confirm", "control")
SWAPS = (
    ("high", "low"),
    ("High", "Low"),
    ("as the paper claims", "the opposite of what the paper claims"),
    ("in the direction the paper claims", "against the direction the paper claims"),
)


def entry(difference: float, half: float = 2.0, p: float = 0.01, **more: Any) -> dict[str, Any]:
    """One comparison of `study.json`, high minus low."""
    return {
        "first": "high",
        "second": "low",
        "outcome": "change",
        "subset_size": 1000,
        "difference_points": difference,
        "interval_points": [difference - half, difference + half],
        "p_value": p,
        "minimum_detectable_points": 7.0,
        "n_seeds": 5,
        "n_prompts": 140,
        **more,
    }


def made(
    difference: float = 12.0,
    half: float = 3.0,
    p: float = 0.002,
    tasks: tuple[float, ...] = (10.0, 14.0),
    n_seeds: int = 5,
    controls: dict[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A `study.json` in which high against low came out like this and every control agrees; ``controls`` replaces."""
    names = [f"task{i}" for i in range(len(tasks))]
    common = {"n_seeds": n_seeds}
    needed = {"seeds_needed": 9, "seeds_needed_from": "seeds" if n_seeds > 1 else "tasks"}
    matched = {"difference_points": difference, "interval_points": [difference - 1, difference + 1], "p_value": 0.01}
    main = entry(difference, half, p, tasks=names, at_matched_utility={**matched, "n_pairs": 10}, **needed, **common)
    overall = {"change": main}
    overall["final"] = entry(difference, half, 0.01, outcome="final", **common)
    overall["initial"] = entry(0.4, 1.0, 0.6, outcome="initial", **common)
    for arms in MATCHED_ARMS:
        overall[arms[0]] = entry(difference, half, 0.01, first=arms[0], second=arms[1], **common)
    overall["over_refusal"] = entry(0.2, 1.5, 0.8, outcome="final", **common)
    overall["judge"] = {"task": "task0", "subset_size": 1000, "depends_on_judge": False, "change_points": {}}
    for key, change in (controls or {}).items():
        if change is None:
            del overall[key]
        else:
            overall[key] = {**overall[key], **change}
    over_refusal, judge = overall.pop("over_refusal", None), overall.pop("judge")
    return {
        "statistics": {
            "smallest_difference_points": 5.0,
            "arms": [{"task": name} for name in names],
            "overall": list(overall.values()),
            "comparisons": [
                entry(d, half, p, task=name, p_value_holm=p, **common) for d, name in zip(tasks, names, strict=True)
            ],
            "over_refusal": [over_refusal] if over_refusal else [],
            "judges": {"high_minus_low": [judge]},
        },
        "base": {
            "status": "done",
            "harmfulness_score_percent": 95.0,
            "harmfulness_score_interval_percent": [90.0, 98.0],
        }
        | {"n": 140},
        "cells": [],
        **more,
    }


def swapped(result: dict[str, Any]) -> dict[str, Any]:
    """The same study with the high arms called low and the low ones high: every difference turns round."""
    out = copy.deepcopy(result)
    statistics = out["statistics"]
    for row in [*statistics["overall"], *statistics["comparisons"], *statistics["over_refusal"]]:
        for part in (row, row.get("at_matched_utility", {})):
            if "difference_points" in part:
                part["difference_points"] = -part["difference_points"]
                part["interval_points"] = [-edge for edge in part["interval_points"]][::-1]
    return out


def mirrored(text: str) -> str:
    """``text`` with the words of the two arms, and those about the paper's claim, exchanged."""
    table = dict(SWAPS) | {b: a for a, b in SWAPS}
    return re.sub(rf"\b({'|'.join(sorted(table, key=len, reverse=True))})\b", lambda found: table[found[0]], text)


BROKEN, PENDING = "not survive its controls", "not all controls are settled"
AGAINST = {"difference_points": -6.0, "interval_points": [-9.0, -3.0]}
CASES = {
    "holds": (made(), "holds", 1, "as the paper claims. Over 5 seeds and 2 tasks harmfulness rose 12.0 points more"),
    "opposite": (
        swapped(made()),
        "holds",
        -1,
        "Low-similarity alignment data gave the less durable guardrails, the opposite of what the paper claims",
    ),
    "one seed": (made(n_seeds=1), "one_seed", 0, "about 9 seeds are needed"),
    "not shown": (made(1.9, 10.0, 0.55, (4.8, 1.0)), "not_shown", 0, "7.0 points would have been found with 80% power"),
    "not shown, tasks disagree": (
        made(1.9, 10.0, 0.55, (4.8, -1.0)),
        "not_shown",
        0,
        "the tasks disagree in sign (task0 4.8 points more after high-similarity alignment, "
        "task1 1.0 points more after low-similarity alignment)",
    ),
    "too small": (made(1.5, 1.0, 0.02, (1.0, 2.0)), "too_small", 0, "smaller than matters here (5 points)"),
    "no difference": (made(0.0, 1.0, 1.0, (0.0, 0.0)), "too_small", 0, "rose as much after high-similarity as after"),
    "small on average of large ones": (
        made(0.5, 2.0, 0.6, (15.0, -14.0)),
        "not_shown",
        0,
        "the tasks disagree in sign",
    ),
    "tasks disagree, average shown": (made(5.0, 3.0, 0.04, (15.7, -5.7)), "mixed", 0, "No one answer holds for all"),
    "one task": (made(tasks=(12.0,)), "one_task", 1, "only task0 could be compared"),
    "final": (
        made(controls={"final": {"p_value": 0.4}}),
        "fails_controls",
        1,
        f"{BROKEN}: harmfulness after fine-tuning.",
    ),
    "length": (
        made(controls={"high_length_matched": AGAINST}),
        "fails_controls",
        1,
        f"{BROKEN}: rise at equal length.",
    ),
    "format, topics": (
        made(controls={"high_format_matched": {"p_value": 0.2}, "high_category_matched": {"p_value": 0.06}}),
        "fails_controls",
        1,
        f"{BROKEN}: rise at equal list share and rise at equal topics.",
    ),
    "not run": (
        made(controls={"high_category_matched": None}),
        "uncontrolled",
        1,
        f"{PENDING}: rise at equal topics.",
    ),
    "utility": (
        made(controls={"change": {"at_matched_utility": {"reason": "4 task-seed pairs; at least 5 needed"}}}),
        "uncontrolled",
        1,
        f"{PENDING}: rise at equal utility.",
    ),
    "utility is equal anyway": (
        made(controls={"change": {"at_matched_utility": {"reason": MATCHED}}}),
        "holds",
        1,
        "as the paper claims",
    ),
    "low arms refuse everything": (
        made(controls={"over_refusal": {"difference_points": -20.0, "interval_points": [-26.0, -14.0]}}),
        "fails_controls",
        1,
        f"{BROKEN}: harmless requests refused.",
    ),
    "over-refusal not decided": (
        made(controls={"over_refusal": {"interval_points": [-9.0, 9.0]}}),
        "uncontrolled",
        1,
        f"{PENDING}: harmless requests refused.",
    ),
    "no bench": (
        made(controls={"over_refusal": None}),
        "uncontrolled",
        1,
        f"{PENDING}: harmless requests refused.",
    ),
    "judge": (
        made(controls={"judge": {"depends_on_judge": True}}),
        "fails_controls",
        1,
        f"{BROKEN}: other judges.",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_rule_gives_its_verdict_its_words_and_its_uncertainty(name):
    result, verdict, direction, words = CASES[name]
    found = headline(result)
    assert (found.verdict, found.direction) == (verdict, direction), found.sentence
    assert words in found.sentence
    assert "95% interval" in found.sentence and re.search(r"p [=<] 0\.\d|p = 1\.", found.sentence)
    assert ("claims" in found.sentence) == (direction != 0)
    assert found.sentence == f"{found.answer} {found.evidence}"
    for fact in found.facts:  # a number never stands without its interval and p-value, a line never without a word
        numbers = (fact.difference_points, fact.interval_points, fact.p_value)
        assert (None not in numbers) or (set(numbers) == {None} and fact.note)
        assert fact.control in ("", PASSED, FAILED, OPEN)
    assert bool(found.controls) == (verdict in ("holds", "uncontrolled", "fails_controls"))


def test_every_verdict_has_a_row_in_the_documentation():
    text = (REPOSITORY / "docs" / "headlines.md").read_text(encoding="utf-8")
    for verdict in {case[1] for case in CASES.values()} | {"not_comparable", "defences", "attacks"}:
        assert f"`{verdict}`" in text


def test_a_study_of_defences_says_how_many_help():
    """Two of four after Holm; one of them harms, one is left out because it ends before the task is learnt."""
    row = {"final_p_value_holm": 0.01, "n_seeds": 5, "initial_difference": 0.0, "final_interval": [-30.0, -10.0]}
    rows = [
        {**row, "defence": "soup_30", "final_difference": -20.0},
        {**row, "defence": "harms", "final_difference": 20.0},
        {**row, "defence": "weak", "final_difference": -2.0, "final_p_value_holm": 0.4},
        {key: value for key, value in row.items() if key != "initial_difference"} | {"defence": "early"},
    ]
    result = made() | {"defences": {"rows": rows}}
    assert headline(result).verdict != "defences"  # high and low arms are there, and come first
    result["statistics"] = {"overall": []}
    found = headline(result)
    assert found.verdict == "defences" and "1 of 3 defences lower harmfulness" in found.sentence
    assert "soup 30 (-20.0 points, 95% interval -30.0 to -10.0)" in found.sentence and "weak" not in found.sentence
    for one in rows:
        one["n_seeds"] = 1
    assert "one seed: nothing is said" in headline(result).sentence


def test_a_study_of_attacks_says_the_worst_case():
    worst = {"percent": 90.5, "interval_percent": [86.1, 93.6], "n_candidates": 44, "n_seeds": 3}
    worst |= {"chosen": ["rates_lr0.002 / door", "rates_lr0.002 / none"]}
    block = {"worst": [{"reason": "nothing keeps the bound"}, worst], "largest_utility_loss": 5.0}
    result = made() | {"attacks": block}
    assert headline(result).verdict != "attacks"  # high and low arms are there, and come first
    result["statistics"] = {"overall": []}
    found = headline(result)
    assert found.verdict == "attacks" and "90.5% are answered harmfully (95% interval 86.1 to 93.6)" in found.sentence
    assert "44 pairs" in found.sentence and "most often rates lr0.002 / door." in found.sentence
    worst["n_seeds"] = 1
    assert "One seed" in headline(result).sentence
    block["worst"] = block["worst"][:1]
    assert headline(result).verdict == "not_comparable"


def test_a_task_or_a_size_that_is_left_out_or_disagrees_prevents_the_claim():
    result = made()
    result["statistics"]["arms"].append({"task": "third"})
    found = headline(result)
    assert found.verdict == "one_task" and "Not compared: third." in found.details[0]
    result = made()
    result["statistics"]["overall"].append(entry(-3.0, 9.0, 0.4, subset_size=500, tasks=["task0", "task1"]))
    found = headline(result)
    assert found.verdict == "mixed" and "the subset sizes disagree in sign (1000 rows 12.0" in found.sentence


def test_tasks_that_are_each_shown_the_other_way_round_are_mixed_even_if_they_cancel():
    result = made(0.5, 8.0, 0.6, (15.0, -14.0))
    assert headline(result).verdict == "not_shown"
    for row in result["statistics"]["comparisons"]:
        row["p_value_holm"] = 0.01
    assert headline(result).verdict == "mixed"


def test_different_safety_before_fine_tuning_is_said():
    found = headline(made(controls={"initial": {"difference_points": 6.0, "p_value": 0.01}}))
    assert "did not start alike: before fine-tuning harmfulness was 6.0 points higher after high" in found.details[1]
    assert "did not start alike" not in "".join(headline(made()).details)
    assert [f.p_value for f in headline(made()).facts if f.what == "harmfulness before fine-tuning"] == [0.6]


@pytest.mark.parametrize(
    "needed,source,words",
    [
        (
            None,
            "tasks",
            "no number of seeds finds a true difference of 5 points with 80% power: more prompts are needed",
        ),
        (4, "answers", "at least 4 seeds are needed; how much seeds differ, one seed does not show"),
        (6, "tasks", "about 6 seeds are needed, if seeds differ as these tasks do"),
    ],
)
def test_one_seed_says_how_many_are_needed_and_on_which_ground(needed, source, words):
    result = made(n_seeds=1, controls={"change": {"seeds_needed": needed, "seeds_needed_from": source}})
    assert words in headline(result).sentence


def test_without_a_pair_of_arms_the_reason_stands_there_and_no_number():
    base = {"status": "failed", "reason": "x"}
    cells = [{"status": status} for status in ("stale", "missing", "missing", "done")]
    found = headline({"statistics": {}, "base": base, "cells": cells})
    assert found.sentence.startswith("High against low similarity cannot be compared: no pair")
    assert found.details == ("Results without numbers: 1 failed, 1 stale and 2 missing.",)
    apart = {
        "first": "high",
        "second": "low",
        "outcome": "change",
        "subset_size": 5,
        "reason": "the tasks share no seed",
    }
    found = headline({"statistics": {"overall": [apart]}, "base": base, "cells": []})
    assert found.sentence.endswith("cannot be compared: the tasks share no seed.")


numbers = st.builds(lambda size, sign: sign * round(size, 4), st.floats(0.001, 90), st.sampled_from([-1, 1]))
p_values = st.sampled_from([1e-6, 0.004, 0.03, 0.0499, 0.05, 0.2, 0.9, 1.0])


@st.composite
def results(draw, most_seeds: int = 6) -> dict[str, Any]:
    """Any numbers at all, consistent or not."""
    tasks = tuple(draw(st.lists(numbers, min_size=1, max_size=4)))
    result = made(tasks=tasks, n_seeds=draw(st.integers(1, most_seeds)))
    statistics = result["statistics"]
    for row in [*statistics["overall"], *statistics["comparisons"], *statistics["over_refusal"]]:
        for part in (row, row.get("at_matched_utility", {})):
            if "difference_points" in part:
                value, half = part.get("difference_points"), draw(st.floats(0.1, 30))
                value = value if "task" in row else draw(numbers)
                part |= {"difference_points": value, "interval_points": [value - half, value + half]}
                part["p_value"] = draw(p_values)
        row["p_value_holm"] = draw(p_values)
    statistics["judges"]["high_minus_low"][0]["depends_on_judge"] = draw(st.booleans())
    statistics["overall"] = [statistics["overall"][0], *draw(st.permutations(statistics["overall"][1:]))]
    keep = draw(st.integers(1, len(statistics["overall"])))
    statistics["overall"] = statistics["overall"][:keep]
    return result


@given(results(most_seeds=1))
@settings(max_examples=400, deadline=None)
def test_no_verdict_from_one_seed_whatever_the_numbers(result):
    found = headline(result)
    assert (found.verdict, found.direction, found.controls) == ("one_seed", 0, [])
    text = " ".join((found.sentence, *found.details, *(fact.what + fact.note for fact in found.facts)))
    assert not [word for word in VERDICT_WORDS if word in text]
    assert "cannot tell" in found.sentence and "seeds" in found.sentence


@given(results())
@settings(max_examples=400, deadline=None)
def test_swapping_high_and_low_swaps_the_words_and_nothing_else(result):
    one, other = headline(result), headline(swapped(result))
    assert (one.verdict, one.direction) == (other.verdict, -other.direction)
    for mine, theirs in zip(one.facts, other.facts, strict=True):
        assert (mine.what, mine.control, mine.p_value) == (theirs.what, theirs.control, theirs.p_value)
        assert mine.difference_points is None or mine.difference_points == -theirs.difference_points
    assert mirrored(one.sentence) == other.sentence
    assert tuple(map(mirrored, one.details)) == other.details


@given(results())
@settings(max_examples=400, deadline=None)
def test_tasks_that_disagree_in_sign_are_always_named_and_claims_need_every_control(result):
    found = headline(result)
    rows = result["statistics"]["comparisons"]
    signs = {(row["difference_points"] > 0) - (row["difference_points"] < 0) for row in rows}
    if {1, -1} <= signs:
        assert "the tasks disagree in sign" in found.sentence and found.direction == 0
        assert all(row["task"] in found.sentence for row in rows)
    claimed = "as the paper claims" in found.sentence or "the opposite of what the paper claims" in found.sentence
    assert claimed == (found.verdict == "holds")
    if claimed:
        main = result["statistics"]["overall"][0]
        assert main["p_value"] < 0.05 and main["n_seeds"] > 1 and len(rows) > 1
        assert len(found.controls) >= 6 and {fact.control for fact in found.controls} == {PASSED}
    assert {fact.control for fact in found.controls} <= {PASSED, FAILED, OPEN}
    assert QUESTION == ("high", "low")
