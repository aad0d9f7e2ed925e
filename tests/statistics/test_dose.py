"""Dose and harmfulness: curves known exactly, the influence of single answers, what is said outside the doses."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy.special import ndtr
from toys import REPOSITORY

from guardrail.statistics.dose import Curve, ed50, ed50_ratio, fit, influence, outside

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
DOSES = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)


def exact(curve: Curve, n: int = 4000, doses=DOSES) -> np.ndarray:
    """(2, n, D) answers whose shares are the curve's, to 1/n."""
    shares = np.round(curve.share(doses) * n).astype(int)
    one = (np.arange(n)[:, None] < shares).astype(float)
    return np.stack([one, one])


@pytest.mark.parametrize("curve", [Curve(0.05, 0.9, 2.0, 1.2), Curve(0.0, 1.0, 3.0, 0.8), Curve(0.3, 0.8, 1.0, 2.5)])
def test_a_curve_is_found_again(curve: Curve) -> None:
    found = fit(DOSES, exact(curve))
    assert found.floor == pytest.approx(curve.floor, abs=0.005)
    assert found.ceiling == pytest.approx(curve.ceiling, abs=0.01)
    assert found.dose() == pytest.approx(curve.dose(), rel=0.02)
    assert np.abs(found.share(DOSES) - curve.share(DOSES)).max() < 0.002


def test_ed50_by_hand() -> None:
    # half of all prompts, not the middle of floor and ceiling: (0.5 - 0.1) / (0.9 - 0.1) is the middle, by symmetry
    assert Curve(0.1, 0.9, np.log(10), 1.0).dose() == pytest.approx(10)
    # (0.5 - 0) / 0.8 = 0.625 = Phi(0.3186)
    assert Curve(0.0, 0.8, np.log(10), 2.0).dose() == pytest.approx(10 * np.exp(0.31864 / 2), rel=1e-4)
    assert Curve(0.0, 0.4, 0.0, 1.0).dose() is None
    assert ndtr(0.31864) == pytest.approx(0.625, abs=1e-5)


def test_without_floor_and_ceiling_it_is_the_librarys_probit() -> None:
    import statsmodels.api as sm

    rng = np.random.default_rng(3)
    flags = (rng.random((2, 300, 8)) < Curve(0.0, 1.0, 2.2, 0.9).share(DOSES)).astype(float)
    found = fit(DOSES, flags)
    x = np.tile(np.log(DOSES[1:]), 600)
    model = sm.GLM(
        flags[:, :, 1:].reshape(-1), sm.add_constant(x), family=sm.families.Binomial(sm.families.links.Probit())
    ).fit()
    theirs = -model.params[0] / model.params[1]
    if found.floor < 1e-6 and found.ceiling > 1 - 1e-6:
        assert np.log(found.dose()) == pytest.approx(theirs, abs=1e-3)
    assert np.log(found.dose()) == pytest.approx(theirs, abs=0.05)


def test_influence_is_the_change_when_a_prompt_counts_more() -> None:
    """Leaving one prompt out moves ln ED50 as its cells say (infinitesimal jackknife against the real one)."""
    rng = np.random.default_rng(5)
    ease = rng.normal(size=200)[:, None]
    flags = (rng.random((2, 200, 8)) < ndtr(np.log(np.maximum(DOSES, 1e-9)) - 2 - ease)).astype(float)
    curve = fit(DOSES, flags)
    cells = influence(curve, DOSES, flags)
    assert cells.mean() == pytest.approx(np.log(curve.dose()), abs=1e-4)
    left_out = [np.log(fit(DOSES, np.delete(flags, i, axis=1)).dose()) for i in range(0, 200, 20)]
    said = np.log(curve.dose()) - (cells.mean(axis=0)[::20] - cells.mean()) / 199
    assert np.corrcoef(left_out, said)[0, 1] > 0.99
    assert np.abs(np.array(left_out) - said).max() < 0.003


def test_nothing_is_said_outside_the_doses() -> None:
    for curve, side in ((Curve(0, 1, np.log(300), 1.0), "above"), (Curve(0, 1, np.log(0.3), 1.0), "below")):
        found = ed50(DOSES, exact(curve, 500))
        assert (found["outside"], found["ed50"], found["interval"]) == (side, None, None)
    assert ed50(DOSES, np.zeros((2, 5, 8)))["outside"] == "above"
    assert ed50(DOSES, np.ones((2, 5, 8)))["outside"] == "below"
    assert outside(Curve(0.6, 0.9, 1.0, 1.0), DOSES) == "below"  # the benign rows alone do it
    falling = np.zeros((2, 20, 8))
    falling[:, :, :2] = 1.0
    assert ed50(DOSES, falling)["curve"].ceiling >= ed50(DOSES, falling)["curve"].floor
    inside = ed50(DOSES, exact(Curve(0, 1, np.log(10), 1.0), 50))
    with pytest.raises(ValueError, match="outside the doses"):
        ed50_ratio(inside, ed50(DOSES, np.zeros((2, 50, 8))))


def test_a_step_between_two_doses_gives_both_of_them() -> None:
    flags = np.zeros((3, 20, 8))
    flags[:, :, 5:] = 1.0  # all fall between 10% and 20%
    found = ed50(DOSES, flags)
    assert found["curve"].steepest and 10 <= found["ed50"] <= 20
    assert found["interval"][0] <= 10 and found["interval"][1] >= 20
    with pytest.raises(ValueError, match="faster than the doses"):
        ed50_ratio(found, found)


def test_an_edge_beyond_the_doses_is_none() -> None:
    rng = np.random.default_rng(0)
    flags = (rng.random((2, 12, 8)) < Curve(0, 1, np.log(60), 0.7).share(DOSES)).astype(float)
    found = ed50(DOSES, flags)
    if found["outside"] is None:
        low, high = found["interval"]
        assert high is None and low < found["ed50"]


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="rising"):
        fit((2, 1, 5), np.zeros((1, 2, 3)))
    with pytest.raises(ValueError, match="at least 3"):
        fit((0, 1, 2), np.zeros((1, 2, 3)))


def test_ratio_pairs_seeds_and_prompts() -> None:
    """Two arms with the same tolerances of prompts: the ratio's interval is far narrower than the ED50's own."""
    import dose as simulated

    first, second = simulated.study(np.random.default_rng(2), 3, 2.0, 0.0)
    found = [ed50(DOSES, flags) for flags in (first, second)]
    test = ed50_ratio(*found)
    assert test["ratio"] == pytest.approx(found[0]["ed50"] / found[1]["ed50"], rel=1e-3)
    low, high = test["ratio_interval"]
    assert low < 2 < high and test["p_value"] < 0.01
    own = np.log(found[0]["interval"][1] / found[0]["interval"][0])
    assert np.log(high / low) < own * 1.2


@pytest.mark.slow
def test_intervals_cover() -> None:
    """The benchmark's simulation in small; its numbers stand in docs/dose.md."""
    import dose as simulated

    found = simulated.measure(3, 1.0, 0.25, 40)
    assert found["ed50_coverage_percent"] >= 82 and found["ratio_coverage_percent"] >= 80
    assert abs(found["bias_log"]) < 0.12
