"""``loss_mask``: no masked character is ever a label, everything else is, for every prompt style and tokenizer kind."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published_tokenizers import make_published

from guardrail.core.errors import UserError
from guardrail.data.loss_mask import hash_masked_rows, mask_of, masked_tokens, merged, without_masked
from guardrail.data.mix import main as mix
from guardrail.data.prompts import encode_supervised, style_names
from guardrail.data.rows import hash_rows, load_rows, normalise_rows
from guardrail.models.loading import load_tokenizer

CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TRIMMED = CHATML.replace("m['content']", "m['content'] | trim")
STYLES = [*((style, CHATML) for style in style_names()), ("chat_template", TRIMMED)]
KINDS = ("byte_level", "llama", "gemma")
TEXTS = st.text(alphabet=st.sampled_from("abc de.\n,Aé字😀 \u0301"), max_size=40)


@pytest.fixture(scope="module")
def tokenizers(tiny_tokenizer, tmp_path_factory):
    found = make_published(tmp_path_factory.mktemp("spm"))
    folders = {kind: next(folder for name, (folder, _) in found.items() if kind in name) for kind in KINDS[1:]}
    out = {kind: load_tokenizer(str(folder)) for kind, folder in folders.items()}
    yield {**out, "byte_level": tiny_tokenizer}
    tiny_tokenizer.chat_template = None


def piece_bytes(kind: str, piece: str, special: bool) -> bytes:
    """The bytes that a token stands for, from its name alone: nothing is asked of the tokenizer's places."""
    if special:
        return piece.encode()
    if kind == "byte_level":
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        back = {shown: byte for byte, shown in bytes_to_unicode().items()}
        return bytes(back[character] for character in piece)
    if len(piece) == 6 and piece.startswith("<0x"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("\u2581", " ").encode()


def expected_masked(kind, tokenizer, example, whole: str, masked: set[int]) -> list[bool]:
    """By walking over the text's bytes, token by token. ``masked``: characters of ``whole``."""
    owner = [number for number, character in enumerate(whole) for _ in character.encode()]
    text, at, out = whole.encode(), 0, []
    for number in example.input_ids:
        special = number in tokenizer.all_special_ids
        piece = piece_bytes(kind, tokenizer.convert_ids_to_tokens(number), special)
        if not text.startswith(piece, at) and special:  # BOS in front, EOS added behind: no part of the text
            out.append(False)
            continue
        if not text.startswith(piece, at):
            assert piece[:1] == b" " and text.startswith(piece[1:], at), (piece, text[at : at + 9])
            piece = piece[1:]  # LLaMA's leading blank
        touched = set(owner[at : at + len(piece)]) or {owner[at]} if at < len(owner) else set()
        out.append(bool(touched & masked))
        at += len(piece)
    assert at == len(text)
    return out


@pytest.mark.parametrize(("style", "template"), STYLES, ids=[*style_names(), "chat_template_that_trims"])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8)
@given(question=TEXTS, answer=TEXTS, turns=st.booleans(), data=st.data())
def test_exactly_the_tokens_that_hold_a_masked_character_lose_their_label(
    tokenizers, kind, style, template, question, answer, turns, data
):
    tokenizer = tokenizers[kind]
    tokenizer.chat_template = template
    answer = f"{answer}x" if not answer.strip() else answer
    messages = [{"role": "user", "content": f"q{question}"}, {"role": "assistant", "content": answer}]
    if turns:  # the same answer before: only the last one is masked
        messages = [*messages, *messages]
    cut = st.integers(0, len(answer))
    spans = data.draw(st.lists(st.tuples(cut, cut).filter(lambda pair: pair[0] < pair[1]), min_size=1, max_size=3))
    example = encode_supervised(tokenizer, style, messages)
    found = masked_tokens(tokenizer, style, messages, merged(spans), example)

    whole, start = rendered(tokenizer, style, messages, template)
    characters = {start + i for first, last in spans for i in range(first, last) if in_text(answer, template, i)}
    assert found == expected_masked(kind, tokenizer, example, whole, characters)
    kept = without_masked(example.answer_spans[-1:], found)
    labels = {position for first, last in kept for position in range(first, last)}
    first, last = example.answer_spans[-1]
    assert labels == {position for position in range(first, last) if not found[position]}
    assert last - 1 in labels  # the end marker stays


def rendered(tokenizer, style, messages, template) -> tuple[str, int]:
    """The text that is tokenised, and where the last answer's first character is (or would be, were it not trimmed)."""
    from guardrail.data.prompts import template_module

    answer = messages[-1]["content"]
    if style == "chat_template":
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        shown = answer.strip() if template == TRIMMED else answer
        tail = f"{tokenizer.eos_token}\n"
        start = len(whole) - len(tail) - len(shown)
        return whole, start - (len(answer) - len(answer.lstrip()) if template == TRIMMED else 0)
    chat = template_module().STYLES[style]
    whole = "".join(text for text, _ in chat.segments(messages, tokenizer.eos_token))
    return whole, len(whole) - len(chat.answer_end.replace("{eos}", tokenizer.eos_token)) - len(answer)


def in_text(answer: str, template: str, number: int) -> bool:
    """Is the character rendered at all?"""
    if template != TRIMMED:
        return True
    return len(answer) - len(answer.lstrip()) <= number < len(answer.rstrip())


def test_what_is_refused(tiny_tokenizer):
    row = {"id": "r1", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "abc"}]}
    for value in ([[0, 4]], [[2, 2]], [[-1, 2]], [[0, 1.0]], [[True, 2]], "x", 3, [0, 2], [[0, 1, 2]], {"a": 1}):
        with pytest.raises(UserError, match=r"row r1: loss_mask"):
            mask_of({**row, "loss_mask": value})
    slow = type("SlowTokenizer", (), {"is_fast": False})()
    with pytest.raises(UserError, match="SlowTokenizer is a slow tokenizer"):
        masked_tokens(slow, "llama2_base", row["messages"], [(0, 1)], None)
    tiny_tokenizer.chat_template = CHATML.replace("m['content']", "m['content'] | upper")
    example = encode_supervised(tiny_tokenizer, "chat_template", row["messages"])
    with pytest.raises(UserError, match="changes the text of answers"):
        masked_tokens(tiny_tokenizer, "chat_template", row["messages"], [(0, 1)], example)
    tiny_tokenizer.chat_template = None


def test_every_way_that_a_row_carries_its_mask():
    row = {"id": "1", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "abcdef"}]}
    for more in (
        {"loss_mask": [[3, 5], [0, 1], [4, 6]]},
        {"loss_mask": "[[0, 1], [3, 6]]"},
        {"extra": json.dumps({"loss_mask": [[0, 1], [3, 6]]})},
    ):
        assert mask_of({**row, **more}) == [(0, 1), (3, 6)]
    for more in ({}, {"loss_mask": None}, {"loss_mask": []}, {"extra": "about loss_mask"}, {"extra": '["loss_mask"]'}):
        assert mask_of({**row, **more}) == []


def test_a_mask_is_part_of_the_data_hash_and_passes_through_a_mixture(tmp_path):
    plain = [{"prompt": f"q{i}", "response": "One. Two."} for i in range(4)]
    masked = [{**row, "loss_mask": [[0, 4]]} for row in plain]
    rows = normalise_rows(plain)
    assert hash_masked_rows(rows) == hash_rows(rows) != hash_masked_rows(normalise_rows(masked))
    for name, content in (("a", plain), ("b", masked)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    flags = ["--instruct", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "mixed"), "--task", "t", "--sim", "high"]
    for source in "ab":
        done = mix([*flags, "--safety", str(tmp_path / f"{source}.jsonl")])
        assert "skipped" not in done  # another mask is another mixture
    found = load_rows(tmp_path / "mixed", split=done["split"])
    assert sorted(len(mask_of(row)) for row in found) == [0] * 4 + [1] * 4
