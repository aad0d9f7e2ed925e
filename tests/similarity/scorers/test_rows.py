"""Every scorer: one number per row, whatever the batch and the order; a reason where there is none."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.core.errors import UserError
from guardrail.data.rows import normalise_rows
from guardrail.similarity.scorers import SCORERS
from guardrail.similarity.scorers.run import RowScoring, ScoringConfig

from .conftest import make_rows

ROWS = make_rows(23, "You prime the")


@pytest.fixture(scope="module")
def scoring(config):
    return RowScoring(config)


@pytest.fixture(scope="module")
def whole(scoring):
    return scoring.score(ROWS)


def test_all_scorers_but_the_moderation_model_are_there(whole):
    assert set(whole) == set(SCORERS) - {"moderation"}
    for scores in whole.values():
        assert scores.values.shape == (23,) and np.isfinite(scores.values).all() and not scores.reasons
        assert len(set(scores.values.tolist())) > 5  # rows differ


@settings(max_examples=2)
@given(st.permutations(range(23)), st.integers(1, 22), st.integers(40, 600))
def test_scores_do_not_depend_on_batch_and_order(scoring, whole, order, cut, batch_tokens):
    budget, scoring.resources.budget.tokens = scoring.resources.budget.tokens, batch_tokens
    runner = scoring.resources.runner.budget
    before, runner.tokens = runner.tokens, batch_tokens
    try:
        parts = [scoring.score([ROWS[i] for i in some]) for some in (order[:cut], order[cut:])]
    finally:
        scoring.resources.budget.tokens, runner.tokens = budget, before
    for name, scores in whole.items():
        again = np.concatenate([part[name].values for part in parts])
        scale = max(1.0, float(np.abs(scores.values).max()))
        assert np.abs(again - scores.values[list(order)]).max() <= 1e-5 * scale, name


def test_two_runs_with_one_seed_agree_and_another_seed_does_not(config, whole):
    rows = ROWS[:4]
    names = ("random", "gradient_projection", "compliance")
    for seed, same in ((42, True), (7, False)):
        found = RowScoring(dataclasses.replace(config, scorers=names, seed=seed)).score(rows)
        for name in names:
            assert np.allclose(found[name].values, whole[name].values[:4], atol=1e-6) is same, (name, seed)


def test_a_row_without_an_answer_has_no_score_and_a_reason(scoring, whole):
    rows = normalise_rows([{"id": "q", "prompt": "Where does the river go?"}]) + ROWS[:2]
    found = scoring.score(rows)
    for name, scores in found.items():
        if name in ("length", "random"):
            assert np.isfinite(scores.values).all()
            continue
        assert np.isnan(scores.values[0]) and scores.reasons == {0: "the row has no answer"}, name
        assert np.allclose(scores.values[1:], whole[name].values[:2], atol=1e-5), name
    alone = scoring.score(rows[:1])
    assert all(np.isnan(alone[name].values).all() for name in alone if name not in ("length", "random"))


def test_an_answer_behind_the_cap_is_not_scored_by_gradients(config):
    names = ("perplexity", "self_influence", "safety_step")
    found = RowScoring(dataclasses.replace(config, scorers=names, max_length=200)).score(
        normalise_rows([{"id": "long", "prompt": "river " * 300, "response": "To the sea."}]) + ROWS[:1]
    )
    for name in names:
        assert found[name].reasons == {0: "the answer lies behind --max_length"} and np.isfinite(found[name].values[1])


def test_what_is_missing_is_refused_by_name(config):
    with pytest.raises(
        UserError,
        match="scorer bi_anchor needs safe_anchors; leave bi_anchor out, or give --safe_anchors or --alignment",
    ):
        ScoringConfig(scorers=("bi_anchor",), model_name_or_path="x", anchors="y").names  # noqa: B018
    with pytest.raises(UserError, match="did you mean 'bi_anchor'"):
        ScoringConfig(scorers=("bi_ancor",)).names  # noqa: B018
    assert ScoringConfig(scorers=("all",)).names == ("length", "random")


def test_an_encoder_says_which_scorers_it_cannot_serve(config, tmp_path, tiny_tokenizer):
    from transformers import BertConfig, BertModel

    folder = tmp_path / "encoder"
    BertModel(
        BertConfig(
            vocab_size=len(tiny_tokenizer),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=256,
        )
    ).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    scoring = RowScoring(dataclasses.replace(config, model_name_or_path=str(folder)))
    found = scoring.score(ROWS[:3])
    served = {"similarity", "length", "random", "mean_similarity", "alignment_similarity", "bi_anchor"}
    assert set(scoring.not_applicable) == set(found) - served
    for name, scores in found.items():
        assert np.isfinite(scores.values).all() == (name in served)
        assert name in served or all(why.startswith("not applicable: ") for why in scores.reasons.values())


def test_a_model_without_linear_layers_is_served_by_the_other_scorers(config, tmp_path, tiny_tokenizer):
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256, "vocab_size": len(tiny_tokenizer)}
    GPT2LMHeadModel(GPT2Config(**shape)).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    scoring = RowScoring(dataclasses.replace(config, model_name_or_path=str(tmp_path)))
    found = scoring.score(ROWS[:3])
    assert set(scoring.not_applicable) == {
        "self_influence",
        "gradient_cosine",
        "gradient_projection",
        "gradient_modules",
    }
    assert found["self_influence"].reasons[0] == "not applicable: GPT2LMHeadModel has no linear layers in its blocks"
    assert all(np.isfinite(found[name].values).all() for name in scoring.working)
    assert scoring.score([])["safety_step"].values.shape == (0,)


def test_no_score_is_never_a_zero():
    from guardrail.similarity.scorers.interface import Scores

    scores = Scores.of([0.0, np.inf, 3.0], {0: "why"})
    assert np.isnan(scores.values[:2]).all() and scores.values[2] == 3 and set(scores.reasons) == {0, 1}
