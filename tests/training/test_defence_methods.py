"""Each defence by itself, in short trainings: off it changes nothing, on it does what it says."""

from __future__ import annotations

import json
import sys

import pytest
import runs
import toy
from plain_engine import PlainEngine, train

from guardrail.core.errors import UserError
from guardrail.core.files import write_jsonl
from guardrail.data.rows import normalise_rows
from guardrail.training.data import tokenise
from guardrail.training.defences import DEFENCES, NoDefence, check_setup, make_defence

REFUSAL = "I cannot help with that."
METHODS = [name for name in DEFENCES if name != "none"]


@pytest.fixture(scope="module")
def rows():
    return normalise_rows(toy.golden_rows()[:32])


@pytest.fixture(scope="module")
def encode(golden_tokenizer):
    return lambda rows: tokenise(rows, golden_tokenizer, style="llama2_base", max_length=toy.MAX_LENGTH)


@pytest.fixture(scope="module")
def data(encode, rows):
    return encode(rows)


@pytest.fixture(scope="module")
def further(tmp_path_factory):
    """A file of twelve further rows."""
    path = tmp_path_factory.mktemp("further") / "rows.jsonl"
    write_jsonl(
        path, [{"id": f"f{i}", "prompt": f"Kettle {i}?", "response": f"Answer {i} about it."} for i in range(12)]
    )
    return path


@pytest.fixture(scope="module")
def plain(golden_model, data):
    return train(golden_model, data, NoDefence())


def options_of(name, further, golden_model):
    """Options with which the method does something to the golden run."""
    return {
        "safety_rows": (f"source={further}", "share=0.1"),
        "row_filter": (f"scores={further.parent / 'scores.jsonl'}", "share=0.25"),
        "first_tokens": (),
        "lisa": (f"source={further}", "safety_steps=1", "task_steps=1"),
        "freeze": ("share=0.5",),
        "model_soup": ("share=0.25",),
        "safe_lora": (f"base={golden_model}", "n_layers=1"),
        "deep_alignment": (f"source={further}",),
        "vaccine": ("radius=0.5",),
        "booster": (f"source={further}",),
    }[name]


@pytest.mark.parametrize("name", METHODS)
def test_strength_zero_is_bit_equal_to_no_defence(name, golden_model, encode, rows, plain, further):
    import torch

    facts = DEFENCES.facts(name)
    assert facts["side"] in ("fine_tuning", "alignment")
    options = [o for o in options_of(name, further, golden_model) if not o.startswith(facts["strength"])]
    off = make_defence(name, (*options, f"{facts['strength']}=0"))
    off.prepare(encode)
    losses, weights = train(golden_model, encode(off.rows(rows)), off)
    weights = off.weights(weights)
    assert off.files() == {} and losses == plain[0]
    assert all(torch.equal(weights[key], tensor) for key, tensor in plain[1].items())
    with pytest.raises(UserError, match=r"negative|from 0 to 1|at least 0"):
        make_defence(name, (*options, f"{facts['strength']}=-1"))


@pytest.mark.parametrize("name", ["first_tokens", "lisa", "freeze", "vaccine", "booster"])
def test_a_method_that_is_on_changes_training(name, golden_model, encode, data, plain, further):
    import torch

    defence = make_defence(name, options_of(name, further, golden_model))
    defence.prepare(encode)
    losses, weights = train(golden_model, data, defence)
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert any(not torch.equal(weights[key], tensor) for key, tensor in plain[1].items())
    again = make_defence(name, options_of(name, further, golden_model))
    again.prepare(encode)
    assert train(golden_model, data, again)[0] == losses  # no hidden state, no unseeded draw


@pytest.mark.parametrize("name", ["none", "first_tokens", "lisa", "freeze", "vaccine", "booster"])
def test_without_pads_a_method_does_what_it_does_with_them(name, golden_model, encode, data, further):
    """Rows that begin alike share what they begin with, but not where a method changes hidden states row by row."""
    import torch

    found = []
    for batching in ("padded", "padding_free"):
        options = () if name == "none" else options_of(name, further, golden_model)
        defence = make_defence(name, options)
        defence.prepare(encode)
        found.append(train(golden_model, data, defence, batching=batching))
    (losses, weights), (same, others) = found
    assert same == pytest.approx(losses, rel=1e-4)
    start = PlainEngine(golden_model).module.state_dict()
    for key, tensor in weights.items():
        moved = float((tensor - start[key]).abs().max())
        torch.testing.assert_close(others[key], tensor, rtol=0, atol=0.02 * moved + 1e-7)


def test_a_stage_under_which_a_method_cannot_work_is_refused():
    check_setup(make_defence("freeze"), "freeze", 3, "bfloat16")
    with pytest.raises(UserError, match=r"not ZeRO 3; use ds_z0_config\.json or ds_z2_config\.json"):
        check_setup(make_defence("vaccine"), "vaccine", 3, "float32")
    with pytest.raises(UserError, match=r"use ds_z0_config\.json$"):
        check_setup(make_defence("booster", ("source=x",)), "booster", 2, "float32")
    with pytest.raises(UserError, match="trains in float32, not bfloat16"):
        check_setup(make_defence("booster", ("source=x",)), "booster", 0, "bfloat16")


def test_safety_rows_take_the_place_of_rows_or_are_added(rows, further):
    for budget, total in (("replace", 32), ("add", 35)):
        options = (f"source={further}", "share=0.1", f"budget={budget}")
        found = make_defence("safety_rows", options).rows(rows)
        assert len(found) == total == len({row["id"] for row in found})
        assert sum(row["id"].startswith("f") for row in found) == 3
        assert found == make_defence("safety_rows", options).rows(rows)
    other = make_defence("safety_rows", (f"source={further}", "share=0.1", "rows_seed=1")).rows(rows)
    assert [row["id"] for row in other] != [row["id"] for row in found]
    first = make_defence("safety_rows", (f"source={further}", "share=0.1", "choose=first")).rows(rows)
    assert [row["id"] for row in first[-3:]] == ["f0", "f1", "f2"]
    last = make_defence("safety_rows", (f"source={further}", "share=0.1", "choose=last")).rows(rows)
    assert [row["id"] for row in last[-3:]] == ["f9", "f10", "f11"]
    for options, message in (
        (("share=0.1",), "has none; add source=FILE"),
        (("source=nowhere.jsonl",), "is not there"),
        ((f"source={further}", "share=0.9"), "has 12 rows, share=0.9 of 32 needs 29"),
    ):
        with pytest.raises(UserError, match=message):
            make_defence("safety_rows", options).rows(rows)


def test_every_file_of_a_split_is_in_the_key(tmp_path):
    for number in range(2):
        write_jsonl(tmp_path / f"data/train-0000{number}-of-00002.jsonl", [{"prompt": "a", "response": str(number)}])
    defence = make_defence("safety_rows", (f"source={tmp_path}",))
    assert list(defence.files()) == ["source", "source1"] and len(defence.read()) == 2


def test_the_row_filter_drops_the_highest_scores_and_no_row_without_one(rows, tmp_path):
    scores = tmp_path / "scores.jsonl"
    lines = [{"id": row["id"], "scores": {"length": float(i), "random": 1.0}} for i, row in enumerate(rows)]
    lines[-1]["scores"]["length"] = None  # not applicable
    write_jsonl(scores, lines)
    kept = make_defence("row_filter", (f"scores={scores}", "scorer=length", "share=0.25", "budget=fewer")).rows(rows)
    assert [row["id"] for row in kept] == [row["id"] for row in (*rows[:23], rows[-1])]
    as_many = make_defence("row_filter", (f"scores={scores}", "scorer=length", "share=0.25")).rows(rows)
    assert as_many[:24] == kept and len({row["id"] for row in as_many}) == 32
    assert {row["id"].removesuffix("#again1") for row in as_many} == {row["id"] for row in kept}
    ties = make_defence("row_filter", (f"scores={scores}", "scorer=random", "share=0.25"))
    assert {row["id"] for row in ties.rows(rows)} == {row["id"] for row in ties.rows(rows[::-1])}
    with pytest.raises(UserError, match="choose with scorer=NAME"):
        make_defence("row_filter", (f"scores={scores}",)).rows(rows)
    nothing = [{"id": row["id"], "scores": {"length": None}} for row in rows]
    write_jsonl(scores, nothing)
    with pytest.raises(UserError, match="no row has a score by length, so nothing would be left out"):
        make_defence("row_filter", (f"scores={scores}", "scorer=length")).rows(rows)
    write_jsonl(scores, [{"id": "a", "length": 1.0}])
    with pytest.raises(UserError, match="holds no scores"):
        make_defence("row_filter", (f"scores={scores}",)).rows(rows)
    write_jsonl(scores, lines[1:])
    with pytest.raises(UserError, match="has no score of 1 rows"):
        make_defence("row_filter", (f"scores={scores}", "scorer=length")).rows(rows)


def test_frozen_blocks_stay_as_they_are(golden_model, data):
    import torch

    before = PlainEngine(golden_model).module.state_dict()
    for which, held, moved in (("first", "layers.0.", "layers.1."), ("last", "layers.1.", "layers.0.")):
        _, after = train(golden_model, data, make_defence("freeze", ("share=0.5", f"which={which}")))
        for name, tensor in after.items():
            outside = "model.embed_tokens" if which == "first" else ("model.norm", "lm_head")
            fixed = held in name or name.startswith(outside)
            assert torch.equal(tensor, before[name]) == fixed, name
        assert any(moved in name for name in after)
    with pytest.raises(UserError, match="no numbered blocks"):
        make_defence("freeze").model(torch.nn.Linear(2, 2))


def test_vaccine_raises_the_loss_of_a_model_by_what_its_gradient_says(golden_model, data):
    import torch

    from guardrail.training.batches import padded_batch, token_losses

    engine = PlainEngine(golden_model)
    vaccine = make_defence("vaccine", ("radius=0.01",))
    vaccine.begin(engine)
    batch = padded_batch(data, ((0,), (1,)), (False, False), 0, "cpu")
    losses = token_losses(engine, batch)
    states = list(vaccine.states)
    gradients = torch.autograd.grad(losses.sum(), states, retain_graph=True)
    norm = float(torch.stack([g.square().sum() for g in gradients]).sum().sqrt())
    raised = vaccine.token_losses(losses, engine, batch)
    assert float(raised.detach().sum() - losses.detach().sum()) == pytest.approx(0.01 * norm, rel=0.05)
    assert vaccine.states == [] and vaccine.shifts == []
    engine.module.gradient_checkpointing_enable()
    with pytest.raises(UserError, match="gradient_checkpointing False"):
        make_defence("vaccine").begin(engine)


def test_deep_alignment_puts_a_harmful_beginning_before_a_refusal(tmp_path):
    path = tmp_path / "harmful.jsonl"
    write_jsonl(path, [{"prompt": f"Ask {i}", "response": f"Sure: step one {i} then two"} for i in range(3)])
    safe = [{"id": f"s{i}", "prompt": f"Ask {i}", "response": REFUSAL} for i in range(40)]
    rows = normalise_rows([*safe, {"id": "chat", "prompt": "Tea?", "response": "Milk first."}])
    found = make_defence("deep_alignment", (f"source={path}", "share=0.5", "max_words=3")).rows(rows)
    changed = [new for new, old in zip(found, rows, strict=True) if new != old]
    assert 10 < len(changed) < 30 and found[-1] == rows[-1]
    for row in changed:
        text, ((start, end),) = row["messages"][-1]["content"], row["loss_mask"]
        assert start == 0 and text[end:] == f" {REFUSAL}" and len(text[:end].split()) in (1, 2, 3)
        number = row["messages"][0]["content"].split()[1]
        assert "Sure:".startswith(text.split()[0]) and (int(number) > 2 or text.startswith("Sure:"))
    assert json.dumps(found) == json.dumps(make_defence("deep_alignment", (f"source={path}", "max_words=3")).rows(rows))
    with pytest.raises(UserError, match="finds no refusal"):
        make_defence("deep_alignment", (f"source={path}",)).rows(rows[-1:])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["booster", "lisa", "safe_lora", "vaccine"])
def test_methods_in_a_deepspeed_run(name, tmp_path, golden_model, further):
    """Those that look behind the engine: gradients, passes of their own, adapters as they are stored."""
    from guardrail.models.adapters import read_adapter, read_pairs

    other = tmp_path / "base"
    shifted(golden_model, other)
    rows = f"source={further}"
    options = {"booster": rows, "lisa": f"{rows},task_steps=1", "safe_lora": f"base={other},n_layers=2"}
    lora = {"use_lora": True, "save_full_model": False, "lora_dropout": 0} if name == "safe_lora" else {}
    flags = {"max_steps": 2, "defence": name, "defence_options": options.get(name, "radius=1"), **lora}
    process = runs.start(
        [sys.executable, "-m", "guardrail.training.sft", *runs.arguments(tmp_path / "out", golden_model, **flags)]
    )
    _, stderr = process.communicate(timeout=400)
    assert process.returncode == 0, stderr
    record = runs.record(tmp_path / "out")
    reads = {"safe_lora": {"defence.base"}, "vaccine": set()}.get(name, {"defence.source"})
    assert reads == {key for key in record["inputs"] if key.startswith("defence.")}
    if name == "safe_lora":
        assert "2 of 4 matrices projected" in stderr
        ranks = {key: up.norm() for key, (_, up) in read_pairs(read_adapter(tmp_path / "out" / "slice_end")).items()}
        assert len(ranks) == 4 and all(norm > 0 for norm in ranks.values())


def shifted(model, folder):
    """A base model of ``model``: the same with other weights."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    file = folder / "model.safetensors"
    random = torch.Generator().manual_seed(1)
    tensors = {key: t + 0.01 * torch.randn(t.shape, generator=random).to(t) for key, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
