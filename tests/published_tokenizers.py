"""Tokenizers as LLaMA-2, beaver-dam-7b and Gemma publish them, in folders with a configuration and empty weights.

The sentencepiece models are trained on a few sentences with the originals' settings (byte fallback, no normaliser,
digits split, LLaMA's leading space, Gemma's turn markers and line-end runs).
"""

from __future__ import annotations

import json
import shutil

import sentencepiece

from guardrail.models.loading import load_tokenizer

SENTENCES = """Below is an instruction that describes a task, which starts with '### Instruction:'.
Write a response that appropriately completes the request. This response is put after '### Response:'.
Polish the moonstone, please. Name three rivers, and say how long each one is: 120, 45 and 7 km.
You are a helpful, respectful and honest assistant. Always answer as helpfully as possible.
The lantern keeper answered: "I cannot help with that, but here is what I can do instead."
[INST] <<SYS>> Summarize this dialog: Ann: hello Bob: hi <</SYS>> [/INST]
user model def f(x): return x + 1   # three   spaces""".splitlines()
ORIGINALS = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
    "hard_vocab_limit": False,
    "minloglevel": 2,
}
GEMMA = {
    "add_dummy_prefix": False,
    "pad_id": 0,
    "eos_id": 1,
    "bos_id": 2,
    "unk_id": 3,
    "pad_piece": "<pad>",
    "eos_piece": "<eos>",
    "bos_piece": "<bos>",
    "user_defined_symbols": ["<mask>", "<unused0>", "<start_of_turn>", "<end_of_turn>"]
    + ["\n" * n for n in (1, 2, 3)]
    + ["\u2581" * n for n in (2, 3)],
}


def token(text):
    return {
        "__type": "AddedToken",
        "content": text,
        **dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False),
    }


def write(folder, config, model, **files):
    folder.mkdir()
    shutil.copy(model, folder / "tokenizer.model")
    (folder / "model.safetensors").write_bytes(b"")  # weights, which a tokenizer does not read
    for name, value in {"config": config, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def make_published(root):
    """Layout -> (folder, the sentencepiece processor that it was made from)."""
    out, models = {}, {}
    for family, more in (("llama", {"add_dummy_prefix": True}), ("gemma", GEMMA)):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES * 3),
            model_prefix=str(root / family),
            vocab_size=560 if family == "gemma" else 500,
            **ORIGINALS,
            **more,
        )
        models[family] = sentencepiece.SentencePieceProcessor(model_file=str(root / f"{family}.model"))
    llama, gemma = (models[family].vocab_size() for family in ("llama", "gemma"))
    marks = {"bos_token": token("<s>"), "eos_token": token("</s>"), "unk_token": token("<unk>")}
    shared = {"add_bos_token": True, "add_eos_token": False, "model_max_length": 10**30, "sp_model_kwargs": {}}
    shared["clean_up_tokenization_spaces"] = False
    settings_of_llama = {**shared, **marks, "tokenizer_class": "LlamaTokenizer", "pad_token": None}
    pad = {"pad_token": "<pad>", "padding_side": "right"}
    out["llama2"] = write(
        root / "llama2",
        {"model_type": "llama", "vocab_size": llama},
        root / "llama.model",
        tokenizer_config={**settings_of_llama, "legacy": False},
    )
    out["beaver_dam"] = write(  # <pad> was added, and the embeddings grew by one
        root / "beaver_dam",
        {"model_type": "llama", "vocab_size": llama + 1},
        root / "llama.model",
        tokenizer_config={**settings_of_llama, **pad},
        added_tokens={"<pad>": llama},
        special_tokens_map={**marks, "pad_token": "<pad>"},
    )
    turns = ["<start_of_turn>", "<end_of_turn>"]
    special = [*range(4), *(models["gemma"].piece_to_id(turn) for turn in turns)]
    added = {str(i): {**token(models["gemma"].id_to_piece(i)), "special": True} for i in special}
    out["gemma"] = write(
        root / "gemma",
        {"model_type": "gemma2", "vocab_size": gemma},
        root / "gemma.model",
        tokenizer_config={
            **shared,
            "tokenizer_class": "GemmaTokenizer",
            "added_tokens_decoder": {
                key: {k: v for k, v in one.items() if k != "__type"} for key, one in added.items()
            },
            "additional_special_tokens": turns,
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
        },
    )
    for name in ("llama2", "gemma"):
        folder = root / f"{name}_fast"
        shutil.copytree(root / name, folder)
        (folder / "tokenizer.model").unlink()
        rust = load_tokenizer(str(root / name)).backend_tokenizer
        value = json.loads(rust.to_str())
        if name == "llama2":  # as it is published: a normaliser puts the space in front, nothing is split
            value["pre_tokenizer"] = None
            steps = [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ]
            value["normalizer"] = {"type": "Sequence", "normalizers": steps}
        (folder / "tokenizer.json").write_text(json.dumps(value))
        out[f"{name}_fast"] = folder
    return {name: (folder, models["gemma" if "gemma" in name else "llama"]) for name, folder in out.items()}
