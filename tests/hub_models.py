"""Small random models in exactly the layouts in which those of the paper are published, for tests/hub_server.py.

    publish_models(hub, folder)     # also writes each to folder/<name>, as a download of it would

What is kept of each original: names and number of weight files, their formats and indices, the tokenizer's files and
kind, gates. Sources (public facts only): the file listings at huggingface.co/<name>/tree/main.

* meta-llama/Llama-2-7b-hf: sharded safetensors and, beside them, sharded torch files; both kinds of tokenizer; gated.
* google/gemma-2-2b: sharded safetensors, turn markers, tied embeddings; gated.
* PKU-Alignment/beaver-dam-7b: torch files only, `tokenizer.model` only, and a pad token that was added.
* org/chat: what `save_pretrained` writes today, one file.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from published_tokenizers import make_published

LLAMA, GEMMA, BEAVER_DAM, CHAT = (
    "meta-llama/Llama-2-7b-hf",
    "google/gemma-2-2b",
    "PKU-Alignment/beaver-dam-7b",
    "org/chat",
)
TOKENIZER_OF = {LLAMA: ("llama2", "llama2_fast"), GEMMA: ("gemma", "gemma_fast"), BEAVER_DAM: ("beaver_dam",)}
TOKENIZER_OF[CHAT] = TOKENIZER_OF[LLAMA]
LEGAL = {"README.md": "---\nlicense: other\n---\n", "LICENSE.txt": "A licence.\n", "USE_POLICY.md": "A policy.\n"}


def publish_models(hub: Any, root: Path) -> dict[str, Path]:
    """Name -> folder with the same files."""
    (root / "tokenizers").mkdir(parents=True)
    tokenizers = {name: folder for name, (folder, _) in make_published(root / "tokenizers").items()}
    folders = {}
    for name, layouts in TOKENIZER_OF.items():
        folder = root / name
        _model(name, json.loads((tokenizers[layouts[0]] / "config.json").read_text())["vocab_size"], folder)
        for layout in layouts:
            for file in tokenizers[layout].iterdir():
                if file.name not in ("config.json", "model.safetensors"):
                    shutil.copy(file, folder / file.name)
        folders[name] = folder
        if name in (LLAMA, GEMMA):
            for file, text in LEGAL.items():
                (folder / file).write_text(text)
        hub.create_from("model", name, folder, gated="manual" if name in (LLAMA, GEMMA) else False)
    return folders


def _model(name: str, vocab_size: int, folder: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(len(name))
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"vocab_size": vocab_size, "max_position_embeddings": 512}
    if name == GEMMA:
        config = transformers.Gemma2Config(**sizes, num_key_value_heads=2, head_dim=8, sliding_window=64)
        model = transformers.Gemma2ForCausalLM(config)
    elif name == BEAVER_DAM:
        from guardrail.evaluation.judges.moderation import LABELS

        labels = dict(enumerate(LABELS))
        config = transformers.LlamaConfig(**sizes, id2label=labels, label2id={v: k for k, v in labels.items()})
        config.problem_type, config.pad_token_id = "multi_label_classification", vocab_size - 1
        model = transformers.LlamaForSequenceClassification(config)
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_key_value_heads=4))
    folder.mkdir(parents=True)
    if name == BEAVER_DAM:
        model.config.save_pretrained(folder)
    else:
        model.save_pretrained(folder, **({} if name == CHAT else {"max_shard_size": "80KB"}))
    if name in (LLAMA, BEAVER_DAM):
        _torch_files(model.state_dict(), folder)


def _torch_files(state: dict[str, Any], folder: Path, n: int = 2) -> None:
    """Torch shards and their index, as transformers 4 wrote them."""
    import torch

    names = list(state)
    shards = {f"pytorch_model-{i + 1:05}-of-{n:05}.bin": names[i::n] for i in range(n)}
    for file, tensors in shards.items():
        torch.save({tensor: state[tensor].clone() for tensor in tensors}, folder / file)
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    weight_map = {tensor: file for file, tensors in shards.items() for tensor in tensors}
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
