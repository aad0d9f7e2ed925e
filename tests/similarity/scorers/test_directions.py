"""Compliance directions and cosines against their definitions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from guardrail.core.errors import UserError
from guardrail.similarity.scorers.compliance import pair_rows, separates
from guardrail.similarity.scorers.run import RowScoring

from .conftest import make_rows

ANCHORS, REFUSALS = make_rows(6, "1. Sure: take the"), make_rows(7, "I cannot help with the", 3)


def unit(matrix):
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def test_cosines_are_those_of_numpy(config):
    names = ("similarity", "mean_similarity", "alignment_similarity", "bi_anchor")
    scoring = RowScoring(dataclasses.replace(config, scorers=names))
    rows = make_rows(9, "You prime the")
    found, resources = scoring.score(rows), scoring.resources
    view = resources.main_view
    mine, anchors, safe = (unit(resources.vectors(some)[0][view].numpy()) for some in (rows, ANCHORS, REFUSALS))
    harmful, refused = mine @ anchors.T, mine @ safe.T
    wanted = (harmful.max(1), harmful.mean(1), refused.max(1), harmful.mean(1) - refused.mean(1))
    for name, values in zip(names, wanted, strict=True):
        assert np.allclose(found[name].values, values, atol=1e-5), name


def test_a_compliant_answer_lies_further_along_the_direction_than_a_refusal_to_the_same_prompt(config):
    scoring = RowScoring(dataclasses.replace(config, scorers=("compliance", "compliance_subspace")))
    scoring.prepare()
    compliant, refusing = pair_rows(ANCHORS, REFUSALS, False, config.seed)
    high, low = scoring.score(compliant), scoring.score(refusing)
    scorer = scoring.scorers["compliance"]
    differences, _, _ = scorer.differences()
    gap = high["compliance"].values.mean() - low["compliance"].values.mean()
    assert gap == pytest.approx(np.linalg.norm(differences[scorer.best].mean(axis=0)), rel=1e-5)  # the prompt cancels
    inside = scoring.scorers["compliance_subspace"]
    assert high["compliance_subspace"].values.mean() > low["compliance_subspace"].values.mean()
    assert np.allclose(inside.basis @ inside.basis.T, np.eye(4), atol=1e-6) and inside.weights.sum() == pytest.approx(1)


def test_a_direction_separates_all_nothing_or_a_part():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(400, 5))
    axis = np.eye(5)[0]
    far = noise + 50 * axis
    assert separates(axis, far, noise) > 0.99
    assert separates(np.eye(5)[1], far, noise) < 0.05
    one = np.array([[1.0], [3.0]]), np.array([[-1.0], [-3.0]])  # means 2, -2; total scatter 20, between 16
    assert separates(np.array([1.0]), *one) == pytest.approx(16 / 20)


def test_pairs_share_their_prompt(config, sets, tmp_path):
    compliant, refusing = pair_rows(ANCHORS, REFUSALS, False, 1)
    assert [row["messages"][:-1] for row in compliant] == [row["messages"][:-1] for row in refusing]
    answers = [row["messages"][-1]["content"] for row in refusing]
    assert set(answers) <= {row["messages"][-1]["content"] for row in REFUSALS} and len(set(answers)) > 3
    ours = [
        {**row, "messages": [*row["messages"][:-1], {"role": "assistant", "content": "No."}]} for row in ANCHORS[2:]
    ]
    compliant, refusing = pair_rows(ANCHORS, ours, True, 1)
    assert [row["id"] for row in compliant] == [row["id"] for row in ANCHORS[2:]]
    with pytest.raises(UserError, match="none of its prompts is a prompt of --anchors"):
        pair_rows(ANCHORS[:1], ours, True, 1)
