"""The golden fixtures: a tokenizer and rows kept in `golden/`, a LLaMA whose weights come from a fixed formula.

Used by the tests and by `golden/make.py`, which runs under align-anything's older stack: plain transformers only.
"""

from __future__ import annotations

import json
from pathlib import Path

GOLDEN = Path(__file__).resolve().parent / "golden"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MAX_LENGTH = 224


def golden_rows() -> list[dict]:
    """Conversations of the sandbox's fictional world; single and multi-turn, short and too long."""
    return [json.loads(line) for line in (GOLDEN / "rows.jsonl").read_text(encoding="utf-8").splitlines()]


def golden_tokenizer(folder: Path, adds_bos: bool = False, chat_template: str | None = None):
    """The golden byte-level BPE, saved to `folder`; `adds_bos` gives it LLaMA's habit of adding BOS itself."""
    from tokenizers import Tokenizer, processors
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_file(str(GOLDEN / "tokenizer.json"))
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=1024
    )
    fast.chat_template = chat_template
    fast.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def golden_model(folder: Path, tokenizer) -> Path:
    """A 2-layer, width-64 LLaMA; weights are numpy's legacy normals, rounded to bfloat16 (nothing is lost there)."""
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    random = np.random.RandomState(0)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.dim() == 1:
                continue  # norms stay at one
            values = torch.from_numpy(random.standard_normal(parameter.shape) * 0.05)
            parameter.copy_(values.to(torch.bfloat16).float())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config(**options):
    """An `SFTConfig` with the four required options filled in."""
    from guardrail.training.config import SFTConfig

    required = dict.fromkeys(("model_name_or_path", "train_datasets", "output_dir"), "x")
    return SFTConfig(**{**required, "train_template": "UltraChat", **options})
