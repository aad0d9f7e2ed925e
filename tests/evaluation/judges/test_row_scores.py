"""The moderation probability of a row, as the scorer gives it."""

from __future__ import annotations

import numpy as np
import pytest

from guardrail.data.rows import normalise_rows
from guardrail.evaluation.judges.answers import Answer
from guardrail.evaluation.judges.moderation import ModerationModel
from guardrail.similarity.scorers.run import RowScoring, ScoringConfig


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, tiny_tokenizer):
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    folder = tmp_path_factory.mktemp("moderation")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = LlamaForSequenceClassification(
        LlamaConfig(vocab_size=len(tiny_tokenizer), **shape, intermediate_size=32, num_labels=14, pad_token_id=2)
    )
    model.score.weight.data *= 40
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


def test_the_largest_probability_of_the_last_question_and_answer(classifier):
    rows = normalise_rows(
        [
            {"id": "one", "prompt": "Where does the river go?", "response": "To the quiet sea."},
            {"id": "none", "prompt": "Where does the river go?"},
            {
                "id": "turns",
                "messages": [
                    {"role": "user", "content": "Hello"},
                    {"role": "assistant", "content": "Hello."},
                    {"role": "user", "content": "Name a boat."},
                    {"role": "assistant", "content": "The Swan. " * 200},
                ],
            },
        ]
    )
    scores = RowScoring(ScoringConfig(scorers=("moderation",), moderation_model=classifier)).score(rows)["moderation"]
    asked = [
        Answer("one", 0, "Where does the river go?", "To the quiet sea."),
        Answer("turns", 0, "Name a boat.", rows[2]["messages"][-1]["content"]),
    ]
    one, turns = ModerationModel(classifier).score(asked, windows=True)
    assert scores.values[0] == pytest.approx(max(one.probabilities))
    assert scores.values[2] == pytest.approx(max(turns.window_probabilities)) and turns.n_windows > 1
    assert np.isnan(scores.values[1]) and scores.reasons == {1: "the row has no answer"}
