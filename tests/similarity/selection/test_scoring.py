"""Scores and rankings against an independent derivation of the public code, ties included (PITFALLS S1 to S3)."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.similarity.scorers import cosines
from guardrail.similarity.selection import ranking

from .conftest import random_matrix


def top_n_score(similarity, avg_n):
    """REFERENCE "Selection": mean of the avg_n largest cosines of every row."""
    return np.sort(similarity, axis=1)[:, ::-1][:, :avg_n].mean(axis=1)


@pytest.mark.parametrize("avg_n", [1, 2, 5, 13])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scores_equal_the_public_definition(avg_n, dtype):
    pool, anchors = random_matrix(101, 24, 0).to(dtype), random_matrix(13, 24, 1).to(dtype)
    expected = top_n_score(cosine_similarity(pool.float().numpy(), anchors.float().numpy()), avg_n)
    got = cosines.score_pool(pool, anchors, avg_n)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("avg_n", [1, 3, 40])
def test_scores_do_not_depend_on_the_blocks(avg_n, monkeypatch):
    pool, anchors = random_matrix(210, 8, 0), random_matrix(97, 8, 1)
    whole = cosines.score_pool(pool, anchors, avg_n)
    monkeypatch.setattr(cosines, "MAX_BLOCK_ROWS", 16)
    monkeypatch.setattr(cosines, "MAX_COPY_BYTES", 0)
    np.testing.assert_allclose(cosines.score_pool(pool, anchors, avg_n), whole, atol=1e-6)


def test_a_known_case_by_hand():
    """Cosines of (1,0) and (1,1) to (2,0), (0,3): [1, 0] and [sqrt(.5), sqrt(.5)]."""
    pool, anchors = torch.tensor([[5.0, 0.0], [1.0, 1.0]]), torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    np.testing.assert_allclose(cosines.score_pool(pool, anchors), [1.0, 0.5**0.5], atol=1e-7)
    np.testing.assert_allclose(cosines.score_pool(pool, anchors, 2), [0.5, 0.5**0.5], atol=1e-7)


def test_scale_of_rows_is_irrelevant_and_zero_rows_score_zero():
    pool, anchors = random_matrix(30, 8, 0), random_matrix(5, 8, 1)
    scale = torch.linspace(0.01, 100, 30)[:, None]
    np.testing.assert_allclose(
        cosines.score_pool(pool * scale, anchors * 7), cosines.score_pool(pool, anchors), atol=1e-6
    )
    pool[3] = 0
    assert cosines.score_pool(pool, anchors)[3] == 0


def test_identical_rows_tie_exactly_and_go_by_row_order(monkeypatch):
    monkeypatch.setattr(cosines, "MAX_BLOCK_ROWS", 16)
    pool = random_matrix(100, 33, 0)
    pool[[17, 40, 99]] = pool[2].clone()
    scores = cosines.score_pool(pool, random_matrix(21, 33, 1))
    assert len({scores[i] for i in (2, 17, 40, 99)}) == 1
    order = ranking.rank_rows(scores).tolist()
    places = [order.index(i) for i in (2, 17, 40, 99)]
    assert places == list(range(places[0], places[0] + 4))


def test_row_order_of_pool_and_anchors_does_not_matter():
    pool, anchors = random_matrix(150, 16, 0), random_matrix(40, 16, 1)
    permutation = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    a = cosines.score_pool(pool, anchors, 3)
    b = cosines.score_pool(pool[permutation], anchors.flip(0), 3)
    np.testing.assert_allclose(a[permutation.numpy()], b, atol=1e-6)
    assert ranking.rank_rows(a)[:20].tolist() == permutation[ranking.rank_rows(b)[:20]].tolist()


def test_nearest_anchors():
    pool, anchors = random_matrix(50, 6, 0), random_matrix(33, 6, 1)
    similarity = cosine_similarity(pool.numpy(), anchors.numpy())
    index, value = cosines.nearest_anchors(pool, anchors)
    assert index.tolist() == similarity.argmax(axis=1).tolist()
    np.testing.assert_allclose(value, similarity.max(axis=1), atol=1e-6)


@pytest.mark.parametrize(
    ("pool", "anchors", "avg_n", "message"),
    [
        (torch.ones(3, 4), torch.ones(2, 5), 1, "width 4, the anchors 5"),
        (torch.ones(3, 4), torch.ones(2, 4), 3, "between 1 and the number of anchor rows, 2"),
        (torch.tensor([[1.0, float("nan")], [1.0, 2.0]]), torch.ones(1, 2), 1, "1 of 2 .*rows 0"),
        (torch.ones(2, 2), torch.tensor([[float("inf"), 1.0]]), 1, "anchors: 1 of 1"),
    ],
)
def test_bad_input(pool, anchors, avg_n, message):
    with pytest.raises(UserError, match=message):
        cosines.score_pool(pool, anchors, avg_n)


def lists_of(similarity, nearest):
    """Every anchor's ranking of the pool, ties by row order."""
    sign = -1 if nearest else 1
    return [np.argsort(sign * similarity[:, j], kind="stable") for j in range(similarity.shape[1])]


def brute_union(similarity, scores, n, nearest):
    lists = lists_of(similarity, nearest)
    depth = next(k for k in range(1, len(scores) + 1) if len({r for one in lists for r in one[:k]}) >= n)
    union = sorted({int(r) for one in lists for r in one[:depth]})
    return sorted(union, key=lambda r: (-scores[r] if nearest else scores[r], r))[:n]


def brute_round_robin(similarity, n, nearest):
    lists, out = lists_of(similarity, nearest), []
    for depth in range(similarity.shape[0]):
        proposals = sorted({(int(one[depth]), j) for j, one in enumerate(lists)})
        best = {}
        for row, j in proposals:
            value = similarity[row, j] if nearest else -similarity[row, j]
            best[row] = max(best.get(row, -2), value)
        out += [row for row in sorted(best, key=lambda r: (-best[r], r)) if row not in out]
        if len(out) >= n:
            return out[:n]
    return out


@pytest.mark.parametrize("nearest", [True, False])
@pytest.mark.parametrize("n", [1, 7, 30, 61])
@pytest.mark.parametrize("anchors_alike", [False, True])
def test_merge_rules_against_brute_force(n, nearest, anchors_alike):
    pool, anchors = random_matrix(61, 8, 0), random_matrix(9, 8, 1)
    if anchors_alike:  # lists that overlap almost wholly: the search has to go deep
        anchors = anchors[:1] + 0.01 * anchors
    similarity = cosine_similarity(pool.numpy(), anchors.numpy())
    scores = cosines.score_pool(pool, anchors)
    union = ranking.merged_order(pool, anchors, scores, "union", n, nearest)
    assert union.tolist() == brute_union(similarity, scores, n, nearest)
    turns = ranking.merged_order(pool, anchors, scores, "round_robin", n, nearest)
    assert turns.tolist() == brute_round_robin(similarity, n, nearest)


def test_ties_are_reported():
    report = ranking.tie_report(np.asarray([3, 2, 2, 1, 0, 0], dtype=np.float32), 2)
    assert report["rows_sharing_a_score"] == 4
    assert report["rows_tied_across_top_cut"] == 2  # one 2 inside, one outside
    assert report["rows_tied_across_bottom_cut"] == 0  # both zeros are inside


@pytest.mark.slow
def test_memory_stays_below_the_budget_whatever_the_product_of_sizes():
    """60k x 12k would be 2.9 GB of similarities; peak growth beyond the inputs is measured in a fresh process."""
    program = """
import json, resource, torch
from guardrail.similarity.scorers import cosines
from guardrail.similarity.selection import ranking
torch.set_num_threads(1)
pool, anchors = torch.randn(60_000, 64), torch.randn(12_000, 64)
cosines.score_pool(pool[:4096], anchors[:16])  # libraries are in memory now
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
cosines.score_pool(pool, anchors)
ranking.best_ranks(pool[:20_000], anchors[:200], 50, True)
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) < 256 * 1024  # KiB
