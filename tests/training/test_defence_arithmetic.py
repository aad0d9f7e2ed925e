"""The arithmetic of the defences, by hand on small tensors: their papers' equations."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from guardrail.core.errors import UserError
from guardrail.training.defences import make_defence


def test_betas_belong_to_the_places_in_an_answer():
    import torch

    from guardrail.training.defences.first_tokens import answer_places, betas

    rows = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1])
    positions = torch.tensor([4, 5, 6, 7, 8, 9, 9, 10, 12])  # the last answer of row 1 begins anew at 12
    places = answer_places(rows, positions)
    assert places.tolist() == [1, 2, 3, 4, 5, 6, 1, 2, 1]
    assert betas(places).tolist() == pytest.approx([0.5, 2, 2, 2, 2, 0.1, 0.5, 2, 0.5])


def test_the_constrained_loss_is_equation_3():
    """By hand: p/p_aligned = 2, beta 2: -2/2 log sigmoid(2 log 2) = -log(4/5); beta 0.5: -4 log sigmoid(log 2 / 2)."""
    import math

    import torch

    from guardrail.training.defences.first_tokens import constrained_losses

    losses = torch.tensor([1.0, 1.0], requires_grad=True)
    aligned = losses.detach() + math.log(2)
    beta = torch.tensor([2.0, 0.5])
    found = constrained_losses(losses, aligned, beta)
    expected = [math.log(5 / 4), 4 * math.log(1 + 2**-0.5)]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    found.sum().backward()  # 2 (1 - sigmoid(beta log ratio)): the cross-entropy's gradient where nothing has moved
    assert losses.grad.tolist() == pytest.approx([2 * (1 - 4 / 5), 2 * (1 - 2**0.5 / (1 + 2**0.5))], rel=1e-6)
    start = torch.tensor([0.7], requires_grad=True)
    constrained_losses(start, start.detach(), torch.tensor([2.0])).backward()
    assert start.grad.item() == pytest.approx(1.0)


def test_lisa_alternates_and_pulls_to_where_the_other_state_ended():
    import torch

    from guardrail.training.defences.lisa import proximal_term

    lisa = make_defence("lisa", ("source=x", "task_steps=2", "safety_steps=1", "rho=3"))
    assert [lisa.is_safety_step(step) for step in range(7)] == [False, False, True, False, False, True, False]
    module = torch.nn.Linear(1, 1, bias=False)
    engine = SimpleNamespace(module=module, device="cpu")
    lisa.begin(engine)
    anchors = []
    for step in range(1, 5):
        with torch.no_grad():
            module.weight.fill_(float(step))
        lisa.after_step(engine, step)
        anchors.append(float(lisa.other[0]))
    assert anchors[1:] == [2.0, 3.0, 3.0]  # set when a state ends: after steps 2 and 3
    w, other = [torch.tensor([[1.0, 2.0], [3.0, 4.0]])], [torch.tensor([[1.0, 0.0], [0.0, 4.0]])]
    assert float(proximal_term(w, other, 3.0)) == pytest.approx(1.5 * 13)


def test_a_soup_is_the_weighted_mean_of_weights_or_a_smaller_adapter():
    import torch

    soup = make_defence("model_soup", ("share=0.25",))
    soup.start = {"a": torch.tensor([[4.0, 0.0]])}
    assert soup.weights({"a": torch.tensor([[0.0, 8.0]])})["a"].tolist() == [[1.0, 6.0]]
    up = {"x.lora_B.default.weight": torch.ones(2, 1), "x.lora_A.default.weight": torch.ones(1, 2)}
    assert soup.weights(up)["x.lora_B.default.weight"].tolist() == [[0.75], [0.75]]
    assert soup.weights(up)["x.lora_A.default.weight"].tolist() == [[1.0, 1.0]]


def matrices():
    """Aligned minus base spans the first axis in `q`, the second in `k`; updates lie along the first in both."""
    import torch

    base = {f"model.layers.0.{name}.weight": torch.zeros(2, 2) for name in "qkv"}
    start = {
        "model.layers.0.q.weight": torch.tensor([[3.0, 0.0], [0.0, 0.0]]),
        "model.layers.0.k.weight": torch.tensor([[0.0, 0.0], [0.0, 2.0]]),
        "model.layers.0.v.weight": torch.zeros(2, 2),
    }
    update = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    return base, start, update


def test_safe_lora_projects_the_matrices_that_agree_least():
    """By hand: V = diag(3, 0), C = V V^T / |V| = diag(3, 0), C D = [[3, 6], [0, 0]], cosine 15 / sqrt(45 * 6)."""
    import torch

    from guardrail.training.defences.safe_lora import cosine, project

    base, start, update = matrices()
    difference = start["model.layers.0.q.weight"]
    projected = project(update, difference)
    assert projected.tolist() == [[3.0, 6.0], [0.0, 0.0]]
    assert cosine(update, projected) == pytest.approx(15 / (45 * 6) ** 0.5)
    assert project(update, start["model.layers.0.k.weight"]).tolist() == [[0.0, 0.0], [0.0, 2.0]]
    state = {name: tensor + update for name, tensor in start.items()} | {"lm_head.weight": torch.ones(2, 2)}
    for n, changed in ((1, {"k"}), (2, {"k", "q"})):
        defence = make_defence("safe_lora", ("base=x", f"n_layers={n}"))
        defence.start, defence.before = start, base
        found = defence.weights(dict(state))
        different = {name.split(".")[-2] for name in state if not torch.equal(found[name], state[name])}
        assert different == changed == {name.split(".")[-2] for name in defence.cosines}
        assert found["model.layers.0.k.weight"].tolist() == [[0.0, 0.0], [0.0, 4.0]]
    defence = make_defence("safe_lora", ("base=x", "n_layers=3"))
    defence.start, defence.before = start, base
    with pytest.raises(UserError, match="only 2 matrices can be projected"):
        defence.weights(state)


def test_safe_lora_on_adapters_is_safe_lora_on_their_sum():
    import torch

    base, start, _ = matrices()
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(1, 2, generator=generator), torch.randn(2, 1, generator=generator)
    stem = "base_model.model.model.layers.0.q"
    defence = make_defence("safe_lora", ("base=x", "n_layers=1"))
    defence.start, defence.before = start, base
    found = defence.weights({f"{stem}.lora_A.default.weight": down, f"{stem}.lora_B.default.weight": up})
    name = "model.layers.0.q.weight"
    whole = defence.weights({name: start[name] + up @ down})[name]
    torch.testing.assert_close(found[f"{stem}.lora_B.default.weight"] @ down, whole - start[name])


def test_vaccine_adds_its_radius_along_the_gradient():
    """To first order the loss rises by radius times the norm of the gradient with respect to all states."""
    import torch

    from guardrail.training.defences.vaccine import perturbation

    gradients = (torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]]))
    shifts = perturbation(gradients, 10.0)
    assert [shift.tolist() for shift in shifts] == [[[6.0, 0.0]], [[0.0, 8.0]]]
    assert sum(float((s * g).sum()) for s, g in zip(shifts, gradients, strict=True)) == pytest.approx(10 * 5)


def test_booster_s_regulariser_on_a_quadratic(monkeypatch):
    """h(w) = w^T H w / 2 with H = diag(1, 4) at w = (1, 1): grad (1, 4); the difference is step * H grad / |grad|."""
    import torch

    from guardrail.training.defences import booster

    H = torch.tensor([1.0, 4.0])
    w = torch.ones(2, requires_grad=True)
    monkeypatch.setattr(booster, "mean_loss", lambda _model, _batch: (H * w * w).sum() / 2)
    (extra,) = booster.regulariser(None, [w], None, 0.1)
    assert extra.tolist() == pytest.approx([0.1 * 1 / 17**0.5, 0.1 * 16 / 17**0.5], rel=1e-4)
    assert w.tolist() == [1.0, 1.0]
