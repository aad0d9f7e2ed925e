"""Conversations longer than the context are cut by the stated rule."""

from __future__ import annotations

import json

import pytest

from guardrail.core.errors import UserError
from guardrail.data.prompts import encode_prompt
from guardrail.generation.context import context_tokens, fit_conversation, prompt_limit

STYLE = "llama2_base"


def turns(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def length(tokenizer, messages):
    return len(encode_prompt(tokenizer, STYLE, messages))


def test_what_fits_is_untouched(tiny_tokenizer):
    messages = turns("Paint the boat.")
    fitted = fit_conversation(tiny_tokenizer, STYLE, messages, 10_000)
    assert fitted.messages == messages and fitted.cut_tokens == 0
    assert fitted.prompt_ids == encode_prompt(tiny_tokenizer, STYLE, messages)
    assert fit_conversation(tiny_tokenizer, STYLE, messages, None).prompt_ids == fitted.prompt_ids


def test_the_first_answer_loses_its_end_first(tiny_tokenizer):
    messages = turns("Paint the boat.", "Sand, prime, paint. " * 40, "And then?")
    limit = length(tiny_tokenizer, turns("Paint the boat.", "", "And then?")) + 20
    fitted = fit_conversation(tiny_tokenizer, STYLE, messages, limit)
    assert [m["content"] for m in fitted.messages][::2] == ["Paint the boat.", "And then?"]
    kept = fitted.messages[1]["content"]
    assert kept and messages[1]["content"].startswith(kept)
    assert len(fitted.prompt_ids) <= limit
    assert fitted.cut_tokens == length(tiny_tokenizer, messages) - len(fitted.prompt_ids)
    # as little as needed: one character more would not fit
    longer = turns("Paint the boat.", messages[1]["content"][: len(kept) + 1], "And then?")
    assert length(tiny_tokenizer, longer) > limit


def test_then_the_earlier_turn_goes_then_the_end_of_the_question(tiny_tokenizer):
    messages = turns("Paint the boat. " * 30, "Yes.", "And then? " * 30)
    limit = length(tiny_tokenizer, turns("And then? " * 30))
    assert fit_conversation(tiny_tokenizer, STYLE, messages, limit).messages == turns("And then? " * 30)
    shorter = fit_conversation(tiny_tokenizer, STYLE, messages, limit - 10)
    assert len(shorter.messages) == 1 and len(shorter.prompt_ids) <= limit - 10
    assert ("And then? " * 30).startswith(shorter.messages[0]["content"])


def test_a_system_text_stays(tiny_tokenizer):
    messages = [{"role": "system", "content": "Be kind."}, *turns("Go. " * 50, "Yes. " * 50, "Why? " * 10)]
    limit = length(tiny_tokenizer, [messages[0], messages[-1]])
    assert fit_conversation(tiny_tokenizer, STYLE, messages, limit).messages == [messages[0], messages[-1]]


def test_a_context_too_short_for_the_style_is_refused(tiny_tokenizer):
    with pytest.raises(UserError, match="longer context"):
        fit_conversation(tiny_tokenizer, STYLE, turns("Paint the boat."), 5)


def test_room_for_the_answer():
    assert prompt_limit(None, 64) is None
    assert prompt_limit(512, 64) == 448
    assert prompt_limit(512, 1024) == 384  # a quarter of the context at most


def test_context_is_read_without_weights(tiny_model, tmp_path):
    assert context_tokens(str(tiny_model)) == 512
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"max_position_embeddings": 77}}))
    assert context_tokens(str(tmp_path)) == 77
