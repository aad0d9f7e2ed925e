"""Tensors and losses of micro-batches: packing isolates rows, padding is never attended to, masks are exact."""

from __future__ import annotations

import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.core.errors import UserError
from guardrail.data.prompts import encode_prompt
from guardrail.data.rows import normalise_rows
from guardrail.training.batches import (
    enable_packed_attention,
    length_groups,
    line_attention,
    packed_batch,
    padded_batch,
    summed_loss,
)
from guardrail.training.data import TokenisedRows, tokenise


@pytest.fixture(scope="module")
def data(golden_tokenizer) -> TokenisedRows:
    rows = normalise_rows(toy.golden_rows())
    return tokenise(rows, golden_tokenizer, style="llama2_base", max_length=toy.MAX_LENGTH)


def load(folder):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def loss_of(model, batch) -> float:
    import torch

    with torch.no_grad():
        return float(summed_loss(model, batch))


def one_by_one(model, data, rows) -> float:
    """The reference: every row alone, transformers' own loss, all positions."""
    import torch

    total = 0.0
    for row in rows:
        ids = torch.from_numpy(data.input_ids(row).astype(np.int64))[None]
        labels = torch.from_numpy(data.labels(row))[None]
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=labels).loss) * int((labels[0, 1:] != -100).sum())
    return total


ROWS = (3, 17, 0, 42, 8, 71)


def test_packed_rows_have_the_loss_they_have_alone(data, golden_model):
    model = load(golden_model)
    expected = one_by_one(model, data, ROWS)
    batch = packed_batch(data, (ROWS[:2], ROWS[2:]), (False, False), "cpu")
    assert batch.n_tokens == batch.n_real_tokens == batch.inputs["input_ids"].numel()
    # transformers' own block mask, from the restarting positions
    assert loss_of(model, batch) == pytest.approx(expected, rel=1e-5)
    assert enable_packed_attention(model) == "guardrail_packed"
    assert loss_of(model, batch) == pytest.approx(expected, rel=1e-5)


def test_a_leaking_mask_changes_the_loss(data, golden_model):
    """The same line with one border and running positions: rows see the ones before, and the loss shows it."""
    import torch

    model = load(golden_model)
    enable_packed_attention(model)
    batch = packed_batch(data, (ROWS,), (False,), "cpu")
    honest = loss_of(model, batch)
    n = batch.n_tokens
    batch.inputs |= dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), torch.tensor([0, n], dtype=torch.int32))
    leaking = loss_of(model, batch)
    assert abs(leaking - honest) > 1e-3 * honest
    batch.inputs["position_ids"] = torch.arange(n)[None]
    assert abs(loss_of(model, batch) - honest) > 1e-3 * honest


def test_packed_gradients_equal_padded_gradients(data, golden_model):
    import torch

    gradients = []
    for packed in (False, True):
        model = load(golden_model)
        if packed:
            enable_packed_attention(model)
            batch = packed_batch(data, (ROWS,), (False,), "cpu")
        else:
            batch = padded_batch(data, tuple((row,) for row in ROWS), (False,) * len(ROWS), 2, "cpu")
        summed_loss(model, batch).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=2e-3 * float(gradient.abs().max())), name


def test_a_packed_model_still_evaluates_padded_rows(data, golden_model):
    model = load(golden_model)
    batch = padded_batch(data, tuple((row,) for row in ROWS), (False,) * len(ROWS), 2, "cpu")
    expected = loss_of(model, batch)
    enable_packed_attention(model)
    assert loss_of(model, batch) == pytest.approx(expected, rel=1e-6)


def test_the_pad_id_does_not_matter_and_the_mask_comes_from_lengths(data, golden_model, golden_tokenizer):
    """A pad id that is also EOS, a real token of every row: same loss as with a pad id of its own (T4)."""
    model = load(golden_model)
    sequences = tuple((row,) for row in ROWS)
    flags = (False,) * len(ROWS)
    own = loss_of(model, padded_batch(data, sequences, flags, golden_tokenizer.pad_token_id, "cpu"))
    eos = loss_of(model, padded_batch(data, sequences, flags, golden_tokenizer.eos_token_id, "cpu"))
    assert own == pytest.approx(eos, rel=1e-6)
    assert own == pytest.approx(one_by_one(model, data, ROWS), rel=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_logits_are_computed_for_labelled_tokens_only(packed, data, golden_model):
    """Rows of different lengths: the columns in which some row has a label would be several times as many tokens."""
    model, flags = load(golden_model), (False,) * len(ROWS)
    if packed:
        batch = packed_batch(data, tuple((row,) for row in ROWS), flags, "cpu")
    else:
        batch = padded_batch(data, tuple((row,) for row in ROWS), flags, 2, "cpu")
    seen = []
    hook = model.lm_head.register_forward_hook(lambda *arguments: seen.append(arguments[2].shape))
    loss = loss_of(model, batch)
    hook.remove()
    n_labels = int(data.trained_counts[list(ROWS)].sum())
    assert [shape[:2].numel() for shape in seen] == [n_labels] and len(batch.targets) == n_labels
    assert loss == pytest.approx(one_by_one(model, data, ROWS), rel=1e-6)
    columns = len(set(batch.positions.tolist())) * len(batch.inputs["input_ids"])
    assert packed or columns > 1.5 * n_labels
    assert model(input_ids=batch.inputs["input_ids"]).logits.shape[:2] == batch.inputs["input_ids"].shape  # as before


def test_repeated_rows_carry_no_loss(data, golden_model):
    model = load(golden_model)
    once = loss_of(model, padded_batch(data, ((3,), (17,)), (False, False), 2, "cpu"))
    again = loss_of(model, padded_batch(data, ((3,), (17,), (3,)), (False, False, True), 2, "cpu"))
    assert once == pytest.approx(again, rel=1e-6)
    assert loss_of(model, padded_batch(data, ((3,),), (True,), 2, "cpu")) == 0.0
    assert loss_of(model, packed_batch(data, ((3,),), (True,), "cpu")) == 0.0


def test_labels_are_the_answer_and_prompts_equal_generation(data, golden_tokenizer):
    rows = normalise_rows(toy.golden_rows())
    for index, row in enumerate(rows):
        ids, labels = data.input_ids(index), data.labels(index)
        trained = np.flatnonzero(labels != -100)
        if data.full_lengths[index] > len(ids) or not len(trained):
            continue
        prompt = encode_prompt(golden_tokenizer, "llama2_base", row["messages"][:-1])
        assert ids[: trained[0]].tolist() == prompt
        assert (labels[trained] == ids[trained]).all() and trained[-1] == len(ids) - 1
        assert ids[-1] == golden_tokenizer.eos_token_id
        assert golden_tokenizer.decode(ids[trained[0] :]) == row["messages"][-1]["content"] + "\n </s>"
        assert ids.tolist().count(golden_tokenizer.bos_token_id) == 1


def test_length_groups_hold_every_row_and_similar_lengths():
    lengths = [5, 400, 6, 90, 91, 7, 380, 100]
    groups = length_groups(lengths)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        sizes = [lengths[row] for row in group]
        assert max(sizes) <= 1.5 * min(sizes) + 16


@pytest.mark.parametrize(
    ("changes", "batching", "attention"),
    [
        ({}, "padded", None),
        ({}, "length_grouped", None),
        ({}, "packed", "guardrail_packed"),
        ({}, "padding_free", "guardrail_packed"),
        ({"sliding_window": 16}, "padding_free", None),  # padded: the mask of a line has the square of its tokens
        ({"sliding_window": 16}, "packed", "sdpa"),
    ],
)
def test_which_batches_are_one_line(golden_model, changes, batching, attention):
    model = load(golden_model)
    for name, value in changes.items():
        setattr(model.config, name, value)
    assert line_attention(model, batching) == attention


def test_a_model_that_does_not_tell_where_rows_end_is_padded_or_refused():
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(BloomConfig(vocab_size=8, hidden_size=8, n_layer=1, n_head=1))
    assert line_attention(model, "padding_free") is None
    with pytest.raises(UserError, match="BloomForCausalLM cannot keep packed rows apart; use --batching"):
        line_attention(model, "packed")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_last_feed_forward_part_sees_labelled_tokens_only(checkpointing, data, golden_model):
    """Of a padding-free line; whole where the backward pass runs the block again."""
    import torch

    flags, sequences = (False,) * len(ROWS), tuple((row,) for row in ROWS)
    seen, gradients = [], []
    for share in (False, True):
        model = load(golden_model)
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        enable_packed_attention(model)
        batch = packed_batch(data, sequences, flags, "cpu", share_beginning=share)
        sizes = []
        for layer in model.model.layers:
            layer.mlp.gate_proj.register_forward_hook(lambda _m, _i, out, sizes=sizes: sizes.append(out.shape[1]))
        summed_loss(model, batch).backward()
        seen.append((sizes, batch))
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*gradients, rtol=2e-3, atol=2e-3 * float(gradients[0].abs().max()))
    for sizes, batch in seen:
        n_tokens = batch.inputs["input_ids"].shape[1]
        trimmed = batch.only_read and not checkpointing
        n_labelled = len(batch.targets)
        assert n_labelled < n_tokens
        assert set(sizes[:-1]) == {n_tokens} and sizes[-1] == (n_labelled if trimmed else n_tokens)


def made_rows(lengths, shared, first_labels):
    """Rows of random tokens whose first ``shared`` are equal, labelled from ``first_labels`` on (None: nowhere)."""
    rng = np.random.default_rng([*lengths, shared])
    beginning = rng.integers(5, 60, shared)
    ids = [np.concatenate([beginning[:n], rng.integers(60, 120, max(0, n - shared))]) for n in lengths]
    spans = [(i, first, n) for i, (n, first) in enumerate(zip(lengths, first_labels, strict=True)) if first is not None]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    names = tuple(map(str, range(len(lengths))))
    spans = np.array(spans, dtype=np.int64).reshape(-1, 3)
    return TokenisedRows(np.concatenate(ids).astype(np.uint16), offsets, spans, np.array(lengths), names)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(2, 40), st.floats(0, 1), st.booleans()), min_size=1, max_size=6),
    shared=st.integers(0, 30),
)
def test_a_beginning_that_is_computed_once_changes_neither_loss_nor_gradients(golden_model, rows, shared):
    """Also where a row ends inside the beginning, is labelled within it, is a repeat, or has no label at all."""
    import torch

    lengths = [n for n, _, _ in rows]
    firsts = [min(1 + int(where * (n - 1)), n - 1) if where < 0.9 else None for n, where, _ in rows]
    data = made_rows(lengths, shared, firsts)
    sequences, repeats = tuple((i,) for i in range(len(rows))), tuple(flag for _, _, flag in rows)
    found = []
    for kind in ("padded", "line", "shared"):
        model = load(golden_model)
        if kind == "padded":
            batch = padded_batch(data, sequences, repeats, 2, "cpu")
        else:
            enable_packed_attention(model)
            batch = packed_batch(data, sequences, repeats, "cpu", share_beginning=kind == "shared")
        loss = summed_loss(model, batch)
        loss.backward()
        found.append((float(loss.detach()), torch.cat([p.grad.flatten() for p in model.parameters()]), batch))
    (expected, gradient, _), (_, _, line), (loss, ours, batch) = found
    assert loss == pytest.approx(expected, rel=1e-5, abs=1e-6)
    torch.testing.assert_close(ours, gradient, rtol=2e-3, atol=2e-3 * float(gradient.abs().max()) + 1e-9)
    n_shared = int(batch.inputs["cu_seq_lens_q"][0])
    assert batch.inputs["input_ids"].numel() == sum(lengths) - n_shared * (len(rows) - 1)
    assert batch.n_real_tokens == batch.n_tokens == line.n_tokens == sum(lengths)
    assert int(line.inputs["cu_seq_lens_q"][0]) == 0
    labelled = [first for first, (_, _, repeat) in zip(firsts, rows, strict=True) if first is not None and not repeat]
    if len(rows) > 1:
        assert n_shared >= min([shared, *(n - 1 for n in lengths), *(first - 1 for first in labelled)])
