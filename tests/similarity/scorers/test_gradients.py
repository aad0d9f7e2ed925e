"""Gradients of single rows against autograd on one row; the safety step against the step itself."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from guardrail.similarity.scorers import row_gradients
from guardrail.similarity.scorers.row_gradients import squared_norms
from guardrail.similarity.scorers.run import RowScoring
from guardrail.similarity.scorers.tokens import make_batch, row_losses
from guardrail.statistics.agreement import spearman

from .conftest import make_rows

ROWS = make_rows(9, "You prime the")


def one_row_gradients(resources, row, gradient_tokens=None):
    """Layer -> (O, I) by plain autograd on this row alone, and its loss."""
    (encoded,), _ = resources.encode([row])
    batch = make_batch([encoded.first(gradient_tokens)], resources.tokenizer.pad_token_id, torch.device("cpu"))
    layers = resources.gradients.layers
    weights = [layer.module.weight for layer in layers.values()]
    for weight in weights:
        weight.requires_grad_(True)
    loss = row_losses(resources.model, batch)[0]
    return dict(zip(layers, torch.autograd.grad(loss, weights), strict=True)), loss.item()


@pytest.mark.parametrize("space", ["linear", "last_block", "lora"])
def test_norms_and_products_are_those_of_each_row_alone(config, space):
    scoring = RowScoring(dataclasses.replace(config, scorers=("gradient_modules",), gradient_parameters=space))
    scoring.prepare()
    resources = scoring.resources
    found, reasons = resources.row_gradients(*resources.encode(ROWS))
    assert not reasons and len(found.layers) == (7 if space == "last_block" else 14)
    for place, row in enumerate(ROWS):
        wanted, loss = one_row_gradients(resources, row)
        assert found.losses[place] == pytest.approx(loss, rel=1e-5)
        for number, name in enumerate(found.layers):
            gradient = wanted[name]
            if space == "lora":
                gradient = gradient @ resources.gradients.layers[name].down.T
            assert found.norms[place, number] == pytest.approx(float(gradient.square().sum()), rel=1e-4)
            direction = resources.gradients.directions["anchors"][name]
            exact = float((gradient * direction).sum())
            assert found.products["anchors"][place, number] == pytest.approx(exact, rel=1e-4, abs=1e-7)


def test_only_the_first_tokens_of_an_answer_enter_gradients(config):
    options = {"scorers": ("self_influence", "perplexity"), "gradient_tokens": 3}
    scoring = RowScoring(dataclasses.replace(config, **options))
    whole = RowScoring(dataclasses.replace(config, scorers=("perplexity",))).score(ROWS)
    found = scoring.score(ROWS)
    assert np.allclose(found["perplexity"].values, whole["perplexity"].values, rtol=1e-6)  # all of the answer
    for place, row in enumerate(ROWS):
        gradients, _ = one_row_gradients(scoring.resources, row, 3)
        squared = sum(float(one.square().sum()) for one in gradients.values())
        assert found["self_influence"].values[place] == pytest.approx(np.log1p(squared) + np.log(4), rel=1e-5)


@pytest.mark.parametrize("T", [2, 40])
def test_both_ways_to_a_norm_agree(T):
    generator = torch.Generator().manual_seed(T)
    x, d = (torch.randn(3, T, width, generator=generator, dtype=torch.float64) for width in (9, 11))
    exact = torch.einsum("bto,bti->boi", d, x).square().sum(dim=(1, 2))
    torch.testing.assert_close(squared_norms(x, d), exact)


def test_cosines_are_those_of_the_gradients(config):
    names = ("gradient_cosine", "gradient_projection", "gradient_modules")
    scoring = RowScoring(dataclasses.replace(config, scorers=names, projection_dim=2048))
    found, resources = scoring.score(ROWS), scoring.resources
    sets = {name: [one_row_gradients(resources, row)[0] for row in resources.set_rows(name)] for name in (
        "anchors", "safe_anchors"
    )}  # fmt: skip

    def flat(layers, name=None):
        return torch.cat([one.flatten() for key, one in layers.items() if name in (None, key)]).double()

    def lora(layers):
        return {key: one @ resources.gradients.layers[key].down.T for key, one in layers.items()}

    def mean_unit(rows, lengths, name=None):
        return sum(flat(row, name) / length for row, length in zip(rows, lengths, strict=True)) / len(rows)

    lengths = {name: [flat(row).norm() for row in rows] for name, rows in sets.items()}
    adapters = [lora(row) for row in sets["anchors"]]
    for place, row in enumerate(ROWS):
        mine, _ = one_row_gradients(resources, row)
        cosine = torch.cosine_similarity(flat(mine), mean_unit(sets["anchors"], lengths["anchors"]), dim=0)
        assert found["gradient_cosine"].values[place] == pytest.approx(float(cosine), abs=1e-5)
        parts = [
            torch.cosine_similarity(flat(mine, layer), mean_unit(sets["anchors"], lengths["anchors"], layer), dim=0)
            - torch.cosine_similarity(
                flat(mine, layer), mean_unit(sets["safe_anchors"], lengths["safe_anchors"], layer), dim=0
            )
            for layer in mine
        ]
        assert found["gradient_modules"].values[place] == pytest.approx(float(sum(parts)) / len(parts), abs=1e-5)
        wanted = mean_unit(adapters, [flat(one).norm() for one in adapters])
        projected = torch.cosine_similarity(flat(lora(mine)), wanted, dim=0)
        assert found["gradient_projection"].values[place] == pytest.approx(float(projected), abs=0.1)  # 4.5 / sqrt(k)


def test_random_signs_that_are_not_kept_are_made_again(config, monkeypatch):
    found = []
    for room in (1 << 30, 0):
        monkeypatch.setattr(row_gradients, "KEPT_SIGNS_BYTES", room)
        scoring = RowScoring(dataclasses.replace(config, scorers=("gradient_projection",)))
        found.append(scoring.score(ROWS)["gradient_projection"].values)
        assert bool(scoring.resources.gradients._signs) is bool(room)
    assert (found[0] == found[1]).all()


def test_the_model_is_as_before(config):
    scoring = RowScoring(dataclasses.replace(config, scorers=("self_influence", "safety_step")))
    model = scoring.resources.model
    before = copy.deepcopy(model.state_dict())
    wanted = [one.requires_grad for one in model.parameters()]
    scoring.score(ROWS)
    assert all((before[name] == one).all() for name, one in model.state_dict().items())
    assert wanted == [one.requires_grad for one in model.parameters()] and model.config._attn_implementation == "sdpa"
    assert all(one.grad is None for one in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("space", ["linear", "last_block"])
def test_the_predicted_change_of_the_safety_loss_is_the_change_that_one_step_makes(config, space):
    rows = make_rows(23, "You prime the")
    scoring = RowScoring(dataclasses.replace(config, scorers=("safety_step",), gradient_parameters=space))
    predicted = scoring.score(rows)["safety_step"].values
    resources, step = scoring.resources, 0.02
    model, moved = resources.model, scoring.scorers["safety_step"].parameters()
    before = {name: one.detach().clone() for name, one in moved.items()}

    def batch_of(some):
        encoded, _ = resources.encode(some)
        return make_batch(encoded, resources.tokenizer.pad_token_id, torch.device("cpu"))

    safety, actual = batch_of(resources.set_rows("safety")), []
    for row in rows:
        for one in moved.values():
            one.requires_grad_(True)
        gradients = torch.autograd.grad(row_losses(model, batch_of([row])).sum(), list(moved.values()))
        with torch.no_grad():
            start = row_losses(model, safety).double().mean()
            for one, gradient in zip(moved.values(), gradients, strict=True):
                one -= step * gradient
            actual.append(float(row_losses(model, safety).double().mean() - start) / step)
            for name, one in moved.items():
                one.copy_(before[name])
    assert spearman(predicted, actual) >= 0.95
    assert np.allclose(predicted, actual, rtol=0.25, atol=0.02 * np.abs(actual).max())


def test_the_step_in_adapters_is_the_product_of_their_gradients(config):
    options = {"scorers": ("safety_step",), "gradient_parameters": "lora"}
    scoring = RowScoring(dataclasses.replace(config, **options))
    found, resources = scoring.score(ROWS[:3])["safety_step"].values, scoring.resources
    safety = [one_row_gradients(resources, row)[0] for row in resources.set_rows("safety")]
    for place, row in enumerate(ROWS[:3]):
        mine, _ = one_row_gradients(resources, row)
        wanted = sum(
            float(((mine[name] @ layer.down.T) * (row_[name] @ layer.down.T)).sum()) / len(safety)
            for name, layer in resources.gradients.layers.items()
            for row_ in safety
        )
        assert found[place] == pytest.approx(-wanted, rel=1e-4, abs=1e-7)


def test_a_process_in_which_zero_3_has_been_used_scores_the_same(config, monkeypatch):
    """DeepSpeed leaves its own ``F.linear`` behind, which has no forward-mode derivative."""
    import torch.nn.functional as F
    from deepspeed.runtime.zero.linear import zero3_linear_wrap

    rows, one = make_rows(4, "Paint it."), dataclasses.replace(config, scorers=("safety_step",))
    expected = RowScoring(one).score(rows)["safety_step"].values
    monkeypatch.setattr(F, "linear", zero3_linear_wrap)
    assert np.array_equal(RowScoring(one).score(rows)["safety_step"].values, expected)
    assert F.linear is zero3_linear_wrap
