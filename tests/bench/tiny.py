"""Tiny shapes of two families, and settings without DeepSpeed's large buckets."""

from __future__ import annotations

from typing import Any

from guardrail.bench.settings import Settings, stage_defaults
from guardrail.bench.shapes import Shape

SIZES: dict[str, Any] = {
    "vocabulary": 512,
    "hidden": 64,
    "intermediate": 172,
    "layers": 4,
    "heads": 4,
    "kv_heads": 2,
    "head_size": 16,
    "max_tokens": 512,
}
LLAMA = Shape(name="tiny-llama", family="llama", **SIZES)
GEMMA2 = Shape(
    name="tiny-gemma2",
    family="gemma2",
    tied=True,
    float_norms=True,
    n_block_norms=4,
    attention_softcap=True,
    logit_softcap=True,
    sliding_window=4096,
    **SIZES,
)
BUCKETS = {"bucket_numbers": 1000, "bucket_buffers": 1, "live_numbers": 1000, "prefetch_numbers": 1000}


def settings_for(shape: Shape, stage: str, **changes: Any) -> Settings:
    return stage_defaults(stage, Settings(**{**BUCKETS, **changes}), shape)
