"""The held-out loss equals the model's own loss on the training encoding, whatever the batch."""

from __future__ import annotations

import math

import pytest

from guardrail.core.errors import UserError
from guardrail.data.prompts import encode_supervised
from guardrail.evaluation.utility import loss as heldout
from guardrail.evaluation.utility.tasks import load_task
from guardrail.models.loading import load_causal_lm


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_causal_lm(str(tiny_model), "float32")


def reference_nll(model, tokenizer, row, max_length=None):
    """One row, no padding, the library's own shifted loss (a mean) times its number of targets."""
    import torch

    answer = {"role": "assistant", "content": row["reference"]}
    example = encode_supervised(tokenizer, "llama2_base", [*row["messages"], answer], max_length)
    ids, labels = torch.tensor([example.input_ids]), torch.tensor([example.labels()])
    n = int((labels[:, 1:] != -100).sum())
    with torch.inference_mode():
        return (model(input_ids=ids, labels=labels).loss.item() * n if n else 0.0), n


def test_equals_the_models_own_loss_row_by_row_and_in_batches(model, tiny_model, tiny_tokenizer, samsum_file):
    rows = load_task("samsum", str(samsum_file)).rows
    expected = [reference_nll(model, tiny_tokenizer, row) for row in rows]
    for batch_tokens in (1, 100_000):
        found = heldout.heldout_losses(
            str(tiny_model), tiny_tokenizer, "llama2_base", rows, model=model, batch_tokens=batch_tokens
        )
        assert [one.id for one in found] == [row["id"] for row in rows]
        assert [one.n_tokens for one in found] == [n for _, n in expected]
        assert [one.nll_nats for one in found] == pytest.approx([nll for nll, _ in expected], rel=1e-5)


def test_the_prompt_carries_no_loss(model, tiny_model, tiny_tokenizer, samsum_file):
    row = load_task("samsum", str(samsum_file)).rows[0]
    (one,) = heldout.heldout_losses(str(tiny_model), tiny_tokenizer, "llama2_base", [row], model=model)
    answer = encode_supervised(
        tiny_tokenizer, "llama2_base", [*row["messages"], {"role": "assistant", "content": row["reference"]}]
    )
    assert one.n_tokens == len(answer.input_ids) - answer.prompt_length


def test_a_cut_answer_is_counted(model, tiny_model, tiny_tokenizer, samsum_file):
    rows = load_task("samsum", str(samsum_file)).rows
    lengths = [len(example.input_ids) for example in heldout.encode_rows(tiny_tokenizer, "llama2_base", rows, None)]
    prompts = [example.prompt_length for example in heldout.encode_rows(tiny_tokenizer, "llama2_base", rows, None)]
    limit = sorted(prompts)[2]  # cuts the whole answer of at least two rows
    found = heldout.heldout_losses(str(tiny_model), tiny_tokenizer, "llama2_base", rows, model=model, max_length=limit)
    assert [one.truncated for one in found] == [n > limit for n in lengths]
    assert [one.n_tokens == 0 for one in found] == [p >= limit for p in prompts]
    summary = heldout.summarise_losses(found)
    assert summary["n"] + summary["n_without_answer_tokens"] == len(rows)
    assert summary["n_truncated"] == sum(n > limit for n in lengths)


def test_summary_by_hand():
    losses = [
        heldout.RowLoss("a", 2.0, 1, False),
        heldout.RowLoss("b", 2.0, 4, False),
        heldout.RowLoss("c", 0, 0, True),
    ]
    summary = heldout.summarise_losses(losses)
    assert summary["loss_nats_per_token"] == pytest.approx(4 / 5)
    assert summary["loss_nats_per_token_mean_of_rows"] == pytest.approx((2 + 0.5) / 2)
    assert summary["perplexity"] == pytest.approx(math.exp(0.8)) and summary["n"] == 2


def test_no_answer_left_or_a_broken_model_is_no_number():
    with pytest.raises(UserError, match="within the model's context"):
        heldout.summarise_losses([heldout.RowLoss("a", 0.0, 0, True)])
    with pytest.raises(UserError, match="not finite"):
        heldout.summarise_losses([heldout.RowLoss("a", float("nan"), 3, False)])


def test_batches_that_do_not_fit_are_halved_and_one_row_alone_is_a_user_error(
    model, tiny_model, tiny_tokenizer, samsum_file, monkeypatch
):
    import torch

    rows = load_task("samsum", str(samsum_file)).rows
    arguments = (str(tiny_model), tiny_tokenizer, "llama2_base", rows)
    expected = heldout.heldout_losses(*arguments, model=model)
    whole, sizes = heldout._batch_nll, []

    def small(model, examples):
        sizes.append(len(examples))
        if len(examples) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(model, examples)

    monkeypatch.setattr(heldout, "_batch_nll", small)
    limit = 2
    found = heldout.heldout_losses(*arguments, model=model)
    assert max(sizes) > 2 and [one.n_tokens for one in found] == [one.n_tokens for one in expected]
    assert [one.nll_nats for one in found] == pytest.approx([one.nll_nats for one in expected], rel=1e-5)
    limit = 0
    with pytest.raises(UserError, match="does not fit in memory with one held-out row"):
        heldout.heldout_losses(*arguments, model=model)
