"""How a stage is run, as far as memory and operations depend on it: the options of ``python -m guardrail.bench``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from guardrail.bench.shapes import DTYPE_BYTES, Shape
from guardrail.core.cli import fraction, positive_int
from guardrail.core.errors import UserError, unknown
from guardrail.core.options import option

STAGES = ("sft", "extract", "generate", "moderate")
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
OFFLOADS = ("none", "optimizer", "all")
GiB = 2**30
BATCH_TOKENS = 16384  # with what extraction and moderation start on a GPU
GENERATION_ROWS, GENERATION_TOKENS = 64, 32768  # a batch of `guardrail.generation.hf`
PROBE_ROWS, PROMPT_TOKENS = 512, 100  # a batch of `guardrail.evaluation.trajectory`, and a prompt of a usual bench


def count(text: str) -> int:
    """A whole number of at least 0."""
    return 0 if text == "0" else positive_int(text)


def zero_stage(text: str) -> int:
    """0, 1, 2 or 3."""
    if text not in ("0", "1", "2", "3"):
        raise unknown("ZeRO stage", text, ("0", "1", "2", "3"))
    return int(text)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Numbers count elements (``_numbers``), rows or tokens; ``None`` is what the stage takes by itself."""

    n_gpus: int = option(1, "GPUs that train together (sft) or hold one model together (generate)", parse=positive_int)
    zero_stage: int = option(3, "ZeRO stage of the training: 0, 1, 2 or 3", parse=zero_stage)
    offload: str = option("none", "what ZeRO keeps in the host's memory", choices=OFFLOADS)
    gradient_checkpointing: bool = option(True, "recompute activations in the backward pass")
    gradient_accumulation_steps: int = option(1, "micro-batches per optimizer step", parse=positive_int)
    use_lora: bool = option(False, "train low-rank adapters")
    r: int = option(16, "LoRA rank", parse=positive_int)
    lora_dropout: float = option(0.1, "LoRA dropout", parse=fraction)
    target_modules: tuple[str, ...] = option(("q_proj", "v_proj"), "modules that get adapters")
    batch_size: int | None = option(
        None, "rows per GPU and micro-batch; default: what the stage takes", parse=positive_int
    )
    row_tokens: int = option(2048, "tokens of a row (generate: of a prompt)", parse=positive_int)
    new_tokens: int = option(512, "new tokens of an answer", parse=positive_int)
    probe_rows: int = option(0, "sft: prompts that a probe answers side by side, 512; 0: no probes", parse=count)
    labelled_fraction: float = option(1.0, "share of the tokens that have a label", parse=fraction)
    dtype: str = option("bfloat16", "weights and activations", choices=tuple(DTYPE_BYTES))
    attention: str | None = option(None, "attention; default: transformers' own choice", choices=ATTENTIONS)
    bucket_numbers: int = option(500_000_000, "DeepSpeed's reduce_bucket_size", parse=positive_int)
    bucket_buffers: int = option(2, "2 with DeepSpeed's overlap_comm under ZeRO 1 and 2, else 1", parse=positive_int)
    live_numbers: int = option(100_000_000, "DeepSpeed's stage3_max_live_parameters", parse=positive_int)
    prefetch_numbers: int = option(30_000_000, "DeepSpeed's stage3_prefetch_bucket_size", parse=positive_int)

    @property
    def n_labelled(self) -> int:
        """Tokens of a micro-batch that get logits."""
        assert self.batch_size is not None
        return max(1, round(self.batch_size * self.row_tokens * self.labelled_fraction))

    @property
    def probe_batch(self) -> int:
        """Prompts of ``PROMPT_TOKENS`` that a probe answers side by side: its batches have a limit in tokens, too."""
        return min(self.probe_rows, max(1, GENERATION_TOKENS // (PROMPT_TOKENS + self.new_tokens)))


def stage_defaults(stage: str, settings: Settings, shape: Shape) -> Settings:
    """``settings`` with what the stage takes by itself written out.

    Raises ``UserError`` for an unknown stage and for combinations that cannot be run.
    """
    if stage not in STAGES:
        raise unknown("stage", stage, STAGES)
    if settings.offload != "none" and stage == "sft" and settings.zero_stage < 2:
        raise UserError(f"offload {settings.offload} needs ZeRO 2 or 3; zero_stage is {settings.zero_stage}")
    if settings.offload == "all" and stage == "sft" and settings.zero_stage != 3:
        raise UserError("offload all keeps weights in the host's memory, which only ZeRO 3 can; use optimizer")
    attention = settings.attention or shape.default_attention()
    if attention == "sdpa" and shape.attention_softcap:
        raise UserError(f"{shape.name} caps its attention scores, which sdpa cannot; use eager or flash_attention_2")
    size = settings.batch_size
    if size is None:
        length = settings.row_tokens
        size = {
            "sft": 1,
            "generate": min(GENERATION_ROWS, max(1, GENERATION_TOKENS // (length + settings.new_tokens))),
        }.get(stage, max(1, BATCH_TOKENS // length))
    return dataclasses.replace(settings, batch_size=size, attention=attention)
