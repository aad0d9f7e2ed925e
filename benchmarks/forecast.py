"""Does the forecast's interval keep its level, and does it keep silent where it should? Simulated studies.

    python benchmarks/forecast.py --worlds 200

A world is a set of measured tasks with five arms each. Properties of arms vary around their task's, three belong to the
task alone; durability is linear in similarity, length and the value before, plus an effect of the task and noise of the
arm. Asked are new arms of new tasks: like the ones seen, shifted, and in worlds where no property means anything.
Last stdout line: JSON with percentages. About 12 seconds of one core per 20 worlds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from guardrail.core.cli import Parser, log, positive_int, run
from guardrail.similarity.forecast.model import estimate, fit_outcome, range_reason, skill_reason
from guardrail.similarity.forecast.observations import Observation

ARM = ("similarity", "diversity", "response_chars", "list_share_percent", "initial_percent")
TASK = ("task_response_chars", "task_list_share_percent", "task_diversity")
NAMES = ARM + TASK
SLOPES = np.array([8.0, 0.0, 4.0, 0.0, 4.0, 0.0, 0.0, 0.0])
ARMS = 5
# name -> tasks, standard deviation of a task's own effect, heavy tails
SETTINGS: dict[str, tuple[int, float, bool]] = {
    "4 tasks": (4, 4.0, False),
    "6 tasks": (6, 4.0, False),
    "10 tasks": (10, 4.0, False),
    "20 tasks": (20, 4.0, False),
    "20 tasks, heavy tails": (20, 4.0, True),
}
# what is done to a new arm's properties, in standard deviations: one of them, or all with random signs
SHIFTS = {
    "one property by 3": (1, 3.0),
    "one property by 4": (1, 4.0),
    "one property by 5": (1, 5.0),
    "three properties by 3": (3, 3.0),
    "all properties by 2": (8, 2.0),
}


def tasks(rng: np.random.Generator, n: int, effect: float, slopes: np.ndarray, heavy: bool) -> list[Observation]:
    """``n`` tasks of `ARMS` arms; half of an arm's variance in properties is its task's."""
    out = []
    for number in range(n):
        of_task = rng.normal(size=len(NAMES))
        own = effect * (rng.standard_t(4) / np.sqrt(2) if heavy else rng.normal())
        for arm in range(ARMS):
            x = of_task.copy()
            x[: len(ARM)] = (of_task[: len(ARM)] + rng.normal(size=len(ARM))) / np.sqrt(2)
            noise = 3.0 * (rng.standard_t(4) / np.sqrt(2) if heavy else rng.normal())
            y = float(x @ slopes + own + noise)
            values = dict(zip(NAMES, map(float, x), strict=True))
            out.append(Observation("s", "p", f"t{number}", f"a{arm}", values, {"delta_points": y}))
    return out


def shifted(rng: np.random.Generator, values: dict[str, float], how_many: int, by: float) -> dict[str, float]:
    chosen = rng.permutation(len(NAMES))[:how_many]
    return {
        name: value + (by * rng.choice((-1.0, 1.0)) if place in chosen else 0.0)
        for place, (name, value) in enumerate(values.items())
    }


def percent(flags: Sequence[bool]) -> float | None:
    return round(100 * float(np.mean(flags)), 1) if flags else None


def measure(name: str, n_worlds: int, seed: int) -> dict[str, Any]:
    """Coverage and abstention in one setting, over ``n_worlds`` worlds with new tasks each."""
    n, effect, heavy = SETTINGS[name]
    rng = np.random.default_rng(seed)
    covered: list[bool] = []
    answered: list[bool] = []
    covered_answered: list[bool] = []
    widths, spread = [], []
    outside: dict[str, list[bool]] = {shift: [] for shift in SHIFTS}
    silent: dict[str, list[bool]] = {shift: [] for shift in SHIFTS}
    useless: list[bool] = []
    positive: list[bool] = []
    for _ in range(n_worlds):
        model = fit_outcome(tasks(rng, n, effect, SLOPES, heavy), "delta_points", NAMES)
        no_skill = skill_reason(model) is not None
        for one in tasks(rng, 20, effect, SLOPES, heavy)[::ARMS]:  # one arm of each new task
            low, high = estimate(model, one.properties)["interval"]
            inside = low <= one.outcomes["delta_points"] <= high
            says = not no_skill and range_reason(model, one.properties) is None
            covered.append(inside)
            answered.append(says)
            covered_answered += [inside] if says else []
            widths.append(high - low)
            spread.append(one.outcomes["delta_points"])
            for shift, (how_many, by) in SHIFTS.items():
                out = range_reason(model, shifted(rng, one.properties, how_many, by)) is not None
                outside[shift].append(out)
                silent[shift].append(out or no_skill)
        nothing = fit_outcome(tasks(rng, n, effect, 0 * SLOPES, heavy), "delta_points", NAMES)
        useless.append(skill_reason(nothing) is not None)
        positive.append(nothing["skill"]["task"]["value"] > 0)
    row: dict[str, Any] = {
        "setting": name,
        "worlds": n_worlds,
        "covered_percent": percent(covered),
        "covered_where_it_answers_percent": percent(covered_answered),
        "answers_percent": percent(answered),
        "width_of_interval_in_sd": round(float(np.mean(widths) / np.std(spread)), 2),
        "silent_without_any_skill_percent": percent(useless),
        "point_skill_above_zero_without_any_percent": percent(positive),
    }
    row |= {f"outside, {shift}_percent": percent(flags) for shift, flags in outside.items()}
    return row | {f"silent, {shift}_percent": percent(flags) for shift, flags in silent.items()}


def main() -> dict[str, Any]:
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--worlds", type=positive_int, default=200, help="simulated worlds per setting")
    parser.add_argument("--seed", type=int, default=0, help="seed of the simulation")
    args = parser.parse_args()
    rows = []
    for name in SETTINGS:
        rows.append(measure(name, args.worlds, args.seed))
        log(rows[-1])
    return {"settings": rows}


if __name__ == "__main__":
    run(main)
