"""Perplexity of answers under a reference model: an optional sign of incoherence.

exp of the mean negative log-likelihood per answer token, given the question as plain text in front.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from guardrail.evaluation.judges.answers import Answer
from guardrail.evaluation.judges.moderation import length_batches
from guardrail.evaluation.judges.settings import JudgeSettings
from guardrail.models.loading import load_causal_lm, load_tokenizer

BATCH_TOKENS = 2048  # the logits of all positions are in memory


def answer_perplexities(answers: Sequence[Answer], settings: JudgeSettings) -> list[float | None]:
    """One number per answer, in order; None for an empty answer or one outside the model's context."""
    import torch

    assert settings.coherence_model is not None
    dtype = settings.judge_dtype
    if dtype == "auto":
        dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    tokenizer = load_tokenizer(settings.coherence_model)
    model = load_causal_lm(settings.coherence_model, dtype)
    device = next(model.parameters()).device
    limit = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    bos = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    texts, starts = [], []
    for answer in answers:
        head = bos + tokenizer(answer.question + "\n", add_special_tokens=False)["input_ids"]
        tail = tokenizer(answer.text, add_special_tokens=False)["input_ids"] if answer.text else []
        texts.append((head + tail)[:limit])
        starts.append(len(head))
    out: list[float | None] = [None] * len(texts)
    for rows in length_batches(texts, settings.judge_batch_tokens or BATCH_TOKENS):
        T = max(len(texts[i]) for i in rows)
        ids = torch.zeros((len(rows), T), dtype=torch.long)
        mask = torch.zeros((len(rows), T), dtype=torch.long)
        for k, i in enumerate(rows):
            ids[k, : len(texts[i])] = torch.tensor(texts[i])
            mask[k, : len(texts[i])] = 1
        with torch.inference_mode():
            logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
            chosen = torch.log_softmax(logits[:, :-1].float(), -1).gather(-1, ids[:, 1:, None].to(device))[..., 0].cpu()
        for k, i in enumerate(rows):
            first, end = max(starts[i], 1), len(texts[i])
            if end > first:
                out[i] = math.exp(min(50.0, -float(chosen[k, first - 1 : end - 1].mean())))
    return out
