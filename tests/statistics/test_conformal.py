"""Conformal intervals over groups: by hand, and against what they promise."""

import numpy as np
import pytest

from guardrail.statistics.conformal import (
    conformal_p_value,
    group_weights,
    jackknife_plus,
    skill,
    student_interval,
    weighted_quantile,
)


def test_groups_weigh_the_same_whatever_their_size():
    np.testing.assert_allclose(group_weights(["a", "b", "b", "b"]), [1 / 2, 1 / 6, 1 / 6, 1 / 6])


def test_a_weighted_quantile_by_hand():
    values, weights = np.array([3.0, 1.0, 2.0]), np.array([0.2, 0.5, 0.2])
    assert weighted_quantile(values, weights, 0.5) == 1.0
    assert weighted_quantile(values, weights, 0.6) == 2.0
    assert weighted_quantile(values, weights, 0.9) == 3.0
    assert weighted_quantile(values, weights, 0.95) == np.inf, "all of them together weigh 0.9"


def test_jackknife_plus_by_hand():
    """Nine groups of a row: each has weight 1/10, so that the 90% edge is the outermost row's."""
    groups = [f"g{i}" for i in range(9)]
    errors = np.array([1.0, -1, 1, -1, 1, -1, 1, -1, 5])
    assert jackknife_plus(np.full(9, 10.0), errors, groups, 0.9) == (5.0, 15.0)
    assert jackknife_plus(np.full(9, 10.0), errors, groups, 0.8) == (9.0, 11.0)
    # eight groups cannot bound a new one at 90%, whatever their errors
    assert jackknife_plus(np.zeros(8), errors[:8], groups[:8], 0.9) == (-np.inf, np.inf)


def test_many_rows_of_one_group_are_no_further_evidence():
    groups = ["a"] * 50 + ["b"] * 50
    low, high = jackknife_plus(np.zeros(100), np.ones(100), groups, 0.9)
    assert (low, high) == (-np.inf, np.inf)


def test_student_by_hand():
    low, high = student_interval(7.0, np.array([3.0, -3.0, 3.0]), ["a", "b", "c"], 0.9)
    assert high - 7.0 == pytest.approx(2.9200 * 3, rel=1e-4) and 7.0 - low == pytest.approx(high - 7.0)


def test_a_p_value_is_never_below_one_in_g_plus_one():
    scores, groups = np.array([1.0, 2.0, 3.0]), ["a", "b", "c"]
    assert conformal_p_value(9.0, scores, groups) == 0.25
    assert conformal_p_value(2.0, scores, groups) == 0.75
    assert conformal_p_value(0.0, scores, groups) == 1.0


def test_p_values_of_groups_like_the_others_are_uniform():
    rng = np.random.default_rng(0)
    groups = [f"g{i}" for i in range(19)]
    values = [conformal_p_value(rng.normal(), rng.normal(size=19), groups) for _ in range(2000)]
    assert np.mean(np.array(values) <= 0.1) == pytest.approx(0.1, abs=0.02)


def test_skill_by_hand():
    found = skill(np.array([1.0, 1.0]), np.array([2.0, 2.0]), ["a", "b"])
    assert found.value == pytest.approx(0.75) and found.interval == pytest.approx((0.75, 0.75))
    # without a: 1 - 1/4; without b: 1 - 9/4; jackknife error = half their distance, t(1 df, 0.9) = 3.0777
    found = skill(np.array([3.0, 1.0]), np.array([2.0, 2.0]), ["a", "b"])
    assert found.value == pytest.approx(1 - 10 / 8)
    assert found.interval[1] - found.value == pytest.approx(3.0777 * 1.0, rel=1e-4)


def test_one_group_shows_no_skill():
    with pytest.raises(ValueError, match="at least two groups"):
        skill(np.ones(3), np.ones(3), ["a"] * 3)
