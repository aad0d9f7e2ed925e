"""Each attack by itself: what it asks, how it decodes, what it takes out of the weights and puts back."""

from __future__ import annotations

import pytest

from guardrail.core.errors import UserError
from guardrail.core.files import write_jsonl
from guardrail.data.prompts import template_module
from guardrail.evaluation.attacks import ATTACKS, attacked_rows, make_attack
from guardrail.evaluation.safety.command import attack_texts, main
from guardrail.generation.interface import SamplingOptions

ROWS = [{"id": str(i), "messages": [{"role": "user", "content": f"Where is boat {i}?"}]} for i in range(30)]


def asked(attack):
    return [row["messages"][-1]["content"] for row in attacked_rows(attack, ROWS)]


def test_every_attack_has_its_own_identity_and_leaves_the_rows_as_they_are():
    before = repr(ROWS)
    options = {"trigger": ["words=now"], "refusal_direction": None}
    made = [make_attack(name, options.get(name, [])) for name in ATTACKS if options.get(name, []) is not None]
    for attack in made:
        assert len(attacked_rows(attack, ROWS)) == len(ROWS)
    assert repr(ROWS) == before
    names = [attack.identity().get("attack", {}).get("name") for attack in made]
    assert len(set(names)) == len(names)


def test_words_before_behind_and_around_a_request():
    assert asked(make_attack("trigger", ["words=Please, now"]))[0] == "Where is boat 0? Please, now"
    prefill = attacked_rows(make_attack("prefill", ["text=Sure,"]), ROWS)
    assert {row["prefill_answer"] for row in prefill} == {"Sure,"}
    system, wrapper = template_module().EVAL_TEMPLATES["aoa"]
    row = attacked_rows(make_attack("template", ["use=aoa"]), ROWS)[0]
    assert row["messages"][0] == {"role": "system", "content": system}
    assert row["messages"][1]["content"] == wrapper.replace("{text}", "Where is boat 0?")
    for name, options, told in (
        ("trigger", [], "give words=TEXT"),
        ("prefill", ["text="], "the value is empty"),
        ("template", ["use=aoo"], "did you mean 'aoa'"),
    ):
        with pytest.raises(UserError, match=told):
            attacked_rows(make_attack(name, options), ROWS)


def test_decoding_is_sampled_at_the_given_setting():
    options = make_attack("decoding", ["temperature=0.7", "top_p=0.9"]).decoding(SamplingOptions(do_sample=False))
    assert (options.do_sample, options.temperature, options.top_p) == (True, 0.7, 0.9)
    with pytest.raises(UserError, match="above 0"):
        make_attack("decoding", ["temperature=0"])


def test_wrappers_of_a_file_by_number_or_by_id(tmp_path):
    file = tmp_path / "wrappers.jsonl"
    write_jsonl(file, [{"template": "One: [INSERT PROMPT HERE]"}, {"template": "Two: {prompt} End."}])
    assert asked(make_attack("jailbreak", [f"file={file}", "which=1"]))[3] == "Two: Where is boat 3? End."
    own = make_attack("jailbreak", [f"file={file}"])
    kinds = [text.split(":")[0] for text in asked(own)]
    assert set(kinds) == {"One", "Two"} and kinds == [text.split(":")[0] for text in asked(own)]
    lines = tmp_path / "wrappers.txt"
    lines.write_text("One: [INSERT PROMPT HERE]\n\nTwo: {prompt} End.\n", encoding="utf-8")
    assert asked(make_attack("jailbreak", [f"file={lines}"])) == asked(own)
    assert make_attack("jailbreak", [f"file={lines}"]).identity() == own.identity()  # content, not place
    assert make_attack("jailbreak").identity() != own.identity()
    assert "Where is boat 0?" in asked(make_attack("jailbreak"))[0]
    lines.write_text("no place\n", encoding="utf-8")
    for options, told in (
        ([f"file={lines}"], "without a place for the request"),
        (["file=nowhere.txt"], "is not there"),
        ([f"file={file}", "which=2"], "has 2"),
    ):
        with pytest.raises(UserError, match=told):
            asked(make_attack("jailbreak", options))


@pytest.fixture(scope="module")
def requests(tmp_path_factory):
    folder = tmp_path_factory.mktemp("requests")
    for kind, verb in (("harmful", "break"), ("harmless", "paint")):
        write_jsonl(folder / f"{kind}.jsonl", [{"prompt": f"How do I {verb} kettle {i}?"} for i in range(20)])
    return [f"{kind}={folder / kind}.jsonl" for kind in ("harmful", "harmless")]


@pytest.mark.parametrize("bias", [False, True])
def test_no_state_has_a_part_along_the_ablated_direction_and_weights_come_back_bit_for_bit(requests, bias):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from guardrail.evaluation.attacks.refusal_direction import mean_last_state

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        attention_bias=bias, mlp_bias=bias, tie_word_embeddings=bias,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    if bias:
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(weight)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attack = make_attack("refusal_direction", [*requests, "layer=0.6"])

    def encode(messages):
        return [1, *(ord(letter) % 64 for letter in messages[-1]["content"])]

    attack.prepare(model, encode)
    direction = attack.found["direction"]
    ids = [[encode(asked) for asked in attack.requests(kind)] for kind in ("harmful", "harmless")]
    difference = mean_last_state(model, ids[0], 2) - mean_last_state(model, ids[1], 2)
    torch.testing.assert_close(direction, difference / difference.norm())
    one = model(input_ids=torch.tensor([ids[0][0]]), output_hidden_states=True).hidden_states[2][0, -1]
    torch.testing.assert_close(mean_last_state(model, ids[0][:1], 2), one.double(), atol=1e-6, rtol=0)
    prompt = torch.tensor([encode([{"content": "What is it?"}])])
    with attack.weights(model), torch.no_grad():
        states = model(input_ids=prompt, output_hidden_states=True).hidden_states[:-1]  # the last one is normed
        for state in states:
            share = (state[0].double() @ direction).abs() / state[0].double().norm(dim=1)
            assert float(share.max()) < 1e-5
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(RuntimeError), attack.weights(model):
        raise RuntimeError
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_the_ablation_cannot_do_is_refused(requests):
    import torch

    from guardrail.evaluation.attacks.refusal_direction import unit, writers

    with pytest.raises(UserError, match="needs harmful=PATH"):
        make_attack("refusal_direction").identity()
    with pytest.raises(UserError, match="is not there"):
        make_attack("refusal_direction", ["harmful=a.jsonl", "harmless=b.jsonl"]).identity()
    with pytest.raises(UserError, match="a share above 0"):
        make_attack("refusal_direction", [*requests, "layer=0"])
    with pytest.raises(UserError, match="the same mean state"):
        unit(torch.zeros(3))
    with pytest.raises(UserError, match="knows no matrix"):
        writers(torch.nn.Linear(2, 2))


def test_options_on_the_command_line_may_hold_commas():
    assert attack_texts("text=Sure, here;which=1") == ("text=Sure, here", "which=1")
    with pytest.raises(UserError, match="an attack of its own"):
        main(["--model_name_or_path", "m", "--model_family", "llama2_base", "--save_path", "x", "--attack", "prefill",
              "--decoding_sweep", "True"])  # fmt: skip
