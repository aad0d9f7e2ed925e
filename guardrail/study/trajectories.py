"""How long the guardrails of a study lasted: survival of its prompts along the fine-tunings, per arm and in pairs.

    block = survival(results, finished, properties)        # the ``survival`` block of study.json; None without probes

Read are the judged answers at the probes of every finished cell (`guardrail.evaluation.trajectory`). A prompt falls
when it is first answered harmfully; definitions and methods: `guardrail.statistics.survival`, docs/survival.md. Times
are optimizer steps; where tasks are averaged, whose trainings may differ in length, percent of the training. A positive
difference means that the guardrails of the first arm of a pair lasted longer.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from guardrail.core.cli import log
from guardrail.core.errors import UserError
from guardrail.core.files import read_json
from guardrail.statistics.crossed import components, paired_difference, seeds_needed
from guardrail.statistics.survival import (
    Group,
    Lives,
    arm_survival,
    life_difference,
    lives_of,
    log_rank,
    log_rank_cells,
    proportional_hazards,
)
from guardrail.statistics.testing import corrected
from guardrail.study.grid import PROBE_REFUSALS_FILE, PROBE_SAFETY_FILE, Cell, sizeless
from guardrail.study.results import Results
from guardrail.study.tasks import compared

COVARIATES = ("similarity", "diversity", "response_chars", "list_share_percent")
DIGITS = 4
Place = tuple[str, str, str, int]  # design, task, subset, size


@dataclass(frozen=True)
class Trajectory:
    """One arm: judged answers at the probes. ``harmful`` (R, P, 1, J + 1) over ``seeds``, ``prompts`` and ``steps``."""

    place: Place
    seeds: tuple[int, ...]
    prompts: tuple[str, ...]
    steps: tuple[int, ...]
    harmful: np.ndarray
    refused: np.ndarray | None

    @property
    def lives(self) -> Lives:
        return lives_of(self.steps, self.harmful)

    def life_on(self, seeds: list[int]) -> Lives:
        """The lives of these ``seeds``, in this order."""
        return self.lives.take([self.seeds.index(seed) for seed in seeds], range(len(self.prompts)))

    @property
    def length(self) -> int:
        """Optimizer steps of the whole training."""
        return self.steps[-1]


def read_flags(results: Results, cell: Cell, file: str, name: str) -> dict[str, dict[int, bool]] | None:
    """Prompt -> step -> flag ``name``; prompts with an undecided answer are left out. None where it is not done."""
    path = results.grid.cell_folder(cell) / file
    if not results.done(path):
        return None
    found: dict[str, dict[int, bool | None]] = {}
    try:
        for row in read_json(path)["judgements"]:
            found.setdefault(row["prompt_id"], {})[row["step"]] = row[name]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: unexpected content, {type(error).__name__} {error}") from error
    return {
        prompt: {step: bool(flag) for step, flag in steps.items()}
        for prompt, steps in found.items()
        if None not in steps.values()
    }


def read_trajectories(results: Results, finished: set[Cell]) -> list[Trajectory]:
    """Every arm with a finished, probed cell. All arms of a task are on the prompts that all of them have.

    Left out, and said, is an arm without any guardrail to lose: it has no life.
    """
    cells = [cell for cell in results.grid.cells if cell in finished]
    harmful = {cell: read_flags(results, cell, PROBE_SAFETY_FILE, "harmful") for cell in cells}
    out = []
    for task in dict.fromkeys(cell.task for cell in cells):
        known = {cell: flags for cell, flags in harmful.items() if cell.task == task and flags}
        if not known:
            continue
        known = _as_long(known)
        prompts = tuple(sorted(set.intersection(*(set(flags) for flags in known.values()))))
        probed = {tuple(sorted(next(iter(flags.values())))) for flags in known.values()}
        if len(prompts) < 2 or len(probed) != 1:
            raise UserError(
                f"the trainings of {task} share {len(prompts)} prompts and were probed at {len(probed)} sets of steps; "
                "expected at least 2 prompts and one set"
            )
        (steps,) = probed
        places: dict[Place, list[Cell]] = {}
        for cell in known:
            places.setdefault((cell.design.name, task, cell.subset, cell.size), []).append(cell)
        for place, inside in places.items():
            flags = [[[[known[c][prompt][step] for step in steps]] for prompt in prompts] for c in inside]
            seeds = tuple(cell.seed for cell in inside)
            arm = Trajectory(place, seeds, prompts, steps, np.array(flags), _refused(results, inside, steps))
            if arm.lives.at_risk.any():
                out.append(arm)
            else:
                name = ", ".join(map(str, place))
                log(f"no life of {name}: every prompt was answered harmfully before the first step")
    return out


def _as_long(known: dict[Cell, Any]) -> dict[Cell, Any]:
    """Without the cells whose defence changed the number of steps: their lives are no lives on the same scale."""
    plain = {max(next(iter(flags.values()))) for cell, flags in known.items() if cell.design.defence == "none"}
    if not plain:
        return known
    return {
        cell: flags
        for cell, flags in known.items()
        if cell.design.defence == "none" or max(next(iter(flags.values()))) in plain
    }


def _refused(results: Results, cells: list[Cell], steps: tuple[int, ...]) -> np.ndarray | None:
    """(J + 1,) share of the look-alikes that were refused at each probe, over all ``cells``; None without them."""
    shares = []
    for cell in cells:
        flags = read_flags(results, cell, PROBE_REFUSALS_FILE, "refusal")
        if not flags:
            return None
        shares.append([np.mean([by_step[step] for by_step in flags.values()]) for step in steps])
    return np.asarray(np.mean(shares, axis=0))


def survival(
    results: Results,
    finished: set[Cell],
    properties: list[dict[str, Any]],
    pairs: tuple[tuple[str, str, str], ...],
    arms: list[Trajectory] | None = None,
) -> dict[str, Any] | None:
    """The ``survival`` block. ``pairs``: (first, second, question), the comparisons of the study.

    ``arms``: what `read_trajectories` gave, where it was asked already. None for a study without probes; ``reason``
    instead of numbers where nothing can be said.
    """
    if not results.grid.study.fine_tuning.probes:
        return None
    try:
        arms = read_trajectories(results, finished) if arms is None else arms
    except UserError as error:
        return {"reason": str(error)}
    if not arms:
        return {"reason": "no probed fine-tuning is finished"}
    study = results.grid.study
    inside = compared(study.tasks)
    whole = [arm for arm in arms if arm.place[1] in inside]
    comparisons, overall = _compare(whole, pairs, study.smallest_difference_points)
    return {
        "unit": "optimizer steps",
        "confidence": 0.95,
        "arms": [_arm(arm) for arm in arms],
        "comparisons": comparisons,
        "overall": overall,
        "hazards": _hazards(arms, properties),
    }


def _head(place: Place) -> dict[str, Any]:
    design, task, subset, size = place
    return {"design": design, "task": task, "subset": subset, "subset_size": None if sizeless(subset) else size}


def _arm(arm: Trajectory) -> dict[str, Any]:
    found = arm_survival(arm.lives)
    shares = arm.harmful.mean(axis=(0, 1, 2))
    trajectory = [
        {"step": step, "harmful_percent": _round(100 * share)} for step, share in zip(arm.steps, shares, strict=True)
    ]
    if arm.refused is not None:
        for point, share in zip(trajectory, arm.refused, strict=True):
            point["benign_refused_percent"] = _round(100 * float(share))
    curve = [
        {
            "step": int(point["time"]),
            "standing_percent": _round(100 * point["standing"]),
            "interval_percent": [_round(100 * point["low"]), _round(100 * point["high"])],
        }
        for point in found["curve"]
    ]
    flapping = found["flapping_fraction"]
    return {
        **_head(arm.place),
        "seeds": list(arm.seeds),
        "n_prompts": len(arm.prompts),
        "training_steps": arm.length,
        "life_steps": _round(found["restricted_mean_life"]),
        "life_interval_steps": _rounded(found["restricted_mean_life_interval"]),
        "life_bounds_steps": _rounded(found["restricted_mean_life_bounds"]),
        "half_life_steps": _round(found["half_life"]),
        "half_life_interval_steps": _rounded(found["interval"]),
        "n_units": found["n_units"],
        "n_harmful_before": found["n_harmful_before"],
        "n_fallen": found["n_fallen"],
        "flapping_percent": None if flapping is None else _round(100 * flapping),
        "curve": curve,
        "trajectory": trajectory,
    }


def percent_of_training(one: Trajectory, two: Trajectory) -> tuple[list[int], list[str], np.ndarray] | None:
    """Seeds, prompts and (R, P) differences of lives, in percent of the training; None where no seed is common."""
    seeds = [seed for seed in one.seeds if seed in two.seeds]
    if not seeds:
        return None
    cells = life_difference(one.life_on(seeds), two.life_on(seeds))
    return seeds, list(one.prompts), 100 * cells / one.length


def _compare(
    arms: list[Trajectory], pairs: tuple[tuple[str, str, str], ...], smallest: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    by_place = {arm.place: arm for arm in arms}
    settings = dict.fromkeys((arm.place[0], arm.place[3]) for arm in arms)
    comparisons, overall = [], []
    for first, second, question in pairs:
        for design, size in settings:
            head = {"question": question, "first": first, "second": second, "design": design, "subset_size": size}
            rows, percent, ranks = [], [], []
            for task in dict.fromkeys(arm.place[1] for arm in arms):
                one, two = (by_place.get((design, task, subset, size)) for subset in (first, second))
                seeds = [seed for seed in one.seeds if seed in two.seeds] if one and two else []
                if not one or not two or not seeds:
                    continue
                lives = one.life_on(seeds), two.life_on(seeds)
                cells = life_difference(*lives)
                share = 100 * cells / one.length
                rows.append({**head, "task": task, **_test(cells), **_log_rank(lives), **variances(share)})
                percent.append((seeds, share, one.prompts, task))
                ranks.append(lives)
            for row, more in zip(rows, corrected([row["p_value"] for row in rows]), strict=True):
                row |= more
            comparisons += rows
            if percent:
                overall.append({**head, **_overall(percent, ranks, smallest)})
    return comparisons, overall


def _test(cells: np.ndarray, unit: str = "steps") -> dict[str, Any]:
    """`paired_difference` of lives, in steps or percent of the training."""
    test = paired_difference(cells)
    return {
        f"difference_{unit}": _round(test.pop("difference")),
        f"interval_{unit}": _rounded(test.pop("interval")),
        f"minimum_detectable_{unit}": _round(test.pop("minimum_detectable_difference")),
        **test,
    }


def variances(percent: np.ndarray) -> dict[str, Any]:
    """Variance components of (R, P) differences in percent of the training, squared; None for one seed."""
    if len(percent) < 2:
        return {"variances_percent2": None}
    return {"variances_percent2": {k: _round(v) for k, v in dataclasses.asdict(components(percent)).items()}}


def _log_rank(lives: tuple[Lives, Lives]) -> dict[str, Any]:
    return {"log_rank_p_value": log_rank(*lives)["p_value"]}


def _overall(
    parts: list[tuple[list[int], np.ndarray, tuple[str, ...], str]], lives: list[tuple[Lives, Lives]], smallest: float
) -> dict[str, Any]:
    """Tasks averaged, as percent of the training; they share seeds and prompts, which stay the units."""
    seeds = sorted(set.intersection(*(set(own) for own, *_ in parts)))
    prompts = sorted(set.intersection(*(set(own) for _, _, own, _ in parts)))
    tasks = [task for *_, task in parts]
    if not seeds or len(prompts) < 2:
        return {"tasks": tasks, "reason": "the tasks share no seed with judged prompts"}
    places = [
        np.ix_([own.index(seed) for seed in seeds], [names.index(prompt) for prompt in prompts])
        for own, _, names, _ in parts
    ]
    mean = np.mean([cells[place] for place, (_, cells, _, _) in zip(places, parts, strict=True)], axis=0)
    ranks = np.mean([log_rank_cells(*pair)[place] for place, pair in zip(places, lives, strict=True)], axis=0)
    return {
        "tasks": tasks,
        **_test(mean, "percent_of_training"),
        **variances(mean),
        "log_rank_p_value": paired_difference(ranks)["p_value"],
        "seeds_needed": seeds_needed(mean, smallest) if len(seeds) > 1 else None,
        "seeds_needed_for_percent_of_training": smallest,
    }


def _hazards(arms: list[Trajectory], properties: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Hazard ratios per standard deviation of each property of the subsets: each alone, then all together."""
    known = {(row["task"], row["subset"], row["subset_size"]): row for row in properties}
    described = []
    for arm in arms:
        head = _head(arm.place)
        found = known.get((head["task"], head["subset"], head["subset_size"]))
        if found is not None and all(found.get(name) is not None for name in COVARIATES):
            described.append((arm, found))
    if len(described) < 2:
        return [{"covariates": list(COVARIATES), "reason": f"{len(described)} arms have a described subset"}]
    spread = {name: float(np.std([row[name] for _, row in described], ddof=1)) or 1.0 for name in COVARIATES}
    groups = [
        Group(
            arm.lives,
            f"{arm.place[0]} {arm.place[1]}",
            {name: row[name] / spread[name] for name in COVARIATES},
            arm.prompts,
            arm.seeds,
        )
        for arm, row in described
    ]
    out = []
    for names in (*((name,) for name in COVARIATES), COVARIATES):
        model = proportional_hazards(groups, names)
        rows = model.pop("covariates", None)
        if rows is None:
            out.append({"covariates": list(names), **model})
            continue
        for row in rows:
            row |= {key: _round(row[key]) for key in ("hazard_ratio", "log_hazard_ratio", "standard_error")}
            row |= {"interval": _rounded(row["interval"]), "sd": _round(spread[row["covariate"]])}
        out.append({"covariates": list(names), **model, "ratios_per_sd": rows})
    return out


def _round(value: float | None) -> float | None:
    return None if value is None else round(float(value), DIGITS)


def _rounded(values: list[float | None]) -> list[float | None]:
    return [_round(value) for value in values]
