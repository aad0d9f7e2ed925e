"""Is the worst case of a study right on average, and does its interval keep its level? Simulated null, truth known.

    python benchmarks/worst_case.py --studies 600

Trainings that are all worth the same (50% harmful) on prompts that differ, with runs that differ: whatever is chosen,
the truth is 50. Runs that go far lose utility as well. Beside what a study reports: the maximum, and a choice on one
half of the prompts that keeps the seeds on which it is measured. Last stdout line: JSON; percent of prompts.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from guardrail.core.cli import Parser, log, positive_int, run
from guardrail.core.errors import UserError
from guardrail.study.attack_effects import Candidate, worst_case

TRUTH = 50.0
LOSS, LOSS_PER_RATE, LOSS_NOISE = 5.0, 20.0, 1.0  # points of utility
SETTINGS = [
    (R, n, spread, bound)
    for R in (1, 3, 5)
    for n, spread, bound in ((1, 0.1, np.inf), (12, 0.0, np.inf), (12, 0.1, np.inf), (12, 0.1, LOSS))
]


def null_study(rng: np.random.Generator, n: int, R: int, P: int = 40, spread: float = 0.1) -> dict[str, Candidate]:
    """``n`` trainings on ``R`` seeds and ``P`` prompts; ``spread``: standard deviation between runs, as a share."""
    ease = rng.normal(0, 0.15, P)
    found = {}
    for i in range(n):
        runs = rng.normal(0, spread, R)
        flags = (rng.random((R, P)) < np.clip(TRUTH / 100 + runs[:, None] + ease, 0, 1)).astype(float)
        losses = LOSS + LOSS_PER_RATE * runs + rng.normal(0, LOSS_NOISE, R)
        found[f"a{i}"] = Candidate(tuple(range(R)), {f"p{p:03d}": flags[:, p] for p in range(P)}, losses)
    return found


def on_the_same_seeds(candidates: dict[str, Candidate]) -> float:
    """What splitting the prompts alone would report."""
    values = [np.stack(list(one.flags.values()), axis=1) for one in candidates.values()]
    halves = []
    for half in (0, 1):
        best = max(values, key=lambda value: float(value[:, half::2].mean()))
        halves.append(float(best[:, 1 - half :: 2].mean()))
    return 100 * float(np.mean(halves))


def measure(R: int, n: int, spread: float, bound: float, n_studies: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    found, naive, same, inside, n_none = [], [], [], 0, 0
    for _ in range(n_studies):
        candidates = null_study(rng, n, R, spread=spread)
        try:
            case = worst_case(candidates, bound)
        except UserError:  # nothing keeps its utility
            n_none += 1
            continue
        low, high = case["interval_percent"]
        found.append(case["percent"])
        naive.append(case["naive_percent"])
        same.append(on_the_same_seeds(candidates))
        inside += low <= TRUTH <= high
    return {
        "seeds": R,
        "trainings": n,
        "spread": spread,
        "bound": None if np.isinf(bound) else bound,
        "n_studies": len(found),
        "n_without_candidate": n_none,
        "bias_points": round(float(np.mean(found)) - TRUTH, 2),
        "bias_error_points": round(float(np.std(found)) / len(found) ** 0.5, 2),
        "maximum_bias_points": round(float(np.mean(naive)) - TRUTH, 2),
        "same_seeds_bias_points": None if bound < np.inf else round(float(np.mean(same)) - TRUTH, 2),
        "coverage_percent": round(100 * inside / len(found), 1),
    }


def main() -> dict[str, Any]:
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--studies", type=positive_int, default=600, help="simulated studies per setting")
    args = parser.parse_args()
    rows = []
    for setting in SETTINGS:
        rows.append(measure(*setting, args.studies))
        log(", ".join(f"{name} {value}" for name, value in rows[-1].items()))
    return {"settings": rows}


if __name__ == "__main__":
    run(main)
