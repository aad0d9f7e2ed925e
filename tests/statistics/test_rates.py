"""Closed forms, published examples, independent implementations, and coverage by simulation."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.statistics.agreement import cohen_kappa, interval_distance, krippendorff_alpha
from guardrail.statistics.rates import best_of_k, clustered_interval, wilson_interval
from guardrail.statistics.resampling import bootstrap_mean, paired_permutation_test
from guardrail.statistics.testing import benjamini_hochberg, holm, minimum_detectable_difference


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17:857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_reproduces_newcombes_table(successes, n, low, high):
    found = wilson_interval(successes, n)
    assert found[0] == pytest.approx(low, abs=6e-5)
    assert found[1] == pytest.approx(high, abs=6e-5)


def test_wilson_ends_solve_the_score_equation():
    """Each end p satisfies |p_hat - p| = z sqrt(p (1 - p) / n)."""
    z = 1.959963984540054
    for p in wilson_interval(7, 30):
        assert abs(7 / 30 - p) == pytest.approx(z * math.sqrt(p * (1 - p) / 30), rel=1e-9)


def test_wilson_covers_at_the_extremes():
    assert wilson_interval(0, 10)[0] == 0.0
    assert wilson_interval(10, 10)[1] == 1.0
    for bad in ((1, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError):
            wilson_interval(*bad)


def test_wilson_coverage_is_near_nominal():
    """Exact coverage, summed over the binomial distribution (no simulation noise)."""
    n, coverages = 100, []
    for p in (0.05, 0.1, 0.3, 0.5, 0.8):
        covered = 0.0
        for k in range(n + 1):
            low, high = wilson_interval(k, n)
            covered += math.comb(n, k) * p**k * (1 - p) ** (n - k) * (low <= p <= high)
        coverages.append(covered)
    assert min(coverages) > 0.92
    assert 0.94 < sum(coverages) / len(coverages) < 0.965


def test_cohen_kappa_of_the_textbook_table():
    """20 both yes, 15 both no, 5 and 10 apart: p_o = 0.7, p_e = 0.5 * 0.6 + 0.5 * 0.4 = 0.5, kappa = 0.4."""
    pairs = [(1, 1)] * 20 + [(1, 0)] * 5 + [(0, 1)] * 10 + [(0, 0)] * 15
    assert cohen_kappa([a for a, _ in pairs], [b for _, b in pairs]) == pytest.approx(0.4)


def test_cohen_kappa_equals_scikit_learn():
    from sklearn.metrics import cohen_kappa_score

    draw = random.Random(1)
    a = [draw.choice("xyz") for _ in range(200)]
    b = [x if draw.random() < 0.6 else draw.choice("xyz") for x in a]
    assert cohen_kappa(a, b) == pytest.approx(cohen_kappa_score(a, b))


def test_cohen_kappa_of_two_constant_raters_is_undefined():
    assert cohen_kappa([1, 1, 1], [1, 1, 1]) is None


KRIPPENDORFF_2011 = [  # "Computing Krippendorff's Alpha-Reliability", section C: 4 observers, 12 units
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]


def test_krippendorff_alpha_of_the_published_example():
    assert krippendorff_alpha(KRIPPENDORFF_2011) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(KRIPPENDORFF_2011, interval_distance) == pytest.approx(0.849, abs=5e-4)


def test_krippendorff_alpha_limits():
    assert krippendorff_alpha([[1, 0, 1], [1, 0, 1]]) == pytest.approx(1.0)
    assert krippendorff_alpha([[1, 1], [1, 1]]) is None  # nothing varies
    assert krippendorff_alpha([[1, None], [None, 0]]) is None  # nothing can be paired


def test_bootstrap_interval_covers_a_paired_difference():
    """Differences in {-1, 0, 1} with known mean: 93 to 97 percent of the intervals cover it (400 simulations)."""
    rng = np.random.default_rng(5)
    truth, hits, runs = 0.1, 0, 400
    for i in range(runs):
        sample = rng.choice([-1.0, 0.0, 1.0], size=120, p=[0.1, 0.7, 0.2])
        estimate = bootstrap_mean(sample, n_resamples=500, seed=i)
        hits += estimate.low <= truth <= estimate.high
    assert 0.92 <= hits / runs <= 0.975  # Monte Carlo error of 400 runs: two standard errors are 2.2 points


def test_bootstrap_over_prompts_is_wider_than_over_rows():
    """Five equal samples of a prompt carry no more than one: the naive interval is too short by about sqrt(5)."""
    rng = np.random.default_rng(0)
    per_prompt = rng.integers(0, 2, 60).astype(float)
    values, prompts = np.repeat(per_prompt, 5), np.repeat(np.arange(60), 5)
    naive, clustered = bootstrap_mean(values), bootstrap_mean(values, prompts.tolist())
    ratio = (clustered.high - clustered.low) / (naive.high - naive.low)
    assert ratio == pytest.approx(math.sqrt(5), rel=0.12)
    assert clustered.value == naive.value


def test_nothing_seen_is_not_nothing_there():
    """0 of 330 prompts with 5 answers each: Wilson's limit of 0 in 330 (the answers of a prompt are no new prompts)."""
    values, prompts = [0.0] * 1650, [i // 5 for i in range(1650)]
    found = bootstrap_mean(values, prompts, limits=(0.0, 1.0))
    assert (found.value, found.low) == (0.0, 0.0) and found.high == pytest.approx(wilson_interval(0, 330)[1])
    found = bootstrap_mean([1.0] * 40, limits=(0.0, 1.0))
    assert found.high == 1.0 and found.low == pytest.approx(wilson_interval(40, 40)[0])
    found = bootstrap_mean([0.0] * 28, limits=(-1.0, 1.0))  # no pair differs
    assert -found.low == found.high == pytest.approx(wilson_interval(0, 28)[1])
    assert bootstrap_mean([0.5], limits=(0.0, 1.0)).high > 0.8  # one prompt says little


def test_permutation_test_is_exact_for_few_rows():
    """Five differences of one sign: 2 of 32 sign patterns are as extreme."""
    assert paired_permutation_test([1, 1, 1, 1, 1, 0, 0]) == pytest.approx(2 / 32)
    assert paired_permutation_test([0, 0, 0]) == 1.0
    differences = [0.3, -0.1, 0.7, 0.2, -0.4]
    observed = abs(sum(differences))
    patterns = list(itertools.product((-1, 1), repeat=5))
    expected = sum(abs(sum(s * d for s, d in zip(p, differences, strict=True))) >= observed - 1e-9 for p in patterns)
    assert paired_permutation_test(differences) == pytest.approx(expected / 32)


def test_permutation_test_flips_the_samples_of_a_prompt_together():
    """Four copies of two prompts are two units: 2 of 4 patterns are as extreme, not 2 of 256."""
    assert paired_permutation_test([1.0] * 8, ["a"] * 4 + ["b"] * 4) == pytest.approx(0.5)


def test_permutation_test_holds_its_level_without_an_effect():
    rng = np.random.default_rng(3)
    runs = 300
    hits = sum(
        paired_permutation_test(rng.choice([-1.0, 0.0, 1.0], size=60), n_resamples=300, seed=i) <= 0.05
        for i in range(runs)
    )
    assert hits / runs <= 0.08


def test_corrections_equal_statsmodels():
    from statsmodels.stats.multitest import multipletests

    p = [0.001, 0.04, 0.03, 0.005, 0.5, 0.03]
    assert holm(p) == pytest.approx(list(multipletests(p, method="holm")[1]))
    assert benjamini_hochberg(p) == pytest.approx(list(multipletests(p, method="fdr_bh")[1]))


def test_minimum_detectable_difference_has_the_promised_power():
    """At the returned difference the normal test of paired differences rejects in about 80% of simulated studies."""
    n, d = 330, 0.2
    x = minimum_detectable_difference(n, discordant_fraction=d)
    rng = np.random.default_rng(0)
    rejected = 0
    for _ in range(1500):
        sample = rng.choice([-1.0, 0.0, 1.0], size=n, p=[(d - x) / 2, 1 - d, (d + x) / 2])
        spread = math.sqrt((sample**2).sum())  # under the null each non-zero difference has a random sign
        rejected += abs(sample.sum()) > 1.959964 * spread
    assert rejected / 1500 == pytest.approx(0.8, abs=0.04)


def test_minimum_detectable_difference_never_promises_the_impossible():
    assert minimum_detectable_difference(140, discordant_fraction=0.0) >= 6 / 140  # 5 rows cannot reach p < 0.05
    assert minimum_detectable_difference(3, discordant_fraction=0.3) == 1.0
    two_groups = minimum_detectable_difference(100, rate=0.5)
    assert two_groups == pytest.approx((1.959964 + 0.841621) * math.sqrt(0.5 / 100), rel=1e-5)


def test_best_of_k_equals_enumeration():
    flags = [1, 1, 0, 0, 0, 0]
    for k in (1, 2, 3, 6):
        draws = list(itertools.combinations(flags, k))
        assert best_of_k(2, 6, k) == pytest.approx(sum(any(d) for d in draws) / len(draws))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=40))
def test_a_clustered_interval_has_a_width_and_holds_the_rate(prompts):
    hits = [hit for samples in prompts for hit in samples]
    clusters = [number for number, samples in enumerate(prompts) for _ in samples]
    low, high = clustered_interval(hits, clusters)
    assert 0 <= low <= sum(hits) / len(hits) <= high <= 1 and low < high
    mirrored = clustered_interval([not hit for hit in hits], clusters)
    assert mirrored == pytest.approx((1 - high, 1 - low))


def test_samples_that_always_agree_count_once_and_independent_ones_all():
    hits = [i % 4 == 0 for i in range(400)]
    fives = [hit for hit in hits for _ in range(5)]
    assert clustered_interval(fives, [i // 5 for i in range(2000)]) == pytest.approx(
        wilson_interval(100, 400), abs=2e-3
    )
    assert clustered_interval(hits, range(400)) == pytest.approx(wilson_interval(100, 400), abs=2e-3)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3, 0.5])
@pytest.mark.parametrize("correlation", [0.02, 0.3, 0.8])
def test_clustered_intervals_cover(rate, correlation):
    """Beta-binomial answers, five to a prompt: 95% intervals hold the true rate in 93 to 97% of studies, or more."""
    rng = np.random.default_rng(7)
    prompts, samples, studies = 120, 5, 400
    a, b = (share * (1 - correlation) / correlation for share in (rate, 1 - rate))
    counts = rng.binomial(samples, rng.beta(a, b, (studies, prompts)))
    clusters = np.repeat(np.arange(prompts), samples)
    held = 0
    for row in counts:
        hits = (np.arange(samples) < row[:, None]).ravel()
        low, high = clustered_interval(hits, clusters)
        held += low <= rate <= high
    assert held / studies >= 0.93 - 2 * math.sqrt(0.95 * 0.05 / studies)
