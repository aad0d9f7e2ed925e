"""A tiny Beaver-Dam-shaped classifier, a results file, and hand-labelled answers (mild and fictional)."""

from __future__ import annotations

from pathlib import Path

import pytest
from judged_answers import LABELLED, QUESTION

from guardrail.core.files import write_json


@pytest.fixture(scope="session")
def tiny_classifier(tmp_path_factory, tiny_tokenizer) -> Path:
    """A random 14-label multi-label LLaMA classifier with the toy tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    folder = tmp_path_factory.mktemp("tiny-beaver-dam")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        num_labels=14,
        problem_type="multi_label_classification",
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        initializer_range=0.3,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def results_file(tmp_path) -> Path:
    """``results.json`` with the labelled answers."""
    rows = [
        {
            "id": f"row-{i}",
            "sample": 0,
            "category": "stones" if i % 2 else "moons",
            "question": QUESTION,
            "prefill": "Well,",
            "completion": answer,
        }
        for i, (_, answer, _, _) in enumerate(LABELLED)
    ]
    run = {"data_hash": "d" * 16, "fingerprint": "f" * 16, "data": {"harmful": True}}
    write_json(tmp_path / "results.json", {"results": rows, "metrics": {}, "run": run})
    return tmp_path / "results.json"
