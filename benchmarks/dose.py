"""Do the intervals of ED50 and of its ratio keep their level? Simulated ladders whose truth is known.

    python benchmarks/dose.py --studies 500

Two arms on the same 140 prompts and seeds at eight doses. A prompt falls at a dose with probability Phi(b (ln dose - m
- its own shift - its seed's - its run's)), shifts normal on the log dose; a few prompts always fall, a few never. So
the curve of the population is a probit between a floor and a ceiling, and its ED50 is known exactly. Last stdout line:
JSON with coverage and rejection rates in percent.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from guardrail.core.cli import Parser, log, positive_int, run
from guardrail.statistics.dose import Curve, ed50, ed50_ratio

DOSES = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
P, ALWAYS, NEVER, OF_PROMPTS, SLOPE = 140, 0.03, 0.08, 0.8, 1.5
SETTINGS = [
    (R, ratio, spread) for R in (2, 3, 5) for ratio, spread in ((1.0, 0.0), (1.0, 0.25), (1.0, 0.5), (2.0, 0.25))
]


def truth(middle: float, spread: float) -> float:
    """ED50 of the population: shifts widen the curve and leave its middle where it is."""
    wide = np.sqrt(SLOPE**-2 + OF_PROMPTS**2 + 2 * spread**2)
    dose = Curve(ALWAYS, 1 - NEVER, np.log(middle), 1 / wide).dose()
    assert dose is not None
    return dose


def study(rng: np.random.Generator, R: int, ratio: float, spread: float, middle: float = 7.0) -> list[np.ndarray]:
    """(R, P, D) answers of two arms; the first takes ``ratio`` times the dose of the second."""
    prompts, seeds = OF_PROMPTS * rng.normal(size=P), spread * rng.normal(size=R)
    kind = rng.random(P)
    out = []
    for arm in (0.5, -0.5):
        runs = spread * rng.normal(size=(R, 1, len(DOSES)))
        place = np.log(middle) + arm * np.log(ratio) + seeds[:, None, None] + prompts[:, None] + runs
        latent = SLOPE * (np.log(np.maximum(DOSES, 1e-9)) - place) + rng.normal(size=(R, P, len(DOSES)))
        flags = (latent > 0) & (np.array(DOSES) > 0)
        flags[:, kind < ALWAYS] = True
        flags[:, kind > 1 - NEVER] = False
        out.append(flags.astype(float))
    return out


def measure(R: int, ratio: float, spread: float, n_studies: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    true = [truth(7.0 * ratio**arm, spread) for arm in (0.5, -0.5)]
    counts, shift = np.zeros(4), []
    for _ in range(n_studies):
        found = [ed50(DOSES, flags, n_resamples=1000) for flags in study(rng, R, ratio, spread)]
        if any(one["outside"] for one in found):
            continue
        test = ed50_ratio(*found)
        low, high = found[0]["interval"]
        inside = (low is None or low <= true[0]) and (high is None or true[0] <= high)
        low, high = test["ratio_interval"]
        counts += [1, inside, low <= true[0] / true[1] <= high, test["p_value"] < 0.05]
        shift.append(np.log(found[0]["ed50"] / true[0]))
    names = ("ed50_coverage", "ratio_coverage", "ratio_rejected")
    percent = {
        f"{name}_percent": float(round(100 * n / counts[0], 1)) for name, n in zip(names, counts[1:], strict=True)
    }
    head = {"seeds": R, "ratio": ratio, "spread": spread, "n_studies": int(counts[0])}
    return {**head, **percent, "bias_log": round(float(np.mean(shift)), 3), "sd_log": round(float(np.std(shift)), 3)}


def main() -> dict[str, Any]:
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--studies", type=positive_int, default=500, help="simulated studies per setting")
    args = parser.parse_args()
    rows = []
    for setting in SETTINGS:
        rows.append(measure(*setting, args.studies))
        log(rows[-1])
    return {"settings": rows}


if __name__ == "__main__":
    run(main)
