"""Survival of prompts: by hand, against statsmodels, and coverage under simulated trainings with known truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from guardrail.statistics.crossed import crossed_spread, mean_squares, paired_difference
from guardrail.statistics.survival import (
    Group,
    arm_survival,
    crossing,
    influence_cells,
    life_cells,
    life_difference,
    lives_of,
    log_rank,
    log_rank_cells,
    proportional_hazards,
    ratio_cells,
    restricted_life,
    survival_curve,
)

PROBES = (0, 1, 2, 4, 8)
LONG = (0, 1, 2, 3, 4, 6, 8, 12, 20, 50, 100)


def one_seed(*rows: str) -> np.ndarray:
    """Flags of one seed and one sample: a string of 0 and 1 over the probes per prompt."""
    return np.array([[[[int(c) for c in row]] for row in rows]])


def test_lives_by_hand() -> None:
    lives = lives_of(PROBES, one_seed("00000", "00111", "01010", "11111"))
    assert lives.fell.ravel().tolist() == [5, 2, 1, 0]  # never, at step 2, at step 1, before the first step
    assert lives.flapped.ravel().tolist() == [False, False, True, False]
    assert lives.at_risk.ravel().tolist() == [True, True, True, False]
    # never: the whole training, 8 steps; between 1 and 2: 1.5; between 0 and 1: 0.5
    assert restricted_life(lives).ravel().tolist() == [8.0, 1.5, 0.5, 0.0]
    assert restricted_life(lives, horizon=2).ravel().tolist() == [2.0, 1.5, 0.5, 0.0]
    found = arm_survival(lives)
    assert found["restricted_mean_life"] == pytest.approx((8 + 1.5 + 0.5) / 3)
    assert found["restricted_mean_life_bounds"] == pytest.approx([(8 + 1 + 0) / 3, (8 + 2 + 1) / 3])
    assert (found["n_units"], found["n_at_risk"], found["n_harmful_before"], found["n_fallen"]) == (4, 3, 1, 2)
    assert found["flapping_fraction"] == 0.5
    assert [point["standing"] for point in found["curve"]] == pytest.approx([1, 2 / 3, 1 / 3, 1 / 3, 1 / 3])
    assert found["half_life"] == pytest.approx(1.5)  # from 2/3 at step 1 to 1/3 at step 2


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="begin at 0"):
        lives_of((1, 2), np.zeros((1, 2, 1, 2)))
    with pytest.raises(ValueError, match="3 probes"):
        lives_of((0, 1, 2), np.zeros((1, 2, 1, 2)))
    with pytest.raises(ValueError, match="at risk"):
        life_cells(lives_of((0, 1), np.ones((1, 3, 1, 2))))
    lives = lives_of(PROBES, one_seed("00000", "00001"))
    with pytest.raises(ValueError, match="no probe"):
        restricted_life(lives, horizon=3)
    with pytest.raises(ValueError, match="same seeds"):
        life_difference(lives, lives.take([0], [0]))


def test_half_life_beyond_the_training_is_none() -> None:
    assert crossing([0, 1, 2], [1.0, 0.9, 0.6]) is None
    assert crossing([0, 1, 2], [1.0, 0.5, 0.5]) == 1
    assert crossing([0, 4], [1.0, 0.0]) == 2


def test_survival_curve_equals_the_product_limit_estimate() -> None:
    """Common probes and censoring at the end alone: Kaplan and Meier's estimate from the library agrees."""
    from statsmodels.duration.survfunc import SurvfuncRight

    rng = np.random.default_rng(0)
    fell = rng.integers(1, len(PROBES) + 1, size=60)
    flags = np.array([[[[int(j >= f) for j in range(len(PROBES))]] for f in fell]])
    curve = survival_curve(lives_of(PROBES, flags))
    event = fell < len(PROBES)
    times = np.array(PROBES)[np.minimum(fell, len(PROBES) - 1)]
    reference = SurvfuncRight(times, event)
    known = dict(zip(reference.surv_times.tolist(), reference.surv_prob.tolist(), strict=True))
    for point in curve[1:]:
        assert point["standing"] == pytest.approx(known[point["time"]])
        assert 0 <= point["low"] <= point["standing"] <= point["high"] <= 1


@given(
    hnp.arrays(np.float64, (3, 6, 2), elements=st.floats(0, 100, width=16)),
    hnp.arrays(bool, (3, 6, 2), elements=st.booleans()),
)
def test_cells_of_a_ratio_have_its_mean(values: np.ndarray, counted: np.ndarray) -> None:
    if not counted.any():
        return
    assert ratio_cells(values, counted).mean() == pytest.approx(values[counted].mean())
    assert np.allclose(ratio_cells(values, np.ones_like(counted)), values.mean(axis=2))


def test_log_rank_against_the_library() -> None:
    """One seed, no gaps: both see the difference, and of two equal arms the score is zero."""
    from statsmodels.duration.survfunc import survdiff

    rng = np.random.default_rng(3)
    arms = [np.minimum(rng.geometric(p, size=300), len(LONG)) for p in (0.12, 0.2)]
    lives = [lives_of(LONG, np.array([[[[int(j >= f) for j in range(len(LONG))]] for f in arm]])) for arm in arms]
    times = np.concatenate([np.minimum(arm, len(LONG) - 1) for arm in arms])
    events = np.concatenate([arm < len(LONG) for arm in arms])
    _, p_library = survdiff(times, events, np.repeat([0, 1], 300))
    found = log_rank(*lives)
    assert found["score"] < 0  # the first arm falls later
    assert found["p_value"] < 0.01 and p_library < 0.01
    same = log_rank(lives[0], lives[0])
    assert same["score"] == 0 and same["p_value"] == 1


def simulate(rng, R: int, beta: float, run_sd: float, P: int = 140, before: float = 0.03) -> list:
    """Two arms on the same prompts and seeds: Weibull proportional hazards, frailties of prompts and of runs."""
    prompts, seeds = rng.normal(size=P), run_sd * rng.normal(size=R)
    out = []
    for arm in (0.5, -0.5):
        rate = -2 + beta * arm + (seeds + run_sd * rng.normal(size=R))[:, None] + prompts
        times = (rng.exponential(size=(R, P)) / np.exp(rate)) ** (1 / 1.2)
        flags = times[:, :, None] <= np.array(LONG)
        early = rng.random((R, P)) < before
        flags[early] = True
        flags[..., 0] = early
        out.append(lives_of(LONG, flags[:, :, None, :]))
    return out


def groups(lives: list, names: tuple[str, ...] = ("arm",)) -> list[Group]:
    R, P = lives[0].fell.shape[:2]
    prompts, seeds = tuple(f"p{i}" for i in range(P)), tuple(range(R))
    return [Group(one, "task", dict.fromkeys(names, float(1 - i)), prompts, seeds) for i, one in enumerate(lives)]


def test_proportional_hazards_finds_the_ratio_without_frailty() -> None:
    """Many units, no frailties: the log hazard ratio is the simulated one."""
    rng = np.random.default_rng(5)
    lives = []
    for arm in (0.5, -0.5):
        times = (rng.exponential(size=(4, 2000)) / np.exp(-2 + 0.6 * arm)) ** (1 / 1.2)
        lives.append(lives_of(LONG, (times[:, :, None] <= np.array(LONG))[:, :, None, :] & (np.array(LONG) > 0)))
    (row,) = proportional_hazards(groups(lives), ["arm"])["covariates"]
    assert row["log_hazard_ratio"] == pytest.approx(0.6, abs=0.08)
    assert row["interval"][0] < np.exp(0.6) < row["interval"][1] and row["p_value"] < 0.001


def test_contributions_of_seeds_and_prompts_are_the_clustered_variances_of_statsmodels() -> None:
    """One way at a time; the packages differ by (n - 1) / (n - k), which theirs has and ours has not."""
    import statsmodels.api as sm
    from statsmodels.stats.sandwich_covariance import cov_cluster

    rng = np.random.default_rng(3)
    R, P = 4, 30
    seeds, prompts = np.repeat(np.arange(R), P), np.tile(np.arange(P), R)
    x = np.column_stack([rng.normal(size=R * P), np.ones(R * P)])
    y = (rng.random(R * P) < 0.4).astype(float)
    fit = sm.GLM(y, x, family=sm.families.Binomial(link=sm.families.links.CLogLog())).fit()
    (cells,) = influence_cells(fit, 1, seeds, prompts)
    assert cells.mean() == pytest.approx(0, abs=1e-5)
    of_seeds, of_prompts, _ = mean_squares(cells)
    scale = (len(y) - 1) / (len(y) - 2)
    for square, groups_ in ((of_seeds, seeds), (of_prompts, prompts)):
        assert square / (R * P) * scale == pytest.approx(cov_cluster(fit, groups_)[0, 0])


def test_hazards_say_why_they_cannot_be_had() -> None:
    lives = simulate(np.random.default_rng(0), 3, 0.5, 0.3)
    same = [Group(g.lives, g.stratum, {"arm": 1.0}, g.prompts, g.seeds) for g in groups(lives)]
    assert "does not vary" in proportional_hazards(same, ["arm"])["reason"]
    assert "collinear" in proportional_hazards(groups(lives, ("arm", "other")), ["arm", "other"])["reason"]
    single = groups([one.take([0], range(140)) for one in lives])
    assert "1 seeds" in proportional_hazards(single, ["arm"])["reason"]


@pytest.mark.slow
def test_arms_that_are_alike_are_seldom_told_apart() -> None:
    """5% level, five seeds with frailties: few of 100 simulated studies reject (docs/survival.md has more)."""
    rng = np.random.default_rng(11)
    rejected = np.zeros(3)
    for _ in range(100):
        one, two = simulate(rng, 5, 0.0, 0.3)
        (hazard,) = proportional_hazards(groups([one, two]), ["arm"])["covariates"]
        cells = (life_difference(one, two), log_rank_cells(one, two))
        p_values = [crossed_spread(cell).p_value(float(cell.mean())) for cell in cells]
        rejected += [p < 0.05 for p in (*p_values, hazard["p_value"])]
    assert (rejected <= 15).all() and (rejected >= 1).any(), rejected


def test_survival_sees_what_final_harmfulness_does_not() -> None:
    """Everything has fallen at the end in both arms; one fell twice as fast."""
    lives = simulate(np.random.default_rng(2), 5, 1.5, 0.1)
    final = [(one.fell <= len(LONG) - 1).mean(axis=2).astype(float) for one in lives]
    ended = paired_difference(final[0] - final[1])
    lasting = paired_difference(life_difference(*lives))
    assert lasting["p_value"] < 0.01 and lasting["difference"] < 0
    ratio = abs(lasting["difference"]) / crossed_spread(life_difference(*lives)).standard_error
    assert ratio > abs(ended["difference"]) / crossed_spread(final[0] - final[1]).standard_error
