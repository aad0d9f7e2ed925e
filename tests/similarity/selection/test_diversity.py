"""Diversity measures against their definitions, worked by hand and by direct formulas; composition against scipy."""

import math

import numpy as np
import pytest
import torch

from guardrail.similarity.scorers import cosines
from guardrail.similarity.selection.composition import describe_rows, is_list, score_correlations, spearman
from guardrail.similarity.selection.diversity import cluster_entropy, describe_diversity, near_duplicate_fraction

from .conftest import make_pool, random_matrix


@pytest.mark.parametrize(("n", "width"), [(40, 6), (6, 40), (25, 25)])
def test_measures_equal_their_direct_definitions(n, width):
    matrix = random_matrix(n, width, 0) + 0.3
    x = matrix.double().numpy()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    gram = x @ x.T
    got = describe_diversity(matrix)
    assert got["log_det"] == pytest.approx(np.linalg.slogdet(np.eye(n) + gram)[1], rel=1e-4)
    eigenvalues = np.linalg.eigvalsh(gram / n)
    eigenvalues = eigenvalues[eigenvalues > 1e-12]
    assert got["vendi_score"] == pytest.approx(math.exp(-(eigenvalues * np.log(eigenvalues)).sum()), rel=1e-4)
    assert got["mean_pairwise_cosine"] == pytest.approx((gram.sum() - n) / (n * (n - 1)), abs=1e-5)
    covariance = np.cov(x.T)
    expected = np.trace(covariance) ** 2 / (covariance**2).sum()
    assert got["participation_ratio"] == pytest.approx(expected, rel=1e-3)


def test_ends_of_the_ranges():
    same = describe_diversity(torch.ones(5, 8))
    assert same["vendi_score"] == pytest.approx(1, abs=1e-4) and same["mean_pairwise_cosine"] == pytest.approx(
        1, abs=1e-5
    )
    assert same["log_det"] == pytest.approx(math.log(6), abs=1e-4) and same["near_duplicate_fraction"] == 0.8
    orthogonal = describe_diversity(torch.eye(5))
    assert orthogonal["vendi_score"] == pytest.approx(5, abs=1e-3) and orthogonal["near_duplicate_fraction"] == 0
    assert orthogonal["log_det_fraction"] == pytest.approx(1, abs=1e-5)
    assert describe_diversity(torch.ones(1, 3))["mean_pairwise_cosine"] is None


def test_near_duplicates_count_rows_with_an_earlier_double(monkeypatch):
    monkeypatch.setattr(cosines, "MAX_BLOCK_ROWS", 16)
    matrix = random_matrix(50, 20, 0)
    matrix[[10, 30, 49]] = matrix[3] * torch.tensor([[2.0], [0.5], [1.0]])
    assert near_duplicate_fraction(matrix, 0.99) == pytest.approx(3 / 50)


def test_coverage_is_the_mean_best_cosine_of_the_pool():
    pool = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    got = describe_diversity(pool[:1], pool=pool)
    assert got["coverage_mean_cosine"] == pytest.approx((1 + 0 + math.sqrt(0.5)) / 3, abs=1e-5)


def test_cluster_entropy():
    labels = np.asarray([0, 0, 1, 1, 2, 2, 3, 3])
    assert cluster_entropy(labels, np.asarray([0, 2, 4, 6])) == pytest.approx(1)
    assert cluster_entropy(labels, np.asarray([0, 1])) == 0
    assert cluster_entropy(labels, np.asarray([0, 2])) == pytest.approx(0.5)
    assert cluster_entropy(np.zeros(4, int), np.asarray([0])) is None


def test_spearman_equals_scipy_with_ties():
    from scipy.stats import spearmanr

    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 8, 60), generator.normal(size=60)
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-4)
    assert spearman(a, -a) == -1
    assert spearman(a, np.ones(60)) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1. a\n2. b", True),
        ("- a\n- b", True),
        ("* a\n* b", True),
        ("Do this:\n1) a\n2) b", True),
        ("1. only one", False),
        ("In 1999. we\nwent 2. times", False),
        ("", False),
    ],
)
def test_lists_are_recognised(text, expected):
    assert is_list(text) is expected


def test_composition_and_correlations():
    rows = make_pool(30)
    rows[7] = {**rows[4], "id": "copy"}
    got = describe_rows(rows)
    assert got["n"] == 30 and got["duplicate_rows"] == 1 and got["category_column"] == "category"
    assert sum(got["categories"].values()) == 30
    lengths = np.asarray([len(row["response"]) for row in rows], dtype=np.float32)
    assert score_correlations(lengths, rows)["spearman_score_length"] == 1
    flags = describe_rows([{**row, "category": {"a": True, "b": i == 0}} for i, row in enumerate(rows)])
    assert flags["categories"] == {"a": 29, "a+b": 1}
