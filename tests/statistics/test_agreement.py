"""Spearman's correlation against scipy's, its interval against a known correlation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from guardrail.statistics import agreement


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=30))
def test_spearman_is_scipys(pairs):
    first, second = zip(*pairs, strict=True)
    found = agreement.spearman(first, second)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(stats.spearmanr(first, second).statistic)


def test_spearman_interval_covers_a_known_correlation():
    """Normal pairs with correlation 0.6 have rank correlation 6 / pi * asin(0.3) = 0.582."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(40):
        x = rng.normal(size=80)
        y = 0.6 * x + 0.8 * rng.normal(size=80)
        found = agreement.spearman_interval(x, y, n_resamples=100)
        covered += found.low <= 6 / np.pi * np.arcsin(0.3) <= found.high
    assert 34 <= covered <= 40
    with pytest.raises(ValueError, match="the same for all"):
        agreement.spearman_interval([1, 1, 1], [1, 2, 3])
