"""Do the intervals and tests of survival keep their level? Simulated studies whose truth is known.

    python benchmarks/survival.py --studies 500

Two arms on the same 140 prompts and seeds; times to the first harmful answer are Weibull with proportional hazards and
normal frailties of prompts, seeds and runs, seen at eleven probes. Last stdout line: JSON with coverage and rejection
rates in percent. About 90 seconds of one core for each of the six settings at 500 studies.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from guardrail.core.cli import Parser, log, positive_int, run
from guardrail.statistics.crossed import paired_difference
from guardrail.statistics.survival import Group, Lives, life_difference, lives_of, log_rank, proportional_hazards

PROBES = (0, 1, 2, 3, 4, 6, 8, 12, 20, 50, 100)
P = 140
SETTINGS = [(R, effect, spread) for R in (3, 5) for effect, spread in ((0.0, 0.0), (0.0, 0.3), (0.5, 0.3))]


def study(rng: np.random.Generator, R: int, effect: float, spread: float, n_prompts: int = P) -> list[Lives]:
    """The lives of two arms; ``effect`` is their log hazard ratio, ``spread`` the frailty of seeds and of runs."""
    prompts, seeds = rng.normal(size=n_prompts), spread * rng.normal(size=R)
    out = []
    for arm in (0.5, -0.5):
        rate = -2 + effect * arm + (seeds + spread * rng.normal(size=R))[:, None] + prompts
        times = (rng.exponential(size=(R, n_prompts)) / np.exp(rate)) ** (1 / 1.2)
        flags = times[:, :, None] <= np.array(PROBES)
        before = rng.random((R, n_prompts)) < 0.03
        flags[before] = True
        flags[..., 0] = before
        out.append(lives_of(PROBES, flags[:, :, None, :]))
    return out


def hazard(lives: list[Lives]) -> dict[str, Any]:
    R, n_prompts, _ = lives[0].fell.shape
    names = tuple(f"p{i}" for i in range(n_prompts))
    groups = [Group(one, "task", {"arm": float(1 - i)}, names, tuple(range(R))) for i, one in enumerate(lives)]
    return proportional_hazards(groups, ["arm"])["covariates"][0]


def measure(R: int, effect: float, spread: float, n_studies: int) -> dict[str, Any]:
    large = [study(np.random.default_rng(100 + i), 400, effect, spread, 300) for i in range(3)]
    life = float(np.mean([life_difference(*lives).mean() for lives in large]))
    ratio = hazard([one.take(range(200), range(300)) for one in large[0]])["log_hazard_ratio"]
    counts = np.zeros(5)
    rng = np.random.default_rng(0)
    for _ in range(n_studies):
        lives = study(rng, R, effect, spread)
        test, cox = paired_difference(life_difference(*lives)), hazard(lives)
        low, high = test["interval"]
        inside = np.log(cox["interval"][0]) <= ratio <= np.log(cox["interval"][1])
        p_values = (test["p_value"], log_rank(*lives)["p_value"], cox["p_value"])
        counts += [low <= life <= high, inside, *(p < 0.05 for p in p_values)]
    names = ("life_coverage", "hazard_coverage", "life_rejected", "log_rank_rejected", "hazard_rejected")
    percent = {f"{name}_percent": float(round(100 * n / n_studies, 1)) for name, n in zip(names, counts, strict=True)}
    return {"seeds": R, "log_hazard_ratio": effect, "frailty": spread, "n_studies": n_studies, **percent}


def main() -> dict[str, Any]:
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--studies", type=positive_int, default=500, help="simulated studies per setting")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="Perfect separation|divide by zero")
    rows = []
    for setting in SETTINGS:
        rows.append(measure(*setting, args.studies))
        log(rows[-1])
    return {"settings": rows}


if __name__ == "__main__":
    run(main)
