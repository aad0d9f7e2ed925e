"""The merge of a gathered state dict equals peft's own; an adapter's folder is a checkpoint like any other."""

from __future__ import annotations

import pytest
import toy

from guardrail.core.errors import UserError
from guardrail.models.adapters import CONFIG_FILE, read_adapter, read_pairs, stacked, write_adapter
from guardrail.models.checkpoints import hash_checkpoint, resolve_checkpoint
from guardrail.models.loading import load_backbone, load_causal_lm, load_tokenizer
from guardrail.training.checkpoint import save_adapter
from guardrail.training.lora import add_adapters, merged_state_dict


def test_merge_equals_peft(tiny_model):
    import torch
    from transformers import AutoModelForCausalLM

    config = toy.config(use_lora=True, r=4, lora_alpha=12, target_modules=("q_proj", "down_proj"))
    model = add_adapters(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    ours = merged_state_dict(model.state_dict(), config)
    theirs = model.merge_and_unload().state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name], tensor, atol=1e-5), name


def test_unknown_targets_are_refused_before_training(tiny_model):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with pytest.raises(UserError, match="did you mean 'q_proj'"):
        add_adapters(model, toy.config(target_modules=("q_pro",)))


def trained(base: str, seed: int, **options):
    """Adapters on ``base`` that were trained, as far as anyone can tell, and their options."""
    import torch

    config = toy.config(model_name_or_path=base, use_lora=True, save_full_model=False, bf16=False, **options)
    model = add_adapters(load_causal_lm(base, "float32", "cpu"), config)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    return model, config


def saved(folder, base: str, seed: int, **options):
    """An output folder as the trainer leaves it, and the weights that training ended with."""
    model, config = trained(base, seed, **options)
    save_adapter(model.get_base_model(), model.state_dict(), config, folder / "slice_end")
    load_tokenizer(base).save_pretrained(folder / "slice_end")
    return merged_state_dict(model.state_dict(), config)


def assert_same(state, expected, atol=1e-5):
    import torch

    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(state[name], tensor, atol=atol), name


def test_an_adapter_s_folder_loads_as_the_merged_model(tmp_path, tiny_model):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    expected = saved(tmp_path, tiny_model, 0, r=4, lora_alpha=12, target_modules=("q_proj", "down_proj"))
    assert_same(load_causal_lm(str(tmp_path), "float32", "cpu").state_dict(), expected)
    headless = load_backbone(str(tmp_path), "float32", "cpu").state_dict()
    assert_same(headless, {n.removeprefix("model."): t for n, t in expected.items() if n.startswith("model.")})
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path / "slice_end")
    assert_same(theirs.merge_and_unload().state_dict(), expected)


def test_an_adapter_on_an_adapter_needs_no_folder_but_the_plain_base_s(tmp_path, tiny_model):
    import shutil

    first, second = tmp_path / "first", tmp_path / "second"
    saved(first, tiny_model, 1, r=4, lora_alpha=8, target_modules=("q_proj",))
    expected = saved(second, str(first), 2, r=2, lora_alpha=6, target_modules=("q_proj", "v_proj"))
    shutil.rmtree(first)
    adapter = read_adapter(second / "slice_end")
    assert adapter.rank == 6 and resolve_checkpoint(adapter.base) == str(tiny_model)
    assert_same(load_causal_lm(str(second), "float32", "cpu").state_dict(), expected)


def test_an_adapter_of_another_base_is_refused(tmp_path, tiny_model):
    import shutil

    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    saved(tmp_path / "out", str(base), 0)
    before = hash_checkpoint(tmp_path / "out")
    text = (base / "config.json").read_text()
    (base / "config.json").write_text(text + " ")
    assert hash_checkpoint(tmp_path / "out") != before, "a part of the model"
    with pytest.raises(UserError, match="was trained on another"):
        load_causal_lm(str(tmp_path / "out"), "float32", "cpu")
    shutil.rmtree(base)
    with pytest.raises(UserError, match="which is not there"):
        load_causal_lm(str(tmp_path / "out"), "float32", "cpu")


def test_what_is_no_plain_lora_is_refused(tmp_path, tiny_model):
    import json

    saved(tmp_path, tiny_model, 0)
    file = tmp_path / "slice_end" / CONFIG_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_dora": True}))
    with pytest.raises(UserError, match="use_dora are not supported"):
        load_causal_lm(str(tmp_path), "float32", "cpu")


def test_ranks_add_where_both_change_a_module(tmp_path):
    import torch

    torch.manual_seed(0)
    one = {"a": (torch.randn(2, 5), torch.randn(3, 2)), "b": (torch.randn(2, 4), torch.randn(6, 2))}
    two = {"a": (torch.randn(3, 5), torch.randn(3, 3))}
    both = stacked(one, two)
    assert all(down.shape[0] == up.shape[1] == 5 for down, up in both.values())
    assert torch.allclose(both["a"][1] @ both["a"][0], sum(p["a"][1] @ p["a"][0] for p in (one, two)), atol=1e-5)
    assert torch.allclose(both["b"][1] @ both["b"][0], one["b"][1] @ one["b"][0])
    write_adapter(tmp_path, both, "org/base", "0" * 16, torch.float32)
    again = read_pairs(read_adapter(tmp_path))
    assert all(torch.equal(again[n][i], both[n][i]) for n in both for i in (0, 1))
