"""Shapes against what transformers builds from the same configuration, and against published counts."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from guardrail.bench.shapes import FAMILIES, N_LABELS, SHAPES, find_shape, shape_of_config
from guardrail.core.errors import UserError
from guardrail.evaluation.judges.moderation import LABELS
from guardrail.sandbox.models import ARCHITECTURE

# As the hub counts them: the parameters of the models' safetensors.
PUBLISHED = {
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama3-8b": 8_030_261_248,
    "gemma2-2b": 2_614_341_888,
    "gemma2-9b": 9_241_705_984,
}
SMALL = {
    "vocab_size": 96,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
VARIANTS = [
    *({"model_type": family} for family in FAMILIES),
    {"model_type": "llama", "tie_word_embeddings": True},
    {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    {"model_type": "gemma2", "head_dim": 16},
]


def count(kind, config) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in kind.from_config(config).parameters())


@pytest.mark.parametrize(("name", "n"), PUBLISHED.items())
def test_published_shapes_have_the_published_number_of_parameters(name, n):
    assert SHAPES[name].n_parameters() == n


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_parameters_are_those_of_transformers_own_model(variant):
    settings = {**SMALL, **variant, "num_labels": N_LABELS}
    config = AutoConfig.for_model(**settings)
    shape = shape_of_config(config.to_dict(), "x")
    assert shape.n_parameters() == count(AutoModelForCausalLM, config)
    assert shape.n_parameters("none") == count(AutoModel, config)
    assert shape.n_parameters("labels") == count(AutoModelForSequenceClassification, config)


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("k_proj", "o_proj", "gate_proj", "down_proj")])
def test_adapters_are_those_of_peft(targets):
    from peft import LoraConfig, get_peft_model

    config = AutoConfig.for_model("llama", **SMALL)
    with torch.device("meta"):
        model = get_peft_model(
            AutoModelForCausalLM.from_config(config),
            LoraConfig(task_type="CAUSAL_LM", r=6, target_modules=list(targets)),
        )
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert shape_of_config(config.to_dict(), "x").lora_parameters(6, targets) == trained


def test_key_value_bytes_by_hand_and_by_the_cache():
    # 2 (keys and values) x 32 layers x 4096 numbers x 2 bytes: half a MiB per token of Llama-2-7B
    assert SHAPES["llama2-7b"].kv_bytes(1, 1) == 524_288
    # a fourth of the heads: 32 layers x 2 x 1024 x 2 bytes
    assert SHAPES["llama3-8b"].kv_bytes(8, 100) == 8 * 100 * 131_072
    config = AutoConfig.for_model("llama", **SMALL)
    model = AutoModelForCausalLM.from_config(config)
    cache = model(torch.zeros((2, 5), dtype=torch.long), use_cache=True).past_key_values
    held = sum(t.untyped_storage().nbytes() for layer in cache.layers for t in (layer.keys, layer.values))
    assert shape_of_config(config.to_dict(), "x").kv_bytes(2, 5, "float32") == held


def test_the_sandbox_s_shape_is_the_sandbox_s():
    shape = SHAPES["sandbox"]
    config = AutoConfig.for_model("llama", vocab_size=2048, tie_word_embeddings=True, **ARCHITECTURE)
    assert shape == shape_of_config(config.to_dict(), "sandbox")
    assert len(LABELS) == N_LABELS


def test_a_shape_is_found_by_name_hub_name_and_folder(tmp_path):
    config = AutoConfig.for_model("llama", **SMALL)
    config.save_pretrained(tmp_path / "model" / "slice_end")
    named = shape_of_config(config.to_dict(), str(tmp_path / "model"))
    assert find_shape(tmp_path / "model") == named
    assert find_shape(tmp_path / "model" / "slice_end" / "config.json").n_parameters() == named.n_parameters()
    assert find_shape("meta-llama/Llama-2-7b-hf").n_parameters() == PUBLISHED["llama2-7b"]
    assert find_shape("google/gemma-2-9b-it").n_parameters() == PUBLISHED["gemma2-9b"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, "has no config.json"),
        ("{", "not valid JSON"),
        ("[]", "no JSON object"),
        ({"model_type": "lama"}, "did you mean 'llama'"),
        ({"model_type": "bert"}, "available: llama"),
        ({"model_type": "llama", "vocab_size": 10}, "hidden_size is None"),
        ({"model_type": "llama", **SMALL, "hidden_size": -4}, "hidden_size is -4"),
    ],
)
def test_what_is_no_shape_is_refused_in_one_line(tmp_path, config, words):
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=words):
        find_shape(tmp_path)
    with pytest.raises(UserError, match="did you mean 'llama2-7b'"):
        find_shape("llama-7b")
