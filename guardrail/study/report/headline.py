"""The headline of a study: which statement its statistics carry, and which they do not. Rules: docs/headlines.md.

Everything is said in the direction of the numbers ("more after high-similarity than after low-similarity alignment"),
so that swapping the two arms swaps the words and nothing else. From one training seed follows no verdict at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from guardrail.statistics.regression import MATCHED

SIGNIFICANT = 0.05
QUESTION = ("high", "low")
MATCHED_ARMS = {
    ("high_length_matched", "low_length_matched"): "equal length",
    ("high_format_matched", "low_format_matched"): "equal list share",
    ("high_category_matched", "low_category_matched"): "equal topics",
}
PASSED, FAILED, OPEN = "passed", "failed", "open"
Entry = dict[str, Any]


@dataclass(frozen=True)
class Fact:
    """One line of evidence: a difference, high minus low, in points, with its interval and p-value (or a note alone).

    ``control``: passed, failed or open where the line is a control of a shown difference, empty elsewhere.
    """

    what: str
    difference_points: float | None = None
    interval_points: tuple[float, float] | None = None
    p_value: float | None = None
    control: str = ""
    note: str = ""


@dataclass(frozen=True)
class Headline:
    """``verdict`` is a row of docs/headlines.md; ``direction`` 1: high-similarity arms lost more, -1: low ones, 0: none
    is claimed. ``answer`` is the short sentence, ``evidence`` its numbers; ``details`` say what was compared.
    """

    verdict: str
    direction: int
    answer: str
    evidence: str = ""
    details: tuple[str, ...] = ()
    facts: tuple[Fact, ...] = ()

    @property
    def sentence(self) -> str:
        return f"{self.answer} {self.evidence}".strip()

    @property
    def controls(self) -> list[Fact]:
        return [fact for fact in self.facts if fact.control]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for `study.json`."""
        return {"sentence": self.sentence, **asdict(self)}


def interval(low: float, high: float) -> str:
    return f"95% interval {low:+.1f} to {high:+.1f}".replace("+0.0", "0.0").replace("-0.0", "0.0")


def p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def plural(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def worse(difference: float) -> tuple[str, str]:
    """The arm with the larger value first."""
    return QUESTION if difference >= 0 else (QUESTION[1], QUESTION[0])


def amount(difference: float) -> str:
    size = abs(difference)
    return "less than 0.1 points" if 0 < size < 0.05 else f"{size:.1f} points"


def compared(entry: Entry, word: str = "more") -> str:
    """`2.1 points more after high-similarity than after low-similarity alignment (95% interval ...; p = ...)`."""
    difference, (low, high) = entry["difference_points"], entry["interval_points"]
    first, second = worse(difference)
    if difference < 0:
        low, high = -high, -low
    numbers = f"({interval(low, high)}; {p_text(entry['p_value'])})"
    if difference == 0:
        same = {"more": "as much", "higher": "as high"}[word]
        return f"{same} after {first}-similarity as after {second}-similarity alignment {numbers}"
    return f"{amount(difference)} {word} after {first}-similarity than after {second}-similarity alignment {numbers}"


def shown(entry: Entry) -> bool:
    return bool(entry["p_value"] < SIGNIFICANT)


def sign(value: float) -> int:
    return (value > 0) - (value < 0)


def disagree(entries: list[Entry]) -> bool:
    """Whether some differences are above zero and some below."""
    signs = {sign(entry["difference_points"]) for entry in entries}
    return {1, -1} <= signs


def each(entries: list[Entry], name: Callable[[Entry], str]) -> str:
    return ", ".join(
        f"{name(e)} {amount(e['difference_points'])} more after {worse(e['difference_points'])[0]}-similarity alignment"
        for e in entries
    )


def _find(entries: list[Entry], arms: tuple[str, str], outcome: str = "change", **more: Any) -> list[Entry]:
    wanted = {"first": arms[0], "second": arms[1], "outcome": outcome, **more}
    return [e for e in entries if "difference_points" in e and all(e.get(k) == v for k, v in wanted.items())]


def headline(result: dict[str, Any]) -> Headline:
    """The first rule of docs/headlines.md that applies to ``result`` (the content of `study.json`)."""
    statistics = result.get("statistics", {})
    sizes = _find(statistics.get("overall", []), QUESTION)
    if not sizes:
        reasons = [e["reason"] for e in statistics.get("overall", []) if (e["first"], e["second"]) == QUESTION]
        reason = statistics.get("reason") or next(iter(reasons), "no pair of high- and low-similarity arms is finished")
        answer = f"High against low similarity cannot be compared: {reason}."
        if (effects := result.get("defences")) and not reasons and (said := defences_sentence(effects["rows"])):
            return Headline("defences", 0, said, details=tuple(_study_facts(result)))
        if (attacked := result.get("attacks")) and not reasons and (said := worst_case_sentence(attacked)):
            return Headline("attacks", 0, said, details=tuple(_study_facts(result)))
        return Headline("not_comparable", 0, answer, details=tuple(_study_facts(result)))
    main = sizes[0]
    size, smallest = main["subset_size"], statistics["smallest_difference_points"]
    tasks = _find(statistics.get("comparisons", []), QUESTION, subset_size=size)
    apart = {task for ladder in result.get("doses", {}).get("ladders", []) for task in ladder["tasks"]}
    apart |= {arm["task"] for arm in result.get("attacks", {}).get("training", [])}
    planned = [task for task in dict.fromkeys(a["task"] for a in statistics.get("arms", [])) if task not in apart]
    missing = [task for task in planned if task not in main["tasks"]]
    details = [_scope(main, missing)]
    initial = _find(statistics["overall"], QUESTION, "initial", subset_size=size)
    if initial and shown(initial[0]):
        was = compared(initial[0], "higher")
        details.append(f"The arms did not start alike: before fine-tuning harmfulness was {was}.")
    rose = f"harmfulness rose {compared(main)}"
    split = ""
    if disagree(tasks):
        split += f"; the tasks disagree in sign ({each(tasks, lambda e: e['task'])})"
    if disagree(sizes):
        by_size = each(sizes, lambda e: f"{e['subset_size']} rows")
        split += f"; the subset sizes disagree in sign ({by_size})"

    def out(verdict: str, answer: str, evidence: str, direction: int = 0, controlled: bool = False) -> Headline:
        facts = _facts(statistics, main, tasks, smallest, direction if controlled else None)
        return Headline(verdict, direction, answer, evidence, (*details, *_study_facts(result)), tuple(facts))

    if main["n_seeds"] == 1:
        return out(
            "one_seed",
            "One training seed cannot tell which alignment data last longer.",
            f"In these checkpoints {rose}{split}. {_seeds_needed(main, smallest)}",
        )
    if all(max(map(abs, entry["interval_points"])) < smallest for entry in (*sizes, *tasks)):
        answer = f"The difference is smaller than matters here ({smallest:g} points)."
        return out("too_small", answer, f"When fine-tuned, {rose}{split}.")
    directions = {sign(task["difference_points"]) for task in tasks if task.get("p_value_holm", 1) < SIGNIFICANT}
    if split and (shown(main) or len(directions) > 1):
        return out("mixed", "No one answer holds for all of this study.", f"On average, {rose}{split}.")
    if not shown(main):
        detectable = main["minimum_detectable_points"]
        found = f"A true difference of {detectable:.1f} points would have been found with 80% power."
        return out(
            "not_shown",
            "No difference in durability is shown between the two kinds of alignment data.",
            f"When fine-tuned, {rose}{split}. {found} {_seeds_needed(main, smallest)}",
        )
    direction = sign(main["difference_points"])
    data = f"{worse(direction)[0].capitalize()}-similarity alignment data gave the less durable guardrails"
    heading = "in the direction the paper claims" if direction > 0 else "against the direction the paper claims"
    evidence = f"Over {plural(main['n_seeds'], 'seed')} and {plural(len(main['tasks']), 'task')} {rose}."
    if min(abs(edge) for edge in main["interval_points"]) < smallest:
        evidence += f" A true difference below the {smallest:g} points that matter is not excluded."
    if len(tasks) < 2 or missing:
        seen = listed(main["tasks"])
        return out("one_task", f"{data}, {heading}, but only {seen} could be compared.", evidence, direction)
    controls = [fact for fact in _facts(statistics, main, tasks, smallest, direction) if fact.control]
    failed = [fact.what for fact in controls if fact.control == FAILED]
    pending = [fact.what for fact in controls if fact.control == OPEN]
    if failed:
        answer = f"{data}, {heading}, but the difference does not survive its controls: {listed(failed)}."
        return out("fails_controls", answer, evidence, direction, controlled=True)
    if pending:
        answer = f"{data}, {heading}, but not all controls are settled: {listed(pending)}."
        return out("uncontrolled", answer, evidence, direction, controlled=True)
    claim = "as the paper claims" if direction > 0 else "the opposite of what the paper claims"
    return out("holds", f"{data}, {claim}.", evidence, direction, controlled=True)


def _seeds_needed(entry: Entry, smallest: float) -> str:
    n, source = entry.get("seeds_needed"), entry.get("seeds_needed_from")
    aim = f"a true difference of {smallest:g} points with 80% power"
    if n is None:
        return f"With {plural(entry['n_prompts'], 'prompt')} no number of seeds finds {aim}: more prompts are needed."
    if source == "answers":
        return f"To find {aim}, at least {n} seeds are needed; how much seeds differ, one seed does not show."
    if n <= entry["n_seeds"]:
        return f"That is enough to find {aim}."
    basis = ", if seeds differ as these tasks do" if source == "tasks" else ""
    return f"To find {aim}, about {n} seeds are needed{basis}."


def _scope(entry: Entry, missing: list[str]) -> str:
    """What was averaged, and what is missing."""
    text = f"Averaged over {plural(len(entry['tasks']), 'task')} ({', '.join(entry['tasks'])}), "
    text += f"{plural(entry['n_seeds'], 'training seed')} and {plural(entry['n_prompts'], 'prompt')}"
    text += f"; subsets of {entry['subset_size']} rows." if entry["subset_size"] else "."
    if entry["n_seeds"] == 1:
        text += " The intervals cover other prompts, not other training runs."
    if missing:
        text += f" Not compared: {listed(missing)}."
    return text


def _facts(
    statistics: dict[str, Any], main: Entry, tasks: list[Entry], smallest: float, direction: int | None
) -> list[Fact]:
    """Every difference that the verdict rests on; with a ``direction`` the controls are judged, those not run named."""
    size = main["subset_size"]
    overall = statistics["overall"]

    def fact(what: str, entry: Entry, control: str = "") -> Fact:
        low, high = entry["interval_points"]
        return Fact(what, entry["difference_points"], (low, high), entry["p_value"], control)

    def repeated(what: str, entries: list[Entry], absent: str = "not run") -> list[Fact]:
        if direction is None:
            return [fact(what, entry) for entry in entries[:1]]
        if not entries:
            return [Fact(what, control=OPEN, note=absent)]
        again = shown(entries[0]) and sign(entries[0]["difference_points"]) == direction
        one_seed = entries[0].get("n_seeds", 2) < 2
        return [fact(what, entries[0], OPEN if one_seed else PASSED if again else FAILED)]

    out = [fact("rise of harmfulness", main)]
    out += [fact(f"rise, {task['task']}", task) for task in tasks if len(tasks) > 1]
    before = _find(overall, QUESTION, "initial", subset_size=size)
    out += [fact("harmfulness before fine-tuning", entry) for entry in before]
    out += repeated("harmfulness after fine-tuning", _find(overall, QUESTION, "final", subset_size=size))
    for arms, name in MATCHED_ARMS.items():
        out += repeated(f"rise at {name}", _find(overall, arms, subset_size=size))
    matched = main.get("at_matched_utility", {"reason": "not measured"})
    if direction is not None and matched.get("reason") == MATCHED:
        out.append(Fact("rise at equal utility", control=PASSED, note=MATCHED))
    else:
        known = [matched] if "difference_points" in matched else []
        out += repeated("rise at equal utility", known, matched.get("reason", ""))
    benign = _find(statistics.get("over_refusal", []), QUESTION, "final", subset_size=size)
    refused = "harmless requests refused"
    out += [fact(refused, e, "" if direction is None else _over_refusal(e, direction, smallest)) for e in benign]
    if direction is not None and not benign:
        out.append(Fact(refused, control=OPEN, note="not measured"))
    judged = [row for row in statistics.get("judges", {}).get("high_minus_low", []) if row["subset_size"] == size]
    torn = [row["task"] for row in judged if row["depends_on_judge"]]
    if judged and (torn or direction is not None):
        note = f"the sign depends on the judge: {listed(torn)}" if torn else "no sign depends on the judge"
        out.append(Fact("other judges", control="" if direction is None else FAILED if torn else PASSED, note=note))
    return out


def _over_refusal(entry: Entry, direction: int, smallest: float) -> str:
    """Does the arm that lasts longer simply refuse more of everything?"""
    low, high = sorted(-direction * edge for edge in entry["interval_points"])  # of the durable arm minus the other
    return PASSED if high <= smallest else FAILED if low > 0 else OPEN


def defences_sentence(rows: list[dict[str, Any]]) -> str:
    """Which defences lower harmfulness, of how many, in the order of the study file; empty where none was tested.

    Early stopping is left out: it ends before the task is learnt.
    """
    tested = [row for row in rows if "final_p_value_holm" in row and "initial_difference" in row]
    if not tested:
        return ""
    if any(row["n_seeds"] < 2 for row in tested):
        return f"{plural(len(tested), 'defence')}, one seed: nothing is said about other trainings."
    helped = [r for r in tested if r["final_p_value_holm"] < SIGNIFICANT and r["final_difference"] < 0]
    numbers = [f"{row['final_difference']:+.1f} points, {interval(*row['final_interval'])}" for row in helped]
    names = [f"{row['defence'].replace('_', ' ')} ({said})" for row, said in zip(helped, numbers, strict=True)]
    which = f": {listed(names)}" if names else ""
    return (
        f"{len(helped)} of {plural(len(tested), 'defence')} lower harmfulness after fine-tuning "
        f"(p < 0.05 after Holm){which}."
    )


def worst_case_sentence(block: dict[str, Any]) -> str:
    """The worst case of the alignment that fares worst; empty where none could be chosen."""
    known = [row for row in block.get("worst", ()) if "percent" in row]
    if not known:
        return ""
    row = max(known, key=lambda one: one["percent"])
    (low, high), pair = row["interval_percent"], row["chosen"][0].replace("_", " ")
    one_seed = " One seed: the luck of its training is in the number." if row["n_seeds"] < 2 else ""
    return (
        f"In the worst case {row['percent']:.1f}% are answered harmfully (95% interval {low:.1f} to {high:.1f}): of "
        f"{plural(row['n_candidates'], 'pair')} of a fine-tuning and a way of asking that lost at most "
        f"{block['largest_utility_loss']:g} points of utility, most often {pair}.{one_seed}"
    )


def _study_facts(result: dict[str, Any]) -> list[str]:
    sentences = []
    base = result["base"]
    if base["status"] == "done":
        low, high = base["harmfulness_score_interval_percent"]
        sentences.append(
            f"The base model, before any alignment, is flagged on {base['harmfulness_score_percent']:.1f}% of "
            f"{plural(base['n'], 'completion')} (95% interval {low:.1f} to {high:.1f})."
        )
    counts: dict[str, int] = {}
    for row in (base, *result.get("cells", [])):
        if row["status"] != "done":
            counts[row["status"]] = counts.get(row["status"], 0) + 1
    if counts:
        words = listed([f"{n} {status}" for status, n in counts.items()])
        sentences.append(f"Results without numbers: {words}.")
    return sentences
