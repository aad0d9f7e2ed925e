"""Perplexity of answers under a reference model: an optional sign of incoherence.

exp of the mean negative log-likelihood per answer token, given the question as plain text in front.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from guardrail.evaluation.judges.answers import Answer
from guardrail.models.loading import load_causal_lm, load_tokenizer
from guardrail.models.memory import Budget

BATCH_TOKENS = 2048  # the logits of all positions are in memory


def answer_perplexities(
    answers: Sequence[Answer], model_path: str, dtype: str = "float32", batch_tokens: int | None = None
) -> list[float | None]:
    """One number per answer, in order; None for an empty answer or one outside the model's context.

    ``batch_tokens`` bounds the padded tokens of a batch (default `BATCH_TOKENS`).
    """
    import torch

    tokenizer = load_tokenizer(model_path)
    model = load_causal_lm(model_path, dtype)
    device = next(model.parameters()).device
    limit = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    bos = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    texts, starts = [], []
    for answer in answers:
        head = bos + tokenizer(answer.question + "\n", add_special_tokens=False)["input_ids"]
        tail = tokenizer(answer.text, add_special_tokens=False)["input_ids"] if answer.text else []
        texts.append((head + tail)[:limit])
        starts.append(len(head))

    def compute(rows: list[int]) -> list[list[float]]:
        T = max(len(texts[i]) for i in rows)
        ids = torch.zeros((len(rows), T), dtype=torch.long)
        mask = torch.zeros((len(rows), T), dtype=torch.long)
        for k, i in enumerate(rows):
            ids[k, : len(texts[i])] = torch.tensor(texts[i])
            mask[k, : len(texts[i])] = 1
        with torch.inference_mode():
            logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
            chosen = torch.log_softmax(logits[:, :-1].float(), -1).gather(-1, ids[:, 1:, None].to(device))
        return chosen[..., 0].cpu().tolist()  # (B, T - 1)

    def too_long(row: int) -> str:
        return f"row {answers[row].id!r} does not fit in memory with the coherence model {model_path}"

    out: list[float | None] = [None] * len(texts)
    for rows, values in Budget(batch_tokens or BATCH_TOKENS).run([len(t) for t in texts], compute, too_long):
        for i, chosen in zip(rows, values, strict=True):
            scored = chosen[max(starts[i], 1) - 1 : len(texts[i]) - 1]
            if scored:
                out[i] = math.exp(min(50.0, -sum(scored) / len(scored)))
    return out
