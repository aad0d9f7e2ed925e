"""Every selector: same interface, exact budget, no repeats; and each control controls what it says."""

import numpy as np
import pytest
import torch

from guardrail.core.errors import UserError
from guardrail.similarity.scorers import cosines
from guardrail.similarity.selection.composition import answer_text, is_list, length_chars
from guardrail.similarity.selection.diversity import describe_diversity
from guardrail.similarity.selection.options import SELECTORS, file_stem
from guardrail.similarity.selection.selectors import Pool, farthest_first, length_strata, stratified

from .conftest import make_pool, random_matrix

N, WIDTH = 300, 12


@pytest.fixture(scope="module")
def pool():
    rows = make_pool(N)
    matrix, anchors = random_matrix(N, WIDTH, 0), random_matrix(9, WIDTH, 1)
    # a similarity that goes with length, as real scores do: the matched selectors have something to undo
    lengths = torch.tensor([float(length_chars(row)) for row in rows])
    matrix += anchors[0] * (lengths / lengths.max())[:, None] * 2
    return Pool(
        rows,
        seed=3,
        matrix=matrix,
        anchors=anchors,
        scores=cosines.score_pool(matrix, anchors),
        anchor_lengths=[30, 200],
        bi_anchor_scores=cosines.mean_scores(matrix, anchors[:4]) - cosines.mean_scores(matrix, anchors[4:]),
    )


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("n", [1, 50, N])
def test_exact_budget_without_repeats_and_the_same_every_time(pool, name, n):
    rows = SELECTORS.load(name)(pool, n)
    expected = N if name == "full" else n
    assert rows.dtype == np.int64 and len(rows) == len(set(rows.tolist())) == expected
    assert rows.min() >= 0 and rows.max() < N
    assert rows.tolist() == SELECTORS.load(name)(pool, n).tolist()


def test_names_and_needs_agree():
    assert all(callable(SELECTORS.load(name)) and SELECTORS.facts(name)["rule"] for name in SELECTORS)
    assert (file_stem("high", 10), file_stem("low", 10), file_stem("random", 10)) == ("top10", "bottom10", "random10")


def test_high_and_low_are_the_ends_of_one_ranking(pool):
    high, low = SELECTORS.load("high")(pool, 40), SELECTORS.load("low")(pool, 40)
    order = np.argsort(-pool.scores, kind="stable")
    assert high.tolist() == order[:40].tolist() and low.tolist() == order[-40:].tolist()
    assert pool.scores[low[-1]] == pool.scores.min(), "least similar last"


def test_random_depends_on_the_seed_only(pool):
    other = Pool(pool.rows, seed=4)
    assert SELECTORS.load("random")(pool, 40).tolist() != SELECTORS.load("random")(other, 40).tolist()
    assert SELECTORS.load("random")(Pool(pool.rows, seed=3), 40).tolist() == SELECTORS.load("random")(pool, 40).tolist()


def mean(pool, rows, what):
    return np.mean([what(pool.rows[i]) for i in rows])


def test_length_matched_arms_have_the_pools_lengths_and_still_differ_in_similarity(pool):
    high, low = (SELECTORS.load(f"{end}_length_matched")(pool, 60) for end in ("high", "low"))
    plain = [SELECTORS.load(end)(pool, 60) for end in ("high", "low")]
    gap = abs(mean(pool, high, length_chars) - mean(pool, low, length_chars))
    plain_gap = abs(mean(pool, plain[0], length_chars) - mean(pool, plain[1], length_chars))
    assert gap < 0.2 * plain_gap
    assert pool.scores[high].mean() > pool.scores[low].mean()
    strata = length_strata([length_chars(row) for row in pool.rows])
    for arm in (high, low):
        assert np.abs(np.bincount(strata[arm], minlength=10) - 60 * np.bincount(strata) / N).max() < 1


def test_category_and_format_matched_arms_have_the_pools_shares(pool):
    for end in ("high", "low"):
        rows = SELECTORS.load(f"{end}_category_matched")(pool, 100)
        for name in "abc":
            share = np.mean([row["category"] == name for row in pool.rows])
            assert abs(sum(pool.rows[i]["category"] == name for i in rows) - 100 * share) < 1
        rows = SELECTORS.load(f"{end}_format_matched")(pool, 99)
        share = np.mean([is_list(answer_text(row)) for row in pool.rows])
        assert abs(sum(is_list(answer_text(pool.rows[i])) for i in rows) - 99 * share) < 1


def test_category_matching_without_categories_is_refused():
    rows = [{k: v for k, v in row.items() if k != "category"} for row in make_pool(10)]
    with pytest.raises(UserError, match="category"):
        SELECTORS.load("high_category_matched")(Pool(rows, scores=np.zeros(10, np.float32)), 3)


def test_stratified_quotas_sum_to_n_and_never_exceed_a_stratum():
    strata = np.asarray([0] * 1 + [1] * 2 + [2] * 97)
    scores = np.arange(100, dtype=np.float32)
    for n in range(1, 101):
        assert len(stratified(scores, strata, n, True)) == n


def test_diversity_controls_swap_diversity(pool):
    def diversity(name):
        rows = SELECTORS.load(name)(pool, 40)
        return describe_diversity(pool.matrix[torch.from_numpy(rows)])

    assert diversity("low_sim_low_div")["mean_pairwise_cosine"] > diversity("low")["mean_pairwise_cosine"]
    assert diversity("high_sim_high_div")["vendi_score"] > diversity("high")["vendi_score"]
    low = pool.scores[SELECTORS.load("low_sim_low_div")(pool, 40)].mean()
    high = pool.scores[SELECTORS.load("high_sim_high_div")(pool, 40)].mean()
    assert low < pool.scores.mean() < high


def test_diversity_controls_say_when_the_pool_is_too_small_for_them(pool):
    small = Pool(pool.rows, matrix=pool.matrix, anchors=pool.anchors, scores=pool.scores)
    SELECTORS.load("high_sim_high_div")(small, 200)
    assert "1.50 candidates" in small.notes["high_sim_high_div"][0]


def test_farthest_first_by_hand():
    unit = torch.tensor([[1.0, 0.0], [0.99, 0.141], [0.0, 1.0], [-1.0, 0.0]])
    assert farthest_first(unit, 4) == [0, 3, 2, 1]


def test_length_selectors(pool):
    lengths = np.asarray([length_chars(row) for row in pool.rows])
    assert lengths[SELECTORS.load("longest")(pool, 20)].min() >= np.sort(lengths)[-20]
    assert lengths[SELECTORS.load("shortest")(pool, 20)].max() <= np.sort(lengths)[19]
    distance = np.abs(np.log(lengths)[:, None] - np.log([30, 200])).min(axis=1)
    near, far = SELECTORS.load("length_high")(pool, 20), SELECTORS.load("length_low")(pool, 20)
    assert distance[near].max() <= np.sort(distance)[19] + 1e-9
    assert distance[far].min() >= np.sort(distance)[-20] - 1e-9


def test_bi_anchor_is_mean_cosine_to_unsafe_minus_safe(pool):
    """LARF's own arithmetic: mean over anchor pairs of (cos to unsafe_i - cos to safe_i), equal numbers of both."""
    from sklearn.metrics.pairwise import cosine_similarity

    unsafe, safe = pool.anchors[:4], pool.anchors[4:8]
    matrix = pool.matrix.numpy()
    larf = (cosine_similarity(matrix, unsafe.numpy()) - cosine_similarity(matrix, safe.numpy())).mean(axis=1)
    ours = cosines.mean_scores(pool.matrix, unsafe) - cosines.mean_scores(pool.matrix, safe)
    np.testing.assert_allclose(ours, larf, atol=1e-6)
    other = Pool(pool.rows, bi_anchor_scores=ours)
    assert SELECTORS.load("bi_anchor_high")(other, 5).tolist() == np.argsort(-ours, kind="stable")[:5].tolist()
