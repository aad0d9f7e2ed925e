"""Prompt strings, one BOS, and prompt ids in training equal to prompt ids at generation."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest

from guardrail.core.errors import UserError
from guardrail.data import prompts
from guardrail.data.prompts import (
    IGNORE_INDEX,
    apply_eval_template,
    check_style,
    encode_prompt,
    encode_supervised,
    template_module,
)

STYLES = ("llama2_base", "llama2", "gemma_base", "gemma", "chat_template")
CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TURNS = [
    {"role": "user", "content": "Name a boat."},
    {"role": "assistant", "content": "Sand it."},
    {"role": "user", "content": "Another?"},
    {"role": "assistant", "content": "Prime it."},
]


@pytest.fixture
def tokenizer(tiny_tokenizer):
    tiny_tokenizer.chat_template = CHATML
    yield tiny_tokenizer
    tiny_tokenizer.chat_template = None


def test_llama2_base_string_is_the_published_one(tokenizer):
    text = tokenizer.decode(encode_supervised(tokenizer, "llama2_base", TURNS[:2]).input_ids)
    system = template_module().LLAMA2_BASE_SYSTEM
    assert text == f"<s>{system}\n### Instruction:\nName a boat.\n\n### Response:\nSand it.\n </s>"


def test_llama2_string_has_one_space_after_the_instruction(tokenizer):
    messages = [{"role": "system", "content": "S"}, *TURNS[:2]]
    text = tokenizer.decode(encode_supervised(tokenizer, "llama2", messages).input_ids)
    assert text == "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nName a boat. [/INST] Sand it. </s>"


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("n", [2, 4])
def test_training_prompt_ids_are_generation_prompt_ids(tokenizer, style, n):
    example = encode_supervised(tokenizer, style, TURNS[:n])
    prompt = encode_prompt(tokenizer, style, TURNS[: n - 1])
    assert example.input_ids[: example.prompt_length] == prompt


@pytest.mark.parametrize("style", STYLES)
def test_bos_exactly_once_where_the_format_has_one(tokenizer, style):
    expected = 0 if style == "chat_template" else 1  # the toy chat template prints none, the tokenizer adds none
    ids = encode_supervised(tokenizer, style, TURNS).input_ids
    assert ids.count(tokenizer.bos_token_id) == expected
    assert encode_prompt(tokenizer, style, TURNS[:1]).count(tokenizer.bos_token_id) == expected


def test_a_chat_template_that_prints_bos_does_not_double_it(tokenizer):
    tokenizer.chat_template = "{{ bos_token }}" + CHATML
    ids = encode_supervised(tokenizer, "chat_template", TURNS).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("style", STYLES)
def test_labels_cover_exactly_the_answer_and_its_end(tokenizer, style):
    example = encode_supervised(tokenizer, style, TURNS)
    last = [i for i in example.labels() if i != IGNORE_INDEX]
    assert tokenizer.decode(last).strip().startswith("Prime it.")
    assert tokenizer.eos_token_id in last
    every = [i for i in example.labels("all_assistant_turns") if i != IGNORE_INDEX]
    assert "Sand it." in tokenizer.decode(every) and "Another" not in tokenizer.decode(every)
    assert len(example.labels()) == len(example.input_ids)


def test_a_merge_across_the_boundary_is_split_there(tokenizer):
    # "[/INST]" + " To" could merge its space differently; whatever the merges, the boundary must hold.
    for answer in ("To the quiet sea", "\n\nTo", " 1. Sand", "###"):
        messages = [TURNS[0], {"role": "assistant", "content": answer}]
        for style in STYLES:
            example = encode_supervised(tokenizer, style, messages)
            assert example.input_ids[: example.prompt_length] == encode_prompt(tokenizer, style, messages[:1])


def test_prefill_is_the_start_of_the_trained_answer(tokenizer):
    messages = [TURNS[0], {"role": "assistant", "content": "1. Sand it."}]
    whole = encode_supervised(tokenizer, "llama2_base", messages).input_ids
    prefilled = encode_prompt(tokenizer, "llama2_base", messages)
    assert whole[: len(prefilled)] == prefilled


def test_truncation_is_counted_and_cuts_from_the_right(tokenizer):
    whole = encode_supervised(tokenizer, "llama2_base", TURNS)
    cut = encode_supervised(tokenizer, "llama2_base", TURNS, max_length=20)
    assert cut.truncated and not whole.truncated
    assert cut.input_ids == whole.input_ids[:20]
    assert cut.n_tokens_full == len(whole.input_ids)
    assert all(label == IGNORE_INDEX for label in cut.labels())


def test_literal_braces_in_user_text_are_not_substituted(tokenizer):
    text = tokenizer.decode(encode_prompt(tokenizer, "llama2", [{"role": "user", "content": "{system} {text} {eos}"}]))
    assert "{system} {text} {eos} [/INST]" in text


def test_eval_templates_change_system_and_wrapper():
    messages = [{"role": "user", "content": "Q"}]
    assert apply_eval_template(messages, "plain") == messages
    assert apply_eval_template(messages, "null")[0] == {"role": "system", "content": ""}
    assert "### Instruction:\nQ" in apply_eval_template(messages, "alpaca")[1]["content"]
    with pytest.raises(UserError, match="did you mean 'helpful'"):
        apply_eval_template(messages, "helpfull")


def test_wrong_styles_and_conversations_are_refused(tokenizer):
    with pytest.raises(UserError, match="did you mean 'llama2_base'"):
        check_style("lama2_base")
    with pytest.raises(UserError, match="must end with an assistant"):
        encode_supervised(tokenizer, "llama2", TURNS[:1])
    with pytest.raises(UserError, match="expected 'user'"):
        encode_prompt(tokenizer, "llama2", [TURNS[1]])
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        encode_prompt(tokenizer, "chat_template", TURNS[:1])


STYLE_FIELDS = ("default_system", "first_user", "next_user", "answer_start", "answer_end", "history_end")


@pytest.mark.parametrize("field", STYLE_FIELDS)
@pytest.mark.parametrize("style", ["llama2_base", "llama2", "gemma_base", "gemma"])
def test_every_part_of_a_style_is_in_its_fingerprint_and_in_no_other(style, field, monkeypatch):
    module = prompts.template_module.__wrapped__()
    monkeypatch.setattr(prompts, "template_module", lambda: module)
    names = list(module.STYLES)
    before = {name: prompts.style_fingerprint(name) for name in names}
    assert len(set(before.values())) == len(names)
    text = getattr(module.STYLES[style], field)
    module.STYLES[style] = dataclasses.replace(module.STYLES[style], **{field: f"Now: {text}"})
    changed = {name for name in names if prompts.style_fingerprint(name) != before[name]}
    assert changed == {style}


def test_every_part_of_an_eval_template_is_in_its_fingerprint(monkeypatch):
    module = prompts.template_module.__wrapped__()
    monkeypatch.setattr(prompts, "template_module", lambda: module)
    before = {name: prompts.eval_template_fingerprint(name) for name in module.EVAL_TEMPLATES}
    assert len(set(before.values())) == len(before)
    system, wrapper = module.EVAL_TEMPLATES["aoa"]
    for changed in ((f"{system}!", wrapper), (system, f"{wrapper}!"), (None, wrapper)):
        module.EVAL_TEMPLATES["aoa"] = changed
        assert [n for n in before if prompts.eval_template_fingerprint(n) != before[n]] == ["aoa"]


def test_a_chat_template_is_in_the_fingerprint_whether_read_from_the_folder_or_the_tokenizer(tiny_tokenizer, tmp_path):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    seen = set()
    for template in (None, "{{ messages[0]['content'] }}", "{{ messages[-1]['content'] }}"):
        tokenizer.chat_template = template
        folder = tmp_path / str(len(seen))
        tokenizer.save_pretrained(folder)
        loaded = prompts.style_fingerprint("chat_template", tokenizer)
        assert prompts.style_fingerprint("chat_template", folder) == loaded
        seen.add(loaded)
    assert len(seen) == 3
    (tmp_path / "old").mkdir()  # where older versions keep it
    (tmp_path / "old" / "tokenizer_config.json").write_text(json.dumps({"chat_template": tokenizer.chat_template}))
    assert prompts.style_fingerprint("chat_template", str(tmp_path / "old")) == loaded
