"""Two one-sided tests: how often "equivalent" is said where the truth lies on the margin, and where it is right."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.weightstats import ttost_paired

from guardrail.statistics.equivalence import equivalence_of_answers, equivalence_of_runs

MARGIN = 0.10


def answers(rng, rates, spread_of_seeds, n_prompts):
    """Two arms of judged answers (R, P) whose true rates are ``rates``; prompts are shared, runs differ."""
    R = len(spread_of_seeds[0])
    ease = rng.normal(scale=0.15, size=n_prompts)
    out = []
    for rate, seeds in zip(rates, spread_of_seeds, strict=True):
        p = rate + ease[None, :] + seeds[:, None]
        out.append((rng.random((R, n_prompts)) < p).astype(float))
    return out[0] - out[1]


@pytest.mark.parametrize("R", [2, 5])
@pytest.mark.parametrize("sd_of_seeds", [0.0, 0.05])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_difference_as_large_as_the_margin_is_rarely_called_equivalent(R, sd_of_seeds, sign):
    rng = np.random.default_rng(7)
    n, said = 1500, 0
    for _ in range(n):
        spread = rng.normal(scale=sd_of_seeds, size=(2, R))
        difference = answers(rng, (0.45 + sign * MARGIN, 0.45), spread, 140)
        said += equivalence_of_answers(difference, MARGIN)["verdict"] == "equivalent"
    share = said / n
    print(f"R={R} sd={sd_of_seeds} sign={sign}: {share:.4f}")
    assert share <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / n), share
    assert share <= stats.binom.ppf(0.999, n, 0.05) / n


def test_equal_arms_are_found_to_be_equal_with_enough_seeds():
    rng = np.random.default_rng(3)
    found = [
        equivalence_of_answers(answers(rng, (0.5, 0.5), rng.normal(scale=0.02, size=(2, 5)), 300), MARGIN)["verdict"]
        for _ in range(200)
    ]
    assert found.count("equivalent") > 150


def test_runs_are_tested_as_statsmodels_does():
    rng = np.random.default_rng(0)
    for _ in range(20):
        one, two = rng.normal(40, 2, 5), rng.normal(40, 2, 5)
        ours = equivalence_of_runs(one - two, 3.0)
        theirs, _, _ = ttost_paired(one, two, -3.0, 3.0)
        assert ours["p_value"] == pytest.approx(theirs)
        low, high = ours["interval"]
        assert (ours["verdict"] == "equivalent") == (low > -3 and high < 3)


def test_no_difference_found_is_no_equivalence():
    noisy = np.array([30.0, -28.0, 2.0, 25.0, -29.0])
    assert equivalence_of_runs(noisy, 3.0)["verdict"] == "inconclusive"
    assert equivalence_of_runs(np.full(5, 8.0) + np.arange(5) / 10, 3.0)["verdict"] == "different"


def test_one_seed_and_runs_without_spread_are_inconclusive():
    zeros = np.zeros((1, 50))
    assert equivalence_of_answers(zeros, MARGIN)["verdict"] == "inconclusive"
    assert equivalence_of_runs(np.zeros(5), 3.0)["verdict"] == "inconclusive"


def test_answers_that_never_differ_are_bounded_by_the_number_of_prompts():
    assert equivalence_of_answers(np.zeros((5, 140)), MARGIN)["verdict"] == "equivalent"
    assert equivalence_of_answers(np.zeros((5, 4)), MARGIN)["verdict"] == "inconclusive"
