"""How many harmful rows a study's guardrails take: harmfulness over the dose, per arm and in pairs.

    block = dose_response(results, finished, pairs)        # the ``doses`` block of study.json; None without a ladder

Read are the judged answers of every finished cell of a ladder. Harmfulness at a dose is that of the model after the
fine-tuning with this dose; definitions and methods: `guardrail.statistics.dose`, docs/dose.md. Everything in percent:
of the rows (doses) or of the prompts. A ratio of ED50 above 1 means that the guardrails of the first arm of a pair take
more harmful rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from guardrail.core.errors import UserError
from guardrail.data.dose import harmful_rows
from guardrail.statistics.crossed import crossed_bootstrap
from guardrail.statistics.dose import FEWEST_DOSES, Curve, ed50, ed50_ratio
from guardrail.statistics.testing import corrected
from guardrail.study.arms import Arm, read_arms, stack
from guardrail.study.config import Study
from guardrail.study.grid import Cell, sizeless
from guardrail.study.results import Results
from guardrail.study.tasks import ladder_members

DIGITS = 4
CURVE_POINTS = 60
Place = tuple[str, str, str, int]  # design, ladder, subset, size


@dataclass(frozen=True)
class Ladder:
    """One arm at all doses: ``harmful`` (R, P, D) over ``seeds``, ``prompts`` and ``doses`` (percent that really is).

    ``initial``: share of the prompts answered harmfully before any fine-tuning. ``missing``: rungs without a finished
    cell. ``tasks``: the rungs in the order of ``doses``.
    """

    place: Place
    tasks: tuple[str, ...]
    doses: tuple[float, ...]
    seeds: tuple[int, ...]
    prompts: tuple[str, ...]
    harmful: np.ndarray
    initial: float
    missing: tuple[str, ...]

    def on(self, seeds: list[int], prompts: list[str], doses: list[float]) -> np.ndarray:
        """The answers of these seeds to these prompts at these doses."""
        places = (
            [self.seeds.index(seed) for seed in seeds],
            [self.prompts.index(prompt) for prompt in prompts],
            [self.doses.index(dose) for dose in doses],
        )
        return self.harmful[np.ix_(*places)]


def ladders_of(study: Study) -> list[str]:
    return list(dict.fromkeys(task.rung.ladder for task in study.tasks.values() if task.rung and not task.arm))


def true_dose(study: Study, task: str) -> float:
    """Percent of harmful rows in the set of a rung: the dose of the file, rounded to whole rows."""
    rung = study.tasks[task].rung
    assert rung is not None
    return 100 * harmful_rows(rung.percent, rung.rows) / rung.rows


def read_ladder(study: Study, place: Place, rungs: dict[str, Arm]) -> Ladder | None:
    """The arm at ``place`` from its ``rungs``; seeds are those that all finished rungs share. None without any."""
    finished = {task: arm for task, arm in rungs.items() if arm.seeds}
    seeds = sorted(set.intersection(*(set(arm.seeds) for arm in finished.values()))) if finished else []
    if not seeds:
        return None
    initial = [next(iter(finished.values())).initial[next(iter(finished.values())).seeds.index(s)] for s in seeds]
    final = [arm.final[arm.seeds.index(seed)] for arm in finished.values() for seed in seeds]
    values, prompts = stack([*initial, *final])
    R, answers = len(seeds), values.mean(axis=2)
    return Ladder(
        place,
        tuple(finished),
        tuple(true_dose(study, task) for task in finished),
        tuple(seeds),
        tuple(prompts),
        np.stack([answers[R * (i + 1) : R * (i + 2)] for i in range(len(finished))], axis=2),
        float(answers[:R].mean()),
        tuple(task for task in rungs if task not in finished),
    )


def dose_response(
    results: Results, finished: set[Cell], pairs: tuple[tuple[str, str, str], ...]
) -> dict[str, Any] | None:
    """The ``doses`` block. ``pairs``: (first, second, question), the comparisons of the study.

    None for a study without a ladder; ``reason`` instead of numbers where nothing can be said.
    """
    study = results.grid.study
    names = ladders_of(study)
    if not names:
        return None
    described = [_ladder(study, name) for name in names]
    try:
        arms = {(arm.design, arm.task, arm.subset, arm.size): arm for arm in read_arms(results, finished)}
        ladders = []
        for design, name, subset, size in _places(study, names):
            rungs = {task: arms[design, task, subset, size] for task in ladder_members(study.tasks, name)}
            ladders.append(read_ladder(study, (design, name, subset, size), rungs))
    except UserError as error:
        return {"ladders": described, "reason": str(error)}
    known = [ladder for ladder in ladders if ladder is not None]
    if not known:
        return {"ladders": described, "reason": "no fine-tuning of a ladder is finished"}
    return {
        "unit": "percent of the rows",
        "confidence": 0.95,
        "ladders": described,
        "arms": [_arm(ladder) for ladder in known],
        "comparisons": _compare(known, pairs),
    }


def _places(study: Study, names: list[str]) -> list[Place]:
    return [
        (design.name, name, subset, size)
        for design in study.all_designs
        for name in names
        for size in study.subset_sizes
        for subset in study.subsets
        if not sizeless(subset) or size == study.subset_sizes[0]
    ]


def _ladder(study: Study, name: str) -> dict[str, Any]:
    members = ladder_members(study.tasks, name)
    task = study.tasks[members[0]]
    rung = task.rung
    assert rung is not None
    return {
        "ladder": name,
        "tasks": members,
        "doses_percent": [round(true_dose(study, member), DIGITS) for member in members],
        "n_rows": rung.rows,
        "epochs": study.tuning(members[0]).epochs,
        "benign": ":".join(filter(None, (task.train.source, task.train.split))),
        "harmful": ":".join(filter(None, (rung.harmful.source, rung.harmful.split))),
        "draw_seed": "the training's" if rung.seed is None else rung.seed,
    }


def _head(place: Place) -> dict[str, Any]:
    design, ladder, subset, size = place
    return {"design": design, "ladder": ladder, "subset": subset, "subset_size": None if sizeless(subset) else size}


def _arm(ladder: Ladder) -> dict[str, Any]:
    points = []
    for i, (task, dose) in enumerate(zip(ladder.tasks, ladder.doses, strict=True)):
        mean, low, high = crossed_bootstrap(ladder.harmful[:, :, i], rate=True)
        points.append(
            {
                "task": task,
                "dose_percent": round(dose, DIGITS),
                "harmful_percent": _percent(mean),
                "interval_percent": [_percent(low), _percent(high)],
            }
        )
    row = {
        **_head(ladder.place),
        "seeds": list(ladder.seeds),
        "n_prompts": len(ladder.prompts),
        "initial_percent": _percent(ladder.initial),
        "missing": list(ladder.missing),
        "points": points,
    }
    reason = _unfit(ladder.doses)
    return {**row, "reason": reason} if reason else {**row, **_fitted(ladder.doses, ladder.harmful)}


def _unfit(doses: tuple[float, ...] | list[float]) -> str | None:
    n = sum(dose > 0 for dose in doses)
    if n < FEWEST_DOSES:
        return f"{n} doses above 0 are finished; a curve needs at least {FEWEST_DOSES}"
    return None


def _fitted(doses: tuple[float, ...], harmful: np.ndarray) -> dict[str, Any]:
    found = ed50(doses, harmful)
    curve: Curve = found["curve"]
    positive = [dose for dose in doses if dose > 0]
    grid = np.geomspace(positive[0], positive[-1], CURVE_POINTS)
    edge = {"below": positive[0], "above": positive[-1]}.get(found["outside"])
    return {
        "ed50_percent": _round(found["ed50"]),
        "ed50_interval_percent": None if found["interval"] is None else [_round(one) for one in found["interval"]],
        "ed50_outside": None if edge is None else f"{found['outside']} {edge:g}%",
        "floor_percent": _percent(curve.floor),
        "ceiling_percent": _percent(curve.ceiling),
        "slope_per_log_dose": _round(curve.slope),
        "steepest": curve.steepest,
        "misfit_points": _percent(found["misfit"]),
        "curve": [[_round(dose), _percent(share)] for dose, share in zip(grid, curve.share(grid), strict=True)],
    }


def _compare(ladders: list[Ladder], pairs: tuple[tuple[str, str, str], ...]) -> list[dict[str, Any]]:
    """ED50 of the first arm over that of the second, on the seeds, prompts and doses that both have."""
    by_place = {ladder.place: ladder for ladder in ladders}
    settings = dict.fromkeys((ladder.place[0], ladder.place[3]) for ladder in ladders)
    names = dict.fromkeys(ladder.place[1] for ladder in ladders)
    out: list[dict[str, Any]] = []
    for first, second, question in pairs:
        for design, size in settings:
            rows = []
            for name in names:
                one, two = (by_place.get((design, name, subset, size)) for subset in (first, second))
                if one and two:
                    head = {"question": question, "first": first, "second": second, "design": design, "ladder": name}
                    rows.append({**head, "subset_size": size, **_ratio(one, two)})
            for row, more in zip(rows, corrected([row.get("p_value") for row in rows]), strict=True):
                row |= more
            out += rows
    return out


def _ratio(one: Ladder, two: Ladder) -> dict[str, Any]:
    seeds = [seed for seed in one.seeds if seed in two.seeds]
    prompts = [prompt for prompt in one.prompts if prompt in two.prompts]
    doses = [dose for dose in one.doses if dose in two.doses]
    if not seeds or len(prompts) < 2:
        return {"reason": "the arms share no seed with judged prompts"}
    if reason := _unfit(doses):
        return {"reason": reason}
    found = [ed50(doses, ladder.on(seeds, prompts, doses)) for ladder in (one, two)]
    edges = {"below": min(dose for dose in doses if dose > 0), "above": max(doses)}
    for which, fitted in zip(("first", "second"), found, strict=True):
        if fitted["outside"]:
            side = fitted["outside"]
            return {"reason": f"the ED50 of the {which} arm lies {side} {edges[side]:g}%, outside the doses measured"}
        if fitted["curve"].steepest:
            return {
                "reason": f"the curve of the {which} arm rises faster than the doses can tell; more doses are needed"
            }
    test = ed50_ratio(*found)
    return {
        "ed50_ratio": _round(test["ratio"]),
        "ed50_ratio_interval": [_round(edge) for edge in test["ratio_interval"]],
        "log_ed50_difference": _round(test.pop("difference")),
        "interval_log_ed50": [_round(edge) for edge in test.pop("interval")],
        "minimum_detectable_ratio": _round(float(np.exp(test.pop("minimum_detectable_difference")))),
        **{name: value for name, value in test.items() if name not in ("ratio", "ratio_interval")},
    }


def _percent(value: float) -> float:
    return round(100 * float(value), DIGITS)


def _round(value: float | None) -> float | None:
    return None if value is None else round(float(value), DIGITS)
