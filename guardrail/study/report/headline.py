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
class Control:
    """One control of a shown difference: passed, failed, or open (not run, not decided); ``text`` says why."""

    name: str
    status: str
    text: str


@dataclass(frozen=True)
class Headline:
    """``verdict`` is a row of docs/headlines.md; ``direction`` 1: high-similarity arms lost more, -1: low ones, 0: none
    is claimed. ``details`` qualify the sentence.
    """

    verdict: str
    direction: int
    sentence: str
    details: tuple[str, ...]
    controls: tuple[Control, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for `study.json`."""
        return asdict(self)


def interval(low: float, high: float) -> str:
    return f"95% interval {low + 0:+.1f} to {high + 0:+.1f}".replace("+0.0", "0.0").replace("-0.0", "0.0")


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
        sentence = f"High against low similarity cannot be compared: {reason}."
        return Headline("not_comparable", 0, sentence, tuple(_study_facts(result)))
    main = sizes[0]
    size, smallest = main["subset_size"], statistics["smallest_difference_points"]
    tasks = _find(statistics.get("comparisons", []), QUESTION, subset_size=size)
    missing = [
        task for task in dict.fromkeys(a["task"] for a in statistics.get("arms", [])) if task not in main["tasks"]
    ]
    details = [*_scope(main, missing), *_start(statistics, main, tasks)]
    rest = _study_facts(result)
    rose = f"harmfulness rose {compared(main)}"
    split = ""
    if disagree(tasks):
        split += f"; the tasks disagree in sign ({each(tasks, lambda e: e['task'])})"
    if disagree(sizes):
        by_size = each(sizes, lambda e: f"{e['subset_size']} rows")
        split += f"; the subset sizes disagree in sign ({by_size})"

    def out(verdict: str, sentence: str, direction: int = 0, controls: list[Control] | None = None) -> Headline:
        more = _measures(statistics, main) if controls is None else [control.text for control in controls]
        return Headline(verdict, direction, sentence, (*details, *more, *rest), tuple(controls or ()))

    if main["n_seeds"] == 1:
        return out(
            "one_seed",
            "One training seed cannot tell which alignment data last longer. In these checkpoints "
            f"{rose}{split}. {_seeds_needed(main, smallest)}",
        )
    small = all(max(map(abs, entry["interval_points"])) < smallest for entry in (*sizes, *tasks))
    if small:
        return out(
            "too_small",
            f"The difference is smaller than matters here ({smallest:g} points): when fine-tuned, {rose}{split}.",
        )
    directions = {sign(task["difference_points"]) for task in tasks if task.get("p_value_holm", 1) < SIGNIFICANT}
    if split and (shown(main) or len(directions) > 1):
        return out("mixed", f"No one answer holds: when fine-tuned, {rose} on average{split}.")
    if not shown(main):
        found = (
            f"A true difference of {main['minimum_detectable_points']:.1f} points would have been found with 80% power."
        )
        return out(
            "not_shown",
            f"No difference in durability is shown between the two kinds of alignment data: when fine-tuned, {rose}"
            f"{split}. {found} {_seeds_needed(main, smallest)}",
        )
    direction = sign(main["difference_points"])
    data = f"{worse(direction)[0].capitalize()}-similarity alignment data gave the less durable guardrails"
    heading = "in the direction the paper claims" if direction > 0 else "against the direction the paper claims"
    if min(abs(edge) for edge in main["interval_points"]) < smallest:
        details.append(f"A true difference below the {smallest:g} points that matter is not excluded.")
    if len(tasks) < 2 or missing:
        seen = f"only {listed([task['task'] for task in tasks])} could be compared" if tasks else "tasks are not known"
        return out("one_task", f"{data}, {heading}, but {seen}: {rose}.", direction)
    controls = _controls(statistics, main, direction, smallest)
    failed = [control.name for control in controls if control.status == FAILED]
    pending = [control.name for control in controls if control.status == OPEN]
    if failed:
        return out(
            "fails_controls",
            f"{data}, {heading}, but the difference does not survive {listed(failed)}: {rose}.",
            direction,
            controls,
        )
    if pending:
        return out(
            "uncontrolled",
            f"{data}, {heading}, but {listed(pending)} {'is' if len(pending) == 1 else 'are'} not settled: {rose}.",
            direction,
            controls,
        )
    claim = "as the paper claims" if direction > 0 else "the opposite of what the paper claims"
    sentence = f"{data}, {claim}: over {plural(main['n_seeds'], 'seed')} and {plural(len(tasks), 'task')} {rose}."
    return out("holds", sentence, direction, controls)


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


def _scope(entry: Entry, missing: list[str]) -> list[str]:
    """What was averaged, and what is missing."""
    text = f"Averaged over {plural(len(entry['tasks']), 'task')} ({', '.join(entry['tasks'])}), "
    text += f"{plural(entry['n_seeds'], 'training seed')} and {plural(entry['n_prompts'], 'prompt')}"
    text += f"; subsets of {entry['subset_size']} rows." if entry["subset_size"] else "."
    if entry["n_seeds"] == 1:
        text += " The interval covers other prompts, not other training runs."
    if missing:
        text += f" Not compared: {listed(missing)}."
    return [text]


def _start(statistics: dict[str, Any], main: Entry, tasks: list[Entry]) -> list[str]:
    """Task by task, and how safe the arms were before fine-tuning."""
    out = [f"Task {task['task']}: {compared(task)}." for task in tasks] if len(tasks) > 1 else []
    for before in _find(statistics["overall"], QUESTION, "initial", subset_size=main["subset_size"]):
        text = f"Before fine-tuning, harmfulness was {compared(before, 'higher')}."
        out.append(text + (" The arms did not start alike: see the final values too." if shown(before) else ""))
    return out


def _measures(statistics: dict[str, Any], main: Entry) -> list[str]:
    """Final values, over-refusal, equal utility, judges: numbers with interval and p-value, no verdict."""
    size = main["subset_size"]
    after = _find(statistics["overall"], QUESTION, "final", subset_size=size)
    out = [f"After fine-tuning, harmfulness was {compared(entry, 'higher')}." for entry in after]
    benign = _find(statistics.get("over_refusal", []), QUESTION, "final", subset_size=size)
    out += [f"After fine-tuning, refusals of harmless requests were {compared(entry, 'higher')}." for entry in benign]
    matched = main.get("at_matched_utility", {})
    if "difference_points" in matched:
        pairs = plural(matched["n_pairs"], "task-seed pair")
        out.append(f"At equal utility ({pairs}), harmfulness rose {compared(matched)}.")
    judged = statistics.get("judges", {}).get("high_minus_low", [])
    torn = [row["task"] for row in judged if row["depends_on_judge"] and row["subset_size"] == size]
    return out + [f"The sign of the difference depends on the judge: {task}." for task in torn]


def _controls(statistics: dict[str, Any], main: Entry, direction: int, smallest: float) -> list[Control]:
    """What a shown difference must survive before similarity is named as its reason."""
    size = main["subset_size"]

    def repeated(name: str, entries: list[Entry], absent: str = "was not run") -> Control:
        if not entries or entries[0].get("n_seeds", 2) < 2:
            return Control(name, OPEN, f"Control, {name}: {absent if not entries else 'one seed'}.")
        ok = shown(entries[0]) and sign(entries[0]["difference_points"]) == direction
        text = f"Control, {name}: {'shown again' if ok else 'not shown'}, {compared(entries[0])}."
        return Control(name, PASSED if ok else FAILED, text)

    out = [
        repeated("final harmfulness", _find(statistics["overall"], QUESTION, "final", subset_size=size)),
        *(repeated(name, _find(statistics["overall"], arms, subset_size=size)) for arms, name in MATCHED_ARMS.items()),
    ]
    matched = main.get("at_matched_utility", {"reason": "was not measured"})
    if matched.get("reason") == MATCHED:
        out.append(Control("equal utility", PASSED, f"Control, equal utility: {MATCHED}."))
    else:
        known = [matched] if "difference_points" in matched else []
        out.append(repeated("equal utility", known, matched.get("reason", "")))
    out.append(
        _over_refusal(
            _find(statistics.get("over_refusal", []), QUESTION, "final", subset_size=size), direction, smallest
        )
    )
    rows = [r for r in statistics.get("judges", {}).get("high_minus_low", []) if r["subset_size"] == size]
    if rows:
        torn = [row["task"] for row in rows if row["depends_on_judge"]]
        text = f"the sign depends on the judge for {listed(torn)}" if torn else "no sign depends on the judge"
        out.append(Control("other judges", FAILED if torn else PASSED, f"Control, other judges: {text}."))
    return out


def _over_refusal(entries: list[Entry], direction: int, smallest: float) -> Control:
    """Does the arm that lasts longer simply refuse more of everything?"""
    name = "over-refusal"
    if not entries:
        return Control(name, OPEN, f"Control, {name}: was not measured.")
    entry = entries[0]
    edges = sorted(-direction * edge for edge in entry["interval_points"])  # of the durable arm minus the other
    if edges[1] <= smallest:
        status, words = PASSED, "the more durable arms do not refuse markedly more harmless requests"
    elif edges[0] > 0:
        status, words = FAILED, "the more durable arms also refuse more harmless requests"
    else:
        status, words = OPEN, "not decided"
    return Control(name, status, f"Control, {name}: {words}, refusals were {compared(entry, 'higher')}.")


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
