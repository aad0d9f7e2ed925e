"""Scores and subsets are the same numbers, bit for bit, whatever the blocks, the threads and the row order."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.core.errors import UserError
from guardrail.data.rows import normalise_rows
from guardrail.similarity.scorers import SCORERS, Inputs, cosines, score_rows
from guardrail.similarity.selection import ranking
from guardrail.similarity.selection.options import SELECTORS
from guardrail.similarity.selection.selectors import Pool

from .conftest import make_pool, random_matrix


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@st.composite
def matrices(draw):
    """A pool and anchors with duplicates, zero rows, scaled copies and rows that are nearly alike."""
    seed = draw(st.integers(0, 10**6))
    N, M, D = draw(st.integers(1, 60)), draw(st.integers(1, 90)), draw(st.sampled_from([1, 2, 7, 64]))
    pool, anchors = random_matrix(N, D, seed), random_matrix(M, D, seed + 1)
    near = draw(st.sampled_from([0.0, 1e-7, 1e-4]))
    if draw(st.booleans()):
        anchors = anchors[:1] + near * anchors
    if draw(st.booleans()):
        pool[: N // 2] = anchors[0] * torch.linspace(0.5, 2.0, N // 2)[:, None] + near * pool[: N // 2]
    if draw(st.booleans()):
        pool[N // 2 :: 3] = 0
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    return pool.to(dtype), anchors.to(dtype)


@settings(max_examples=60, deadline=None)
@given(matrices(), st.integers(1, 90), st.sampled_from([16, 32]))
def test_scores_are_the_same_in_other_blocks_orders_and_paths(pair, avg_n, block):
    pool, anchors = pair
    avg_n = min(avg_n, anchors.shape[0])
    scores = cosines.score_pool(pool, anchors, avg_n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cosines, "MAX_BLOCK_ROWS", block)
        patch.setattr(cosines, "CHUNK_BYTES", 1)
        assert (cosines.score_pool(pool, anchors, avg_n) == scores).all()
        patch.setattr(cosines, "MAX_CANDIDATES", 0)  # every cosine in fixed point
        assert (cosines.score_pool(pool, anchors, avg_n) == scores).all()
    alone = [cosines.score_pool(pool[i : i + 1], anchors, avg_n)[0] for i in range(len(pool))]
    assert alone == scores.tolist()
    assert (cosines.score_pool(pool.flip(0), anchors.flip(0), avg_n)[::-1] == scores).all()
    reference = (
        torch.nn.functional.normalize(pool.double(), dim=1) @ torch.nn.functional.normalize(anchors.double(), dim=1).T
    )
    np.testing.assert_allclose(scores, reference.sort(dim=1).values[:, -avg_n:].mean(dim=1), atol=2e-7)


@settings(max_examples=60, deadline=None)
@given(matrices(), st.integers(1, 60), st.booleans())
def test_places_in_lists_are_those_of_exact_cosines(pair, depth, nearest):
    """Candidates' way and the way of all cosines, against lists sorted from the exact cosines of every pair."""
    pool, anchors = pair
    N, depth = len(pool), min(depth, len(pool))
    exact = (cosines.fixed_point(pool) @ cosines.fixed_point(anchors).T).numpy() / cosines.FIXED_POINT**2
    sign = -1 if nearest else 1
    ranks, values = np.full(N, N), np.zeros(N)
    for column in exact.T:
        for place, row in enumerate(np.argsort(sign * column, kind="stable")[:depth]):
            if (place, sign * column[row]) < (ranks[row], sign * values[row]):
                ranks[row], values[row] = place, column[row]
    for candidates in (8, 10**9, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cosines, "MAX_CANDIDATES", candidates)
            patch.setattr(ranking, "BUDGET_BYTES", 1 << 16)  # few anchors at a time
            found = ranking.best_ranks(pool, anchors, depth, nearest)
        assert found[0].tolist() == ranks.tolist() and found[1].tolist() == values.tolist()


def test_the_error_of_a_float32_cosine_is_within_its_margin():
    for width in (16, 1024, 4096):
        for shift, scale in ((0.0, 1.0), (5.0, 1.0), (5.0, 100.0)):  # also all positive, and one large dimension
            a, b = (random_matrix(100, width, seed) + shift for seed in (0, 1))
            a[:, 3] *= scale
            b[:, 3] *= scale
            unit = [torch.nn.functional.normalize(one, dim=1) for one in (a, b)]
            exact = (cosines.fixed_point(a) @ cosines.fixed_point(b).T).numpy() / cosines.FIXED_POINT**2
            assert np.abs((unit[0] @ unit[1].T).numpy() - exact).max() < cosines.margin(width) / 4


@pytest.mark.parametrize("avg_n", [1, 4])
def test_scores_do_not_depend_on_threads(avg_n):
    """The plain float32 product of these sizes does differ between one thread and several on some machines."""
    pool, anchors = random_matrix(700, 515, 0), random_matrix(129, 515, 1)
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(cosines.score_pool(pool, anchors, avg_n).tolist())
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("name", [name for name in SELECTORS if not name.startswith(("length_", "bi_"))])
@pytest.mark.parametrize("merge", ["score", "union", "round_robin"])
def test_subsets_do_not_depend_on_blocks_or_threads(name, merge, monkeypatch):
    rows = make_pool(90)
    matrix, anchors = random_matrix(90, 200, 0), random_matrix(30, 200, 1)
    matrix[10:20] = matrix[5]  # duplicates: their order is the rows'
    found = []
    for block, count in ((4096, 1), (16, 1), (4096, 2)):
        monkeypatch.setattr(cosines, "MAX_BLOCK_ROWS", block)
        torch.set_num_threads(count)
        scores = cosines.score_pool(matrix, anchors)
        found.append(SELECTORS.load(name)(Pool(rows, 3, matrix, anchors, scores, merge), 20).tolist())
    assert found[0] == found[1] == found[2]


POOL_SCORERS = ("similarity", "length", "random")  # the functions; the others read rows through a model


@pytest.mark.parametrize("name", POOL_SCORERS)
def test_every_scorer_gives_one_number_per_row(name):
    rows = make_pool(20)
    inputs = Inputs(representations=random_matrix(20, 8, 0), anchors=random_matrix(3, 8, 1), avg_n=2)
    scores = score_rows(name, rows, inputs)
    assert scores.shape == (20,) and scores.dtype == np.float32 and np.isfinite(scores).all()
    assert (scores == score_rows(name, rows, inputs)).all() and SCORERS.facts(name)["cost"]


def test_a_scorer_without_what_it_needs_is_refused():
    with pytest.raises(UserError, match="scorer similarity needs representations and anchors"):
        score_rows("similarity", make_pool(3), Inputs())
    with pytest.raises(UserError, match="did you mean 'similarity'"):
        score_rows("similarty", make_pool(3), Inputs())


def test_longer_answers_score_higher_by_length():
    rows = normalise_rows([{"prompt": "x", "response": "y" * n} for n in (3, 1, 2)])
    assert score_rows("length", rows, Inputs()).tolist() == [3, 1, 2]
