"""Tokenizers as LLaMA-2, beaver-dam-7b and Gemma publish them, against sentencepiece itself.

The sentencepiece models are trained here on a few sentences with the originals' settings (byte fallback, no
normaliser, digits split, LLaMA's leading space, Gemma's turn markers and line-end runs).
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.core.errors import UserError
from guardrail.data.prompts import encode_prompt, encode_supervised, stop_strings, template_module
from guardrail.models.loading import load_tokenizer

pytest.importorskip("sentencepiece")
from published_tokenizers import make_published

STYLES = ("llama2_base", "llama2", "gemma_base", "gemma")
LAYOUTS = ("llama2", "llama2_fast", "beaver_dam", "gemma", "gemma_fast")
TALK = [
    {"role": "user", "content": "Name  three rivers.\n Zoë ☃ 2048?"},
    {"role": "assistant", "content": "I cannot help with that."},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "Sure, the lantern."},
]


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """Layout -> (folder, the sentencepiece processor that it was made from)."""
    return make_published(tmp_path_factory.mktemp("spm"))


def reference_ids(model, parts, eos):
    """sentencepiece's own ids of a conversation: BOS once, the leading space at the very start only, ``eos`` as one id.

    A boundary between turns lies between tokens: where a piece (Gemma's two line ends) would cross it, they are split.
    """
    ids, text = [], ""
    for part in parts:
        text += part
        whole = pieces(model, text, eos)
        ids = whole if whole[: len(ids)] == ids else ids + pieces(model, part, eos)
    return [model.bos_id(), *ids]


def pieces(model, text, eos):
    first, *others = text.split(eos)
    ids = model.encode(first)
    mark = "]"  # what follows EOS has no leading space: behind a piece that is cut off again
    lead = model.encode(mark)
    for part in others:
        ids += [model.eos_id(), *model.encode(mark + part)[len(lead) :]] if part else [model.eos_id()]
    return ids


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_style_has_the_ids_that_sentencepiece_gives(published, layout, style):
    folder, model = published[layout]
    tokenizer = load_tokenizer(str(folder))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (model.bos_id(), model.eos_id())
    render = template_module().STYLES[style].segments
    for messages in (TALK[:1], TALK[:2], TALK[:3], [{"role": "system", "content": "Be kind."}, *TALK[:2]]):
        parts = [part for part, _ in render(messages, tokenizer.eos_token, False)]
        ids = encode_prompt(tokenizer, style, messages)
        if layout in ("beaver_dam", "llama2_fast") and tokenizer.eos_token in "".join(parts):
            continue  # of the old kind: transformers 4 puts a space behind a special token, 5 does not
        assert ids == reference_ids(model, parts, tokenizer.eos_token)
        assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
    example = encode_supervised(tokenizer, style, TALK[:2])
    parts = [part for part, _ in render(TALK[:2], tokenizer.eos_token)]
    assert example.input_ids == reference_ids(model, parts, tokenizer.eos_token)
    assert example.input_ids[: example.prompt_length] == encode_prompt(tokenizer, style, TALK[:1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_slow_and_the_fast_form_agree(published, layout):
    """In transformers 5 they are one class; in 4, sentencepiece against its conversion."""
    from transformers import AutoTokenizer

    if layout.endswith("_fast"):
        pytest.skip("no tokenizer.model: there is one form only")
    folder, _ = published[layout]
    slow, fast = (AutoTokenizer.from_pretrained(folder, use_fast=fast) for fast in (False, True))
    for style in STYLES:
        assert encode_prompt(slow, style, TALK) == encode_prompt(fast, style, TALK)
        assert encode_supervised(slow, style, TALK) == encode_supervised(fast, style, TALK)


@settings(max_examples=80, deadline=None)
@given(question=st.text(max_size=40), answer=st.text(max_size=40))
def test_any_text_has_sentencepieces_ids_and_the_prompt_starts_the_example(published, question, answer):
    """Any text but the pieces' own sign for a space; no runs of line ends (Gemma's have 31 pieces, the toy's three)."""
    question, answer = (re.sub(r"\n{2,}", "\n", text.replace("\u2581", " ")) for text in (question, answer))
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    for layout, style in (
        ("llama2", "llama2_base"),
        ("llama2", "llama2"),
        ("beaver_dam", "llama2"),
        ("gemma", "gemma"),
    ):
        folder, model = published[layout]
        tokenizer = load_cached(str(folder))
        parts = [part for part, _ in template_module().STYLES[style].segments(messages, tokenizer.eos_token)]
        prompt = encode_prompt(tokenizer, style, messages[:1])
        assert prompt == reference_ids(model, parts[:1], tokenizer.eos_token)
        example = encode_supervised(tokenizer, style, messages)
        assert example.input_ids[: example.prompt_length] == prompt
        assert example.input_ids == reference_ids(model, parts, tokenizer.eos_token)


@functools.lru_cache
def load_cached(folder):
    return load_tokenizer(folder)


def test_an_added_pad_token_is_used_only_where_the_embeddings_grew_with_it(published, tmp_path):
    folder, model = published["beaver_dam"]
    assert load_tokenizer(str(folder)).pad_token_id == model.vocab_size()
    small = shutil.copytree(folder, tmp_path / "small")
    (small / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": model.vocab_size()}))
    tokenizer = load_tokenizer(str(small))
    assert tokenizer.pad_token == "<unk>" and tokenizer.pad_token_id < model.vocab_size()
    assert load_tokenizer(str(published["llama2"][0])).pad_token == "<unk>"
    assert load_tokenizer(str(published["gemma"][0])).pad_token == "<pad>"


def test_gemmas_turn_markers_are_one_token_each_and_stop_the_answer(published):
    folder, model = published["gemma"]
    tokenizer = load_tokenizer(str(folder))
    for marker in stop_strings("gemma"):
        assert tokenizer(marker, add_special_tokens=False)["input_ids"] == [model.piece_to_id(marker)]


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.5, 0.9, 0.999])
def test_a_model_file_that_is_cut_off_is_refused(published, tmp_path, fraction):
    """transformers 5 makes a tokenizer of the pieces that are left."""
    folder = shutil.copytree(published["llama2"][0], tmp_path / "cut")
    data = (folder / "tokenizer.model").read_bytes()
    (folder / "tokenizer.model").write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(UserError, match=r"tokenizer.model is no sentencepiece model or is cut off .* again"):
        load_tokenizer(str(folder))


def test_a_folder_without_a_vocabulary_is_refused(published, tmp_path):
    folder = shutil.copytree(published["llama2"][0], tmp_path / "none")
    (folder / "tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"has no vocabulary; expected one of tokenizer.json"):
        load_tokenizer(str(folder))


@pytest.mark.parametrize("blocked,advice", [("sentencepiece", "sentencepiece"), ("google.protobuf", "protobuf")])
def test_a_missing_package_is_named_in_one_line(published, blocked, advice):
    code = (
        f"import sys; sys.modules[{blocked!r}] = None\n"
        "from guardrail.core.errors import UserError\n"
        "from guardrail.models.loading import load_tokenizer\n"
        f"try: load_tokenizer({str(published['llama2'][0])!r})\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"is tokenizer.model alone, which needs {advice}; run: pip install {advice}\n")
