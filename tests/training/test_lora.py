"""The merge of a gathered state dict equals peft's own."""

from __future__ import annotations

import pytest
import toy

from guardrail.core.errors import UserError
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
