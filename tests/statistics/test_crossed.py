"""Intervals and tests of the study: hand-made data, coverage by simulation, no findings in shuffled labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from guardrail.statistics.crossed import (
    Spread,
    crossed_bootstrap,
    crossed_spread,
    mean_squares,
    paired_difference,
    seeds_needed,
    sign_flip,
)
from guardrail.statistics.regression import matched_capability, regress
from guardrail.statistics.testing import corrected


def simulate(rng, R, P, seed_sd, prompt_sd=1.5, mu=-1.0, S=1):
    """Outcomes of R seeds on P prompts: logit = mu + seed effect + prompt effect."""
    logit = mu + seed_sd * rng.normal(size=(R, 1, 1)) + prompt_sd * rng.normal(size=(1, P, 1))
    return (rng.random((R, P, S)) < 1 / (1 + np.exp(-logit))).astype(float)


def test_one_seed_is_the_ordinary_standard_error_of_prompt_means():
    values = np.array([[1.0, 0, 0, 1, 1, 0, 0, 0]])
    spread = crossed_spread(values)
    assert spread.standard_error == pytest.approx(values.std(ddof=1) / np.sqrt(8))
    assert spread.quantile() == pytest.approx(2.365, abs=1e-3)  # Student, 7 degrees of freedom


def test_spread_equals_two_way_analysis_of_variance_by_hand():
    # Seeds 0.2 and 0.6 on average, prompts 0.4 each, no interaction: only seeds vary.
    values = np.array([[0.2, 0.2, 0.2], [0.6, 0.6, 0.6]])
    # MS_seeds = P * var(0.2, 0.6) = 3 * 0.08 = 0.24; MS_prompts = MS_noise = 0; variance = 0.24 / (2 * 3) = 0.04.
    spread = crossed_spread(values)
    assert spread.standard_error == pytest.approx(0.2)
    assert spread.quantile() == pytest.approx(12.706, abs=1e-3)  # Student, 1 degree of freedom


def test_samples_of_one_prompt_are_no_new_prompts():
    values = np.repeat(simulate(np.random.default_rng(0), 3, 40, 0.3), 5, axis=2)  # five copies of each answer
    assert crossed_spread(values) == crossed_spread(values[:, :, 0])


def test_intervals_of_rates_stay_inside_and_are_not_empty_at_the_ends():
    mean, low, high = crossed_bootstrap(np.zeros((3, 50)), rate=True)
    assert (mean, low) == (0.0, 0.0) and 0.02 < high < 0.1
    assert crossed_bootstrap(np.ones((1, 50)), rate=True)[2] == 1.0


def test_no_difference_seen_is_not_no_uncertainty():
    # Not one of 28 prompts differs: 0 of 28 events, Wilson's upper limit with Student's quantile 2.052 is 13.1%.
    result = paired_difference(np.zeros((1, 28)))
    assert result["p_value"] == 1.0
    assert result["interval"] == pytest.approx([-0.131, 0.131], abs=1e-3)
    assert result["minimum_detectable_difference"] > 0.13
    assert paired_difference(np.zeros((3, 28)))["interval"][1] > 0.1


def test_nan_is_refused():
    with pytest.raises(ValueError, match="finite"):
        crossed_spread(np.array([[0.0, np.nan]]))


RARE = (-3.6, -3.2, -2.8, -2.4)  # rates of 6 to 15%: averaged, because a count on a lattice covers in steps


@pytest.mark.slow
@pytest.mark.parametrize("R,seed_sd,mus", [(1, 0.0, (-1.0,)), (1, 0.0, RARE), (5, 0.3, RARE), (5, 0.6, (0.0, -1.0))])
def test_coverage_of_the_interval(R, seed_sd, mus):
    rng = np.random.default_rng(7)
    inside, n = 0, 1200 // len(mus)
    for mu in mus:
        logits = mu + seed_sd * rng.normal(size=10**6) + 1.5 * rng.normal(size=10**6)
        truth = (1 / (1 + np.exp(-logits))).mean()
        for _ in range(n):
            _, low, high = crossed_bootstrap(simulate(rng, R, 140, seed_sd, mu=mu), rate=True, n_resamples=300)
            inside += low <= truth <= high
    assert 0.93 <= inside / (n * len(mus)) <= 0.97


@pytest.mark.slow
def test_coverage_of_the_interval_with_three_seeds_is_reported_honestly():
    # Three seeds: two degrees of freedom for the seed part. Coverage is 92-98%, wide rather than wrong.
    rng = np.random.default_rng(3)
    logits = -1.0 + 0.3 * rng.normal(size=10**6) + 1.5 * rng.normal(size=10**6)
    truth = (1 / (1 + np.exp(-logits))).mean()
    inside = 0
    for _ in range(1000):
        _, low, high = crossed_bootstrap(simulate(rng, 3, 100, 0.3), rate=True, n_resamples=400)
        inside += low <= truth <= high
    assert 0.92 <= inside / 1000 <= 0.98


def test_a_bootstrap_over_prompts_alone_would_undercover():
    """The wrong interval (seeds ignored) must fail the test above, or that test proves nothing."""
    rng = np.random.default_rng(1)
    logits = 0.6 * rng.normal(size=10**5) + 1.5 * rng.normal(size=10**5)
    truth = (1 / (1 + np.exp(-logits))).mean()
    inside = 0
    for _ in range(300):
        values = simulate(rng, 5, 100, 0.6, mu=0.0)
        _, low, high = crossed_bootstrap(values.mean(axis=0, keepdims=True), rate=True, n_resamples=200)
        inside += low <= truth <= high
    assert inside / 300 < 0.85


def test_sign_flip_equals_enumeration_by_hand():
    # 1, 2, 3: of the 8 sign patterns only +++ and --- reach |sum| = 6.
    assert sign_flip(np.array([1.0, 2.0, 3.0])) == pytest.approx(2 / 8)
    assert sign_flip(np.zeros(5)) == 1.0
    assert sign_flip(np.array([1.0])) is None
    exact = stats.permutation_test((np.arange(1.0, 9),), np.mean, permutation_type="samples", n_resamples=300).pvalue
    assert sign_flip(np.arange(1.0, 9)) == pytest.approx(exact)


def test_sign_flip_monte_carlo_is_never_zero():
    assert 0 < sign_flip(np.ones(100)) <= 1e-3


@pytest.mark.parametrize("R,seed_sd", [(1, 0.0), (3, 0.5), (5, 0.5)])
def test_no_findings_in_shuffled_labels_beyond_the_nominal_rate(R, seed_sd):
    """High and low are the same kind of arm, each with its own seed effect; labels mean nothing."""
    rng = np.random.default_rng(11)
    n, found = 300, 0
    for _ in range(n):
        prompts = 1.5 * rng.normal(size=(1, 60))
        high, low = (
            (rng.random((R, 60)) < 1 / (1 + np.exp(0.5 - prompts - seed_sd * rng.normal(size=(R, 1))))).astype(float)
            for _ in range(2)
        )
        difference = high - low
        if paired_difference_fast(difference) < 0.05:
            found += 1
    assert found / n <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / n)


def paired_difference_fast(difference: np.ndarray) -> float:
    """`paired_difference` with fewer resamples, p-value only."""
    import guardrail.statistics.crossed as inference
    import guardrail.statistics.resampling as basic

    before = inference.N_RESAMPLES, basic.paired_permutation_test.__defaults__
    inference.N_RESAMPLES, basic.paired_permutation_test.__defaults__ = 100, (None, 1000, 0)
    try:
        return paired_difference(difference)["p_value"]
    finally:
        inference.N_RESAMPLES, basic.paired_permutation_test.__defaults__ = before


def test_prompts_alone_would_find_differences_between_seeds():
    """The unit matters: with seed effects, flipping prompts alone finds far more than 5%."""
    rng = np.random.default_rng(5)
    found = 0
    for _ in range(40):
        prompts = 1.5 * rng.normal(size=(1, 60))
        high, low = (
            (rng.random((3, 60)) < 1 / (1 + np.exp(0.5 - prompts - 0.8 * rng.normal(size=(3, 1))))).astype(float)
            for _ in range(2)
        )
        found += sign_flip((high - low).mean(axis=0)) < 0.05
    assert found > 8


def test_a_real_difference_is_found_with_its_size():
    rng = np.random.default_rng(2)
    prompts = rng.normal(size=(1, 140))
    low = (rng.random((5, 140)) < 1 / (1 + np.exp(1.5 - prompts))).astype(float)
    high = (rng.random((5, 140)) < 1 / (1 + np.exp(0.5 - prompts))).astype(float)
    result = paired_difference(high - low)
    assert result["p_value"] < 1e-3 and result["interval"][0] > 0
    assert result["p_value_seeds"] == 2 / 32  # the smallest that five seeds can give
    assert result["scope"] == "new training seeds and prompts"
    one = paired_difference((high - low)[:1])
    assert one["scope"] == "these checkpoints" and one["p_value_crossed"] is None


def test_minimum_detectable_difference_has_the_power_it_claims():
    # Normal differences with sd 1 on 100 prompts, one seed: the power at the MDE is 80%.
    rng = np.random.default_rng(4)
    spread = crossed_spread(rng.normal(size=(1, 100)))
    mde = spread.detectable()
    assert mde == pytest.approx(spread.standard_error * (1.984 + 0.845), rel=1e-3)
    p = [stats.ttest_1samp(rng.normal(mde, spread.standard_error * 10, 100), 0).pvalue for _ in range(1500)]
    assert (np.array(p) < 0.05).mean() == pytest.approx(0.8, abs=0.04)


def test_p_value_is_the_inverse_of_the_critical_value():
    spread = crossed_spread(simulate(np.random.default_rng(0), 3, 50, 0.5))
    assert spread.p_value(spread.standard_error * spread.quantile(0.975)) == pytest.approx(0.05)
    assert spread.p_value(0.0) == 1.0 and spread.p_value(100.0) < 1e-3
    one = crossed_spread(simulate(np.random.default_rng(0), 1, 50, 0.5))
    assert one.p_value(2 * one.standard_error) == pytest.approx(2 * stats.t.sf(2, 49))


@pytest.mark.parametrize(("R", "P"), [(2, 5), (3, 50), (5, 140)])
def test_with_seeds_alone_it_is_students_t(R, P):
    spread = Spread(1.0, R, P, (float(R * P), 0.0, 0.0))
    for probability in (0.9, 0.975, 0.9995):
        assert spread.quantile(probability) == pytest.approx(stats.t.ppf(probability, R - 1), rel=1e-3)


@pytest.mark.parametrize("R", [3, 5])
def test_few_seeds_are_not_taken_at_their_word(R):
    """5% tests of a mean that is zero, seeds differing much, a little, not at all: 3 to 7% reject. The mixture of two
    Student's by the estimated share of the seeds, which was used before, rejects more than 6.5% where they differ."""
    rng = np.random.default_rng(R)
    P, n = 60, 1500
    for of_seeds in (0.0, 0.1, 0.3):
        rejected = mixed = 0
        for _ in range(n):
            cells = of_seeds * rng.normal(size=(R, 1)) + rng.normal(size=(R, P))
            spread, mean = crossed_spread(cells), float(cells.mean())
            rejected += spread.p_value(mean) < 0.05
            seeds, prompts, noise = mean_squares(cells)
            share = (
                seeds / (seeds + prompts) + max(seeds - noise, 0) / max(seeds + prompts - noise, seeds, prompts)
            ) / 2
            critical = share * stats.t.ppf(0.975, R - 1) + (1 - share) * stats.t.ppf(0.975, P - 1)
            mixed += abs(mean) / spread.standard_error > critical
        assert 0.03 < rejected / n < 0.07, (of_seeds, rejected / n)
    assert mixed / n > 0.055 and mixed > rejected, (mixed / n, rejected / n)


def test_corrections_by_hand():
    # Sorted 0.01, 0.02, 0.04: Holm 0.03, 0.04, 0.04; Benjamini-Hochberg 0.03, 0.03, 0.04.
    out = corrected([0.04, None, 0.01, 0.02])
    assert [row["p_value_holm"] for row in out] == pytest.approx([0.04, None, 0.03, 0.04], nan_ok=True)
    assert [row["p_value_bh"] for row in out] == pytest.approx([0.04, None, 0.03, 0.03], nan_ok=True)
    assert corrected([None]) == [{"p_value_holm": None, "p_value_bh": None}]


def observations(rng, n=24, slope=5.0, rival=False):
    rows = []
    for i in range(n):
        similarity = float(rng.normal())
        rows.append(
            {
                "task": ("list", "pure_bad")[i % 2],
                "similarity": similarity,
                "diversity": -similarity + 0.01 * float(rng.normal()) if rival else float(rng.normal()),
                "response_chars": float(rng.normal()),
                "list_share_percent": 50.0,
                "initial_percent": None,
                "delta_points": 30.0 * (i % 2) + slope * similarity + float(rng.normal()),
            }
        )
    return rows


def test_regression_recovers_the_slope_and_names_what_it_cannot_say():
    rows = observations(np.random.default_rng(0), n=60)
    sd = np.std([row["similarity"] for row in rows], ddof=1)
    result = regress(rows, "delta_points")
    alone = {row["predictor"]: row for row in result["alone"]}
    assert alone["similarity"]["points_per_sd"] == pytest.approx(5 * sd, abs=0.5)
    low, high = alone["similarity"]["interval"]
    assert low < 5 * sd < high
    assert alone["diversity"]["interval"][0] < 0 < alone["diversity"]["interval"][1]
    assert "does not vary" in alone["list_share_percent"]["reason"]
    assert "degrees of freedom" in alone["initial_percent"]["reason"]
    assert [c["predictor"] for c in result["together"]["coefficients"]] == ["similarity", "diversity", "response_chars"]


def test_rivals_that_move_together_have_a_large_variance_inflation():
    result = regress(observations(np.random.default_rng(0), rival=True), "delta_points")
    inflation = {c["predictor"]: c["variance_inflation"] for c in result["together"]["coefficients"]}
    assert inflation["similarity"] > 100 and inflation["response_chars"] < 2


def test_shuffled_durability_gives_no_regression_finding_beyond_the_nominal_rate():
    rng = np.random.default_rng(9)
    n, found = 300, 0
    for _ in range(n):
        rows = observations(rng, n=24, slope=0.0)
        found += regress(rows, "delta_points", ("similarity",))["alone"][0]["p_value"] < 0.05
    assert found / n <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / n)


def test_too_few_subsets_give_a_reason_and_no_number():
    result = regress(observations(np.random.default_rng(0), n=4), "delta_points")
    assert all("reason" in row for row in result["alone"]) and "reason" in result["together"]


def test_matched_capability_is_the_intercept():
    pairs = [{"difference_points": 2.0 + 3.0 * u, "utility_difference": u} for u in (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5)]
    result = matched_capability(pairs)
    assert result["difference_points"] == pytest.approx(2.0) and result["points_per_utility_unit"] == pytest.approx(3.0)
    assert "reason" in matched_capability(pairs[:3])


def test_the_seeds_needed_find_the_difference_as_often_as_promised():
    """A pilot of 40 seeds says how many seeds find 0.1 in 80% of the studies; such studies are then simulated."""
    rng = np.random.default_rng(1)

    def draw(R, effect):
        return effect + 0.12 * rng.normal(size=(R, 1)) + 0.4 * rng.normal(size=(R, 60))

    n = seeds_needed(draw(40, 0.0), 0.1)
    assert 12 <= n <= 22  # the one-sample t-test of means with sd 0.13 needs 16
    found = np.mean([crossed_spread(x := draw(n, 0.1)).p_value(float(x.mean())) < 0.05 for _ in range(600)])
    assert found == pytest.approx(0.8, abs=0.08)


def test_more_spread_between_runs_needs_more_seeds_and_steady_prompts_need_more_prompts():
    rng = np.random.default_rng(2)
    one = 0.3 * rng.normal(size=(1, 140))
    counts = [seeds_needed(one, 0.05, between_runs=sd**2) for sd in (0.0, 0.03, 0.06, 0.1)]
    assert counts == sorted(counts) and counts[0] < counts[-1]
    assert seeds_needed(np.repeat(rng.normal(size=(1, 20)), 5, axis=0), 0.01) is None


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(2, 12)), elements=st.sampled_from([0.0, 0.5, 1.0]))
)
@settings(max_examples=300, deadline=None)
def test_no_interval_is_without_width(cells):
    """Whatever was seen, and all the more where nothing varied: constant cells, equal means, one seed."""
    for rate in (True, False):
        mean, low, high = crossed_bootstrap(cells, rate=rate, n_resamples=50)
        assert low <= mean + 1e-12 and mean <= high + 1e-12 and high - low > 1e-6
    assert crossed_spread(cells).standard_error > 0
    assert 0 < paired_difference_fast(cells) <= 1
