"""Do the intervals and tests of survival keep their level? Simulated studies whose truth is known.

    python benchmarks/survival.py --studies 500

Two arms on the same 140 prompts and seeds; times to the first harmful answer are Weibull with proportional hazards and
normal frailties of prompts, seeds and runs, seen at eleven probes. Last stdout line: JSON with coverage and rejection
rates in percent. Less than a minute of one core for each of the six settings at 500 studies.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from guardrail.core.cli import Parser, log, positive_int, run
from guardrail.statistics.crossed import crossed_bootstrap, crossed_spread, paired_difference
from guardrail.statistics.survival import (
    Group,
    Lives,
    life_difference,
    lives_of,
    log_rank_cells,
    proportional_hazards,
)

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


def rejected(cells: np.ndarray) -> bool:
    """Is `paired_difference`'s p below 5%? It is the larger of two, and one of them takes no time."""
    return crossed_spread(cells).p_value(float(cells.mean())) < 0.05 and paired_difference(cells)["p_value"] < 0.05


def truth(effect: float, spread: float) -> tuple[float, float]:
    """Difference of mean lives and log hazard ratio of the arms: zero where they are alike, else from large studies.

    The ratio is the one that the model means: averaged over frailties, it lies nearer to zero than ``effect``.
    """
    if effect == 0:
        return 0.0, 0.0
    large = [study(np.random.default_rng(100 + i), 400, effect, spread, 300) for i in range(3)]
    ratios = [hazard([one.take(range(200), range(300)) for one in lives])["log_hazard_ratio"] for lives in large]
    return float(np.mean([life_difference(*lives).mean() for lives in large])), float(np.mean(ratios))


def measure(R: int, effect: float, spread: float, n_studies: int, seed: int = 0) -> dict[str, Any]:
    life, ratio = truth(effect, spread)
    counts = np.zeros(5)
    rng = np.random.default_rng(seed)
    for _ in range(n_studies):
        lives = study(rng, R, effect, spread)
        cells, cox = life_difference(*lives), hazard(lives)
        _, low, high = crossed_bootstrap(cells)
        inside = np.log(cox["interval"][0]) <= ratio <= np.log(cox["interval"][1])
        found = (rejected(cells), rejected(log_rank_cells(*lives)), cox["p_value"] < 0.05)
        counts += [low <= life <= high, inside, *found]
    names = ("life_coverage", "hazard_coverage", "life_rejected", "log_rank_rejected", "hazard_rejected")
    percent = {f"{name}_percent": float(round(100 * n / n_studies, 1)) for name, n in zip(names, counts, strict=True)}
    return {"seeds": R, "log_hazard_ratio": effect, "frailty": spread, "n_studies": n_studies, **percent}


def main() -> dict[str, Any]:
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--studies", type=positive_int, default=500, help="simulated studies per setting")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation: other seeds give other studies")
    parser.add_argument("--training_seeds", type=int, choices=(3, 5), help="only the settings with so many of them")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="Perfect separation|divide by zero")
    rows = []
    for setting in SETTINGS:
        if args.training_seeds not in (None, setting[0]):
            continue
        rows.append(measure(*setting, args.studies, args.seed))
        log(rows[-1])
    return {"settings": rows}


if __name__ == "__main__":
    run(main)
