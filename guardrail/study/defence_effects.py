"""What each defence of a study changes, and what it costs: the ``defences`` block of `study.json`.

    block = defence_effects(results, result, done)        # None for a study without defences

Every row is an arm with a defence minus the same arm without (same task, subset, design, seeds and prompts), averaged
over arms: harmfulness after fine-tuning and before, mean life, refusals of harmless requests, utility; with intervals
over seeds and prompts. Negative harmfulness and positive life are good. Beside every effect stands what it cost: time
(with that of scoring rows for a filter) and memory of the training, rows and steps. p-values stand as they are and
after Holm over the defences of a design.

``choices`` compares defences with one another that differ only in which safety rows they use: the same number of them,
similar to the task, dissimilar, or random.

Early stopping is no training of its own: the probes of the arm without defence say where the limit was passed on one
half of the prompts, and what the other half answered at the probe before (so that choosing does not flatter).
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from guardrail.core.errors import UserError
from guardrail.statistics.crossed import crossed_bootstrap, paired_difference
from guardrail.statistics.survival import life_difference
from guardrail.statistics.testing import holm
from guardrail.study.arms import Answers, Arm, pair, read_arms, stack
from guardrail.study.config import Design
from guardrail.study.defence_settings import EARLY_STOPPING, NONE, DefenceSetting
from guardrail.study.equivalence import averaged
from guardrail.study.grid import Cell, sizeless
from guardrail.study.results import Results
from guardrail.study.score_jobs import STAGE
from guardrail.study.tasks import compared
from guardrail.study.training_jobs import tuned_name
from guardrail.study.trajectories import Trajectory, read_trajectories
from guardrail.training.defences import DEFENCES

DIGITS = 4
JUDGES = ("harmful", "lower_threshold", "keyword")
Parts = list[tuple[float, dict[str, Any]]]


def defence_effects(results: Results, result: dict[str, Any], done: set[Cell]) -> dict[str, Any] | None:
    """``rows``: one per design and defence, arms averaged. ``levels``: where each ends, and the Pareto front.
    ``choices``: first minus second of two defences that differ only in their safety rows."""
    study = results.grid.study
    if not study.defences:
        return None
    inside = compared(study.tasks)
    arms = [arm for arm in read_arms(results, done) if arm.task in inside]
    try:
        probed = read_trajectories(results, done) if study.fine_tuning.probes else []
    except UserError:
        probed = []
    probed = [arm for arm in probed if arm.place[1] in inside]
    rows, levels, choices = [], [], []
    for design in study.plain_designs:
        own = [arm for arm in arms if arm.design == design.name and arm.seeds]
        levels.append(_level(design.name, NONE, own, result))
        for setting in study.defence_settings.values():
            head = {"design": design.name, "defence": setting.name, "method": setting.method}
            if setting.method == EARLY_STOPPING:
                rows.append({**head, **stopped_early([p for p in probed if p.place[0] == design.name], setting)})
                continue
            name = Design(design.alignment, design.method, setting.name).name
            other = [arm for arm in arms if arm.design == name and arm.seeds]
            rows.append({**head, **_effects(results, result, own, other, probed)})
            levels.append(_level(design.name, setting.name, other, result))
        for first, second in choices_of_rows(list(study.defence_settings.values())):
            names = [Design(design.alignment, design.method, one.name).name for one in (first, second)]
            both = [[arm for arm in arms if arm.design == name and arm.seeds] for name in names]
            head = {"design": design.name, "method": first.method, "first": first.name, "second": second.name}
            choices.append({**head, **_effects(results, result, both[1], both[0], probed)})
    for design in study.plain_designs:
        mark_front([level for level in levels if level["design"] == design.name and "final_percent" in level])
        for block in (rows, choices):
            correct([row for row in block if row["design"] == design.name])
    return {"rows": rows, "levels": levels, "choices": choices}


def choices_of_rows(settings: list[DefenceSetting]) -> list[tuple[DefenceSetting, DefenceSetting]]:
    """Pairs of settings, in their order, that differ in nothing but the safety rows that they use."""

    def rest(one: DefenceSetting) -> tuple[Any, ...]:
        options = tuple(sorted(option for option in one.options if not option.startswith("choose=")))
        return one.method, options, one.unequal_budget

    reading = [one for one in settings if one.rows is not None or one.source is not None]
    return [pair for pair in itertools.combinations(reading, 2) if rest(pair[0]) == rest(pair[1])]


def correct(rows: list[dict[str, Any]]) -> None:
    """Set ``final_p_value_holm`` and ``life_p_value_holm``: over the rows of one question (Holm 1979)."""
    for name in ("final", "life"):
        tested = [row for row in rows if f"{name}_p_value" in row]
        for row, corrected in zip(tested, holm([row[f"{name}_p_value"] for row in tested]), strict=True):
            row[f"{name}_p_value_holm"] = corrected


def _matched(own: list[Arm], other: list[Arm]) -> list[tuple[Arm, Arm]]:
    by_place = {(arm.task, arm.subset, arm.size): arm for arm in other}
    places = [(arm, by_place.get((arm.task, arm.subset, arm.size))) for arm in own]
    return [(defended, arm) for arm, defended in places if defended is not None]


def _effects(
    results: Results, result: dict[str, Any], own: list[Arm], other: list[Arm], probed: list[Trajectory]
) -> dict[str, Any]:
    matched = _matched(own, other)
    if not matched:
        return {"reason": "no arm is finished with and without it"}
    parts = _parts(matched)
    out: dict[str, Any] = {"n_arms": len(parts)}
    for outcome, name in (("final", "final"), ("initial", "initial")):
        out |= _test(averaged(parts, outcome), name)
    out["n_seeds"], out["n_prompts"] = out.pop("final_shape", (0, 0))
    out.pop("initial_shape", None)
    signs = {judge: _sign(_parts(matched, judge)) for judge in _judges(matched)}
    out["sign_by_judge"] = signs
    out["depends_on_judge"] = {1, -1} <= set(signs.values())
    benign = _test(averaged(_parts(matched, "benign"), "final"), "benign_refused")
    benign.pop("benign_refused_shape", None)
    life = {} if acts_at_save(results, matched) else _life(matched, probed)
    return out | benign | life | _utility(result, matched) | _costs(results, matched)


def acts_at_save(results: Results, matched: list[tuple[Arm, Arm]]) -> bool:
    """Does the defence change only the weights that are saved? Then the probes are of a model without it."""
    settings = results.grid.study.defence_settings
    setting = settings[matched[0][0].cells[0].design.defence]
    return setting.in_trainer and bool(DEFENCES.facts(setting.method).get("at_save"))


def _parts(matched: list[tuple[Arm, Arm]], judge: str = "harmful") -> Parts:
    """Paired differences, defended minus not, with equal weights; without the arms that this judge cannot compare."""
    found = []
    for defended, arm in matched:
        try:
            found.append(pair(defended, arm, judge))
        except UserError:
            continue
    kept = [difference for difference in found if difference is not None]
    return [(1 / len(kept), difference) for difference in kept]


def _judges(matched: list[tuple[Arm, Arm]]) -> list[str]:
    answers: list[Answers] = [one for defended, arm in matched for one in (*defended.final, *arm.final)]
    return [*JUDGES, *sorted({name for one in answers for name in one.further})]


def _sign(parts: Parts) -> int:
    values = averaged(parts, "final") if parts else None
    return 0 if values is None else int(np.sign(round(float(values.mean()), 6)))


def _test(values: np.ndarray | None, name: str, unit: float = 100.0) -> dict[str, Any]:
    """Difference, interval and p-value under ``name``; nothing where there are no shared seeds and prompts."""
    if values is None:
        return {}
    test = paired_difference(values)
    return {
        f"{name}_difference": round(unit * test["difference"], DIGITS),
        f"{name}_interval": [round(unit * edge, DIGITS) for edge in test["interval"]],
        f"{name}_p_value": test["p_value"],
        f"{name}_shape": tuple(values.shape),
    }


def _life(matched: list[tuple[Arm, Arm]], probed: list[Trajectory]) -> dict[str, Any]:
    """Mean life gained, in percent of the training."""
    by_place = {arm.place: arm for arm in probed}
    parts: Parts = []
    for defended, arm in matched:
        pairs = [by_place.get((one.design, one.task, one.subset, one.size)) for one in (defended, arm)]
        if pairs[0] is None or pairs[1] is None:
            continue
        first, second = pairs[0], pairs[1]
        seeds = [seed for seed in first.seeds if seed in second.seeds]
        if not seeds or first.steps != second.steps:
            continue
        cells = life_difference(first.life_on(seeds), second.life_on(seeds)) / second.length
        parts.append((1.0, {"seeds": seeds, "prompts": list(first.prompts), "life": cells}))
    if not parts:
        return {}
    found = _test(averaged([(1 / len(parts), d) for _, d in parts], "life"), "life")
    found.pop("life_shape", None)
    return found


def _utility(result: dict[str, Any], matched: list[tuple[Arm, Arm]]) -> dict[str, Any]:
    """Utility after fine-tuning, defended minus not: mean over arms per seed, Student's interval over seeds."""
    from scipy import stats

    by_seed: dict[int, list[float]] = {}
    for defended, arm in matched:
        first, second = _utilities(result, defended), _utilities(result, arm)
        for seed in set(first) & set(second):
            by_seed.setdefault(seed, []).append(first[seed] - second[seed])
    values = np.array([np.mean(found) for found in by_seed.values() if len(found) == len(matched)])
    if not len(values):
        return {}
    out: dict[str, Any] = {"utility_difference": round(float(values.mean()), DIGITS)}
    if len(values) > 1 and np.ptp(values) > 0:
        half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
        out["utility_interval"] = [round(float(values.mean()) + sign * half, DIGITS) for sign in (-1, 1)]
    return out


def _utilities(result: dict[str, Any], arm: Arm) -> dict[int, float]:
    size = None if sizeless(arm.subset) else arm.size
    place = (arm.design, arm.task, arm.subset, size)
    rows = [r for r in result["cells"] if (r["design"], r["task"], r["subset"], r["subset_size"]) == place]
    return {
        r["seed"]: r["utility"]["final"] for r in rows if r["status"] == "done" and r["utility"]["final"] is not None
    }


def _costs(results: Results, matched: list[tuple[Arm, Arm]]) -> dict[str, Any]:
    """Time, memory, rows and steps of the trainings, as multiples of those without the defence."""
    titles = {"training_sec": "time", "peak_memory_bytes": "memory", "n": "rows", "n_steps": "steps"}
    records = [[_records(results, cell) for both in matched for cell in both[place].cells] for place in (0, 1)]
    out: dict[str, Any] = {}
    for name, title in titles.items():
        first, second = ([float(r[name]) for cell in cells for r in cell if r.get(name)] for cells in records)
        if first and second:
            out[f"{title}_ratio"] = round(float(np.mean(first) / np.mean(second)), DIGITS)
    return out


def _records(results: Results, cell: Cell) -> list[dict[str, Any]]:
    """The records of a cell's two trainings, alignment and fine-tuning; scoring its rows is time of the second."""
    grid = results.grid
    files = [folder / "run.json" for folder in (grid.aligned_folder(cell.alignment), grid.cell_folder(cell))]
    found = [results.read(file).get("run", {}) for file in files if results.done(file)]
    scoring = scoring_sec(results, cell)
    if scoring and found and found[-1].get("training_sec"):
        found[-1] = {**found[-1], "training_sec": found[-1]["training_sec"] + scoring}
    return found


def scoring_sec(results: Results, cell: Cell) -> float:
    """Seconds in which the rows of a cell were scored for its defence; 0 where they were not."""
    needed = [results.jobs[need] for need in results.jobs[tuned_name(cell)].needs]
    files = [results.grid.folder / job.products[0].files[1] for job in needed if job.stage == STAGE]
    return sum(float(results.read(file).get("run", {}).get("scoring_sec", 0.0)) for file in files if results.done(file))


def _level(design: str, defence: str, arms: list[Arm], result: dict[str, Any]) -> dict[str, Any]:
    """Where an arm with this defence ends: harmfulness with its interval and utility, arms averaged."""
    head: dict[str, Any] = {"design": design, "defence": defence, "on_front": False}
    seeds = sorted(set.intersection(*(set(arm.seeds) for arm in arms))) if arms else []
    if not seeds:
        return {**head, "reason": "no arm is finished"}
    values, _ = stack([arm.final[arm.seeds.index(seed)] for arm in arms for seed in seeds])
    cells = values.mean(axis=2).reshape(len(arms), len(seeds), -1).mean(axis=0)
    mean, low, high = crossed_bootstrap(cells, rate=True)
    known = [value for arm in arms for value in _utilities(result, arm).values()]
    return {
        **head,
        "final_percent": round(100 * mean, DIGITS),
        "final_interval_percent": [round(100 * low, DIGITS), round(100 * high, DIGITS)],
        "utility": round(float(np.mean(known)), DIGITS) if known else None,
        "n_seeds": len(seeds),
    }


def mark_front(levels: list[dict[str, Any]]) -> None:
    """Set ``on_front`` where no other level is less harmful and as useful, or more useful and as harmless."""
    known = [level for level in levels if level["utility"] is not None]
    for level in known:
        level["on_front"] = not any(dominates(other, level) for other in known)


def dominates(first: dict[str, Any], second: dict[str, Any]) -> bool:
    better = (second["final_percent"] - first["final_percent"], first["utility"] - second["utility"])
    return min(better) >= 0 and max(better) > 0


def stopped_early(probed: list[Trajectory], setting: DefenceSetting) -> dict[str, Any]:
    """Harmfulness of the other half of the prompts at the last probe before the limit was passed, minus at the end."""
    if not probed:
        return {"reason": "early stopping looks at probes; set fine_tuning.probes"}
    parts: Parts = []
    stops = []
    for arm in probed:
        flags = arm.harmful.mean(axis=2)  # (R, P, J + 1)
        chosen, other = flags[:, 0::2], flags[:, 1::2]
        stop = [last_probe_within(row.mean(axis=0), setting.largest_harmful_percent / 100) for row in chosen]
        gain = np.array([row[:, at] - row[:, -1] for row, at in zip(other, stop, strict=True)])
        parts.append((1.0, {"seeds": list(arm.seeds), "prompts": list(arm.prompts[1::2]), "final": gain}))
        stops += [arm.steps[at] / arm.length for at in stop]
    found = _test(averaged([(1 / len(parts), d) for _, d in parts], "final"), "final")
    found["n_seeds"], found["n_prompts"] = found.pop("final_shape", (0, 0))
    return {"n_arms": len(parts), **found, "steps_ratio": round(float(np.mean(stops)), DIGITS)}


def last_probe_within(shares: np.ndarray, limit: float) -> int:
    """The probe before the first one above ``limit``; the last where none is; the first where that is above already."""
    above = np.flatnonzero(shares > limit)
    return len(shares) - 1 if not len(above) else max(int(above[0]) - 1, 0)
