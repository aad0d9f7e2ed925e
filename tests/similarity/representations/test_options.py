"""Options are checked against the model and each other before anything loads (PITFALLS R1, R9, R10)."""

import json

import pytest

from guardrail.core.errors import UserError
from guardrail.similarity.representations.options import ModelFacts, model_facts, parse_layers, resolve_options

CAUSAL = ModelFacts("causal", n_layers=4, max_positions=512)
ENCODER = ModelFacts("encoder", n_layers=6, max_positions=512)


def test_defaults_are_the_papers_feature():
    options = resolve_options(CAUSAL)
    assert options.views == ("layer4_eos",)
    assert (options.text, options.prompt_style, options.max_length) == ("full", "llama2_base", 512)


def test_encoder_defaults_to_mean_pooling_and_takes_no_prompt_style():
    assert resolve_options(ENCODER).views == ("layer6_mean",)
    with pytest.raises(UserError, match="no effect on an encoder"):
        resolve_options(ENCODER, prompt_style="llama2_base")


@pytest.mark.parametrize(
    ("text", "layers"), [("-1", (4,)), ("0", (0,)), ("-5", (0,)), ("1,3,-1,4", (1, 3, 4)), ("all", (0, 1, 2, 3, 4))]
)
def test_layers_count_embeddings_as_0_and_the_normed_output_as_minus_1(text, layers):
    assert parse_layers(text, 4) == layers


@pytest.mark.parametrize("text", ["5", "-6", "last", "", "1,,2"])
def test_layers_out_of_range_or_malformed_are_refused(text):
    with pytest.raises(UserError, match="--layer"):
        parse_layers(text, 4)


@pytest.mark.parametrize(
    ("facts", "options", "message"),
    [
        (CAUSAL, {"position": "eso"}, "did you mean 'eos'"),
        (CAUSAL, {"position": "prompt_last", "text": "completion"}, "not available with --text completion"),
        (CAUSAL, {"position": "completion_mean", "text": "prompt"}, "not available with --text prompt"),
        (ENCODER, {"position": "prompt_last"}, "not available"),
        (CAUSAL, {"max_length": 513}, "more than the model's 512 positions"),
        (CAUSAL, {"final_norm": False, "layer": "2"}, "only concerns layer 4"),
        (CAUSAL, {"backend": "vllm", "layer": "2"}, "last layer"),
        (CAUSAL, {"backend": "vllm", "position": "mean"}, "one token's state"),
        (ENCODER, {"backend": "vllm"}, "causal LMs only"),
        (CAUSAL, {"prompt_style": "lama2_base"}, "did you mean 'llama2_base'"),
        (CAUSAL, {"torch_dtype": "bf16"}, "--torch_dtype"),
        (CAUSAL, {"long_rows": "cut"}, "--long_rows"),
    ],
)
def test_what_would_do_nothing_is_refused(facts, options, message):
    with pytest.raises(UserError, match=message):
        resolve_options(facts, **options)


@pytest.mark.parametrize(
    ("config", "architecture", "n_layers"),
    [
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 3}, "causal", 3),
        ({"architectures": ["BertModel"], "model_type": "bert", "num_hidden_layers": 6}, "encoder", 6),
        ({"architectures": ["RobertaForMaskedLM"], "model_type": "roberta", "num_hidden_layers": 2}, "encoder", 2),
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_layer": 5}, "causal", 5),
        (
            {
                "architectures": ["Gemma3ForConditionalGeneration"],
                "model_type": "gemma3",
                "text_config": {"num_hidden_layers": 7, "model_type": "gemma3_text"},
            },
            "causal",
            7,
        ),
    ],
)
def test_model_kind_comes_from_the_configuration(tmp_path, config, architecture, n_layers):
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"")
    facts = model_facts(str(tmp_path))
    assert (facts.architecture, facts.n_layers) == (architecture, n_layers)


def test_encoder_decoders_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"is_encoder_decoder": True, "model_type": "t5"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="encoder-decoder"):
        model_facts(str(tmp_path))
