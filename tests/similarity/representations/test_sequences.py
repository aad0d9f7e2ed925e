"""Positions and text parts, derived by hand from the token ids (PITFALLS R2, R3)."""

import pytest

from guardrail.core.errors import UserError
from guardrail.data.prompts import encode_prompt, encode_supervised
from guardrail.data.rows import normalise_rows
from guardrail.similarity.representations.options import ModelFacts, resolve_options
from guardrail.similarity.representations.sequences import make_sequence

FACTS = ModelFacts("causal", n_layers=2, max_positions=512)
ALL = "eos,completion_last,prompt_last,completion_mean,mean"
ROW = normalise_rows([{"prompt": "Where does the river go?", "response": "To the quiet sea."}])[0]


def sequence(tokenizer, row=ROW, **options):
    options.setdefault("position", ALL)
    return make_sequence(tokenizer, row, resolve_options(FACTS, **options))


def decode(tokenizer, made, position):
    start, end = made.spans[position]
    return tokenizer.decode(made.input_ids[start:end])


def test_positions_name_the_tokens_they_say(tiny_tokenizer):
    made = sequence(tiny_tokenizer)
    assert made.input_ids == encode_supervised(tiny_tokenizer, "llama2_base", ROW["messages"]).input_ids
    assert made.input_ids[made.spans["eos"][0]] == tiny_tokenizer.eos_token_id
    assert made.spans["mean"] == (0, len(made.input_ids))
    assert decode(tiny_tokenizer, made, "completion_mean") == "To the quiet sea."
    assert made.spans["completion_last"] == (made.spans["completion_mean"][1] - 1, made.spans["completion_mean"][1])
    prompt = encode_prompt(tiny_tokenizer, "llama2_base", ROW["messages"][:1])
    assert made.spans["prompt_last"] == (len(prompt) - 1, len(prompt))
    assert made.spans["completion_mean"][0] == len(prompt)


def test_text_prompt_is_what_generation_starts_from(tiny_tokenizer):
    made = sequence(tiny_tokenizer, text="prompt", position="eos,prompt_last,mean")
    assert made.input_ids == encode_prompt(tiny_tokenizer, "llama2_base", ROW["messages"][:1])
    assert made.spans["eos"] == made.spans["prompt_last"] == (len(made.input_ids) - 1, len(made.input_ids))


def test_text_completion_has_bos_answer_and_end_only(tiny_tokenizer):
    made = sequence(tiny_tokenizer, text="completion", position="eos,completion_last,completion_mean,mean")
    assert made.input_ids[0] == tiny_tokenizer.bos_token_id
    assert decode(tiny_tokenizer, made, "completion_mean") == "To the quiet sea."
    assert made.input_ids[-1] == tiny_tokenizer.eos_token_id


def test_a_cut_row_does_not_end_with_eos_and_is_counted(tiny_tokenizer):
    full = sequence(tiny_tokenizer)
    cap = full.spans["completion_mean"][0] + 2  # two tokens of the answer are left
    made = sequence(tiny_tokenizer, max_length=cap)
    assert made.truncated and made.n_tokens == cap and made.n_tokens_full == full.n_tokens
    assert made.input_ids == full.input_ids[:cap]
    assert made.input_ids[made.spans["eos"][0]] != tiny_tokenizer.eos_token_id
    assert made.spans["eos"] == made.spans["completion_last"] == (cap - 1, cap)
    assert made.spans["completion_mean"] == (cap - 2, cap)


def test_keep_tail_keeps_bos_and_the_end(tiny_tokenizer):
    full = sequence(tiny_tokenizer)
    made = sequence(tiny_tokenizer, max_length=6, long_rows="keep_tail")
    assert made.input_ids == [full.input_ids[0], *full.input_ids[-5:]]
    assert made.input_ids[made.spans["eos"][0]] == tiny_tokenizer.eos_token_id


def test_exclude_drops_only_rows_over_the_cap(tiny_tokenizer):
    n = sequence(tiny_tokenizer).n_tokens
    assert sequence(tiny_tokenizer, max_length=n - 1, long_rows="exclude") is None
    assert sequence(tiny_tokenizer, max_length=n, long_rows="exclude") is not None


@pytest.mark.parametrize("long_rows", ["truncate", "keep_tail"])
@pytest.mark.parametrize("cap", [1, 2, 3, 10, 60])
def test_spans_are_never_empty_whatever_is_cut(tiny_tokenizer, cap, long_rows):
    made = sequence(tiny_tokenizer, max_length=cap, long_rows=long_rows)
    assert made.n_tokens == cap
    assert all(0 <= start < end <= cap for start, end in made.spans.values()), made.spans


def test_an_empty_answer_still_has_positions(tiny_tokenizer):
    row = normalise_rows([{"prompt": "Paint it.", "response": ""}])[0]
    made = sequence(tiny_tokenizer, row)
    assert all(0 <= start < end <= made.n_tokens for start, end in made.spans.values())


def test_a_prompt_without_answer_is_refused_with_the_way_out(tiny_tokenizer):
    row = normalise_rows([{"prompt": "Where does the river go?"}])[0]
    with pytest.raises(UserError, match="--text prompt"):
        sequence(tiny_tokenizer, row)
    assert sequence(tiny_tokenizer, row, text="prompt", position="eos").n_tokens > 1


@pytest.mark.parametrize("style", ["llama2_base", "llama2", "gemma_base", "gemma"])
def test_one_bos_in_every_style(tiny_tokenizer, style):
    made = sequence(tiny_tokenizer, prompt_style=style)
    assert made.input_ids.count(tiny_tokenizer.bos_token_id) == 1
    assert decode(tiny_tokenizer, made, "completion_mean").strip() == "To the quiet sea."
