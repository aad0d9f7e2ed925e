"""Memory of a training step on one GPU, moment by moment, as `guardrail.training` runs it on DeepSpeed.

Bytes per trained parameter were read from DeepSpeed 0.19 and torch's AdamW at work (every live tensor counted, on a
CPU: tests/bench), not from its documentation; N is the number of GPUs, 16-bit training, in brackets float32:

* ZeRO 0: weights 2 [4], master copy 4 [0], moments 8, gradients 2 [4]; the update also holds gradients in float32: 4;
* ZeRO 1 and 2: weights 2 [4]; master copy 4 and moments 8 over N; gradients 2 [4] (over N under ZeRO 2); the update
  also holds them flat (2 [4] over N) and in float32 (4 over N [0]);
* ZeRO 3: all of it over N, gradients kept from step to step, the update 6 [4] over N more; whole layers only while
  they are used.

Plain arithmetic, no torch. Letters: n tokens of the micro-batch, D hidden, b bytes of a number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from guardrail.bench import activations
from guardrail.bench.settings import PROMPT_TOKENS, Settings
from guardrail.bench.shapes import DTYPE_BYTES, Shape

UNTOUCHED_BUCKET_NUMBERS = 500_000_000  # DeepSpeed's default, which the shipped file of ZeRO 0 leaves alone


@dataclass(frozen=True)
class TrainingMemory:
    """``parts`` at their largest and ``phases``, bytes per GPU."""

    n_frozen: int
    n_trained: int
    parts: Mapping[str, int]
    phases: Mapping[str, int]


@dataclass(frozen=True)
class States:
    """Bytes per GPU: kept all the time, gradients once they are there, communication buffers, the update's own."""

    weights: int
    optimizer: int
    gradients: int
    gradients_stay: bool
    buffers: int
    gathered: int
    update: int


def model_states(shape: Shape, settings: Settings, n_frozen: int, n_trained: int) -> States:
    """Weights, optimizer and gradients on one GPU; see the head of this module."""
    b, N, stage = DTYPE_BYTES[settings.dtype], settings.n_gpus, settings.zero_stage
    half = b == 2
    weights = b * (n_frozen + n_trained)
    gradients = b * n_trained
    if stage == 0:
        bucket = min(UNTOUCHED_BUCKET_NUMBERS, n_trained) * b
        optimizer = (12 if half else 8) * n_trained
        # gradients are copied into a flat bucket for the reduction, then (in 16 bit) to float32 for the update
        return States(weights, optimizer, gradients, False, bucket, 0, 4 * n_trained if half else 0)
    optimizer, flat = 12 * n_trained // N, b * n_trained // N
    update = flat + (4 * n_trained // N if half else 0)
    buffers = settings.bucket_numbers * b * (settings.bucket_buffers if stage < 3 else 1)
    gathered = 0
    if stage == 3:
        weights //= N
        update = (6 if half else 4) * n_trained // N
        if N > 1 or settings.offload == "all":
            largest = max(shape.embedding_parameters(), shape.hidden * shape.intermediate)
            gathered = b * min(n_frozen + n_trained, max(largest, settings.live_numbers) + settings.prefetch_numbers)
    if stage >= 2:
        gradients = flat
    if settings.offload != "none":  # gradients leave the GPU as they come, and the update is the host's
        optimizer = gradients = update = 0
        weights = 0 if settings.offload == "all" else weights
    return States(weights, optimizer, gradients, stage == 3, buffers, gathered, update)


def training_memory(shape: Shape, settings: Settings) -> TrainingMemory:
    """Parts and phases of one step of ``settings`` with every default written out (`stage_defaults`)."""
    assert settings.batch_size is not None and settings.attention is not None
    rows, tokens, b = settings.batch_size, settings.row_tokens, DTYPE_BYTES[settings.dtype]
    n, D, L = rows * tokens, shape.hidden, shape.layers
    whole = shape.n_parameters()
    adapters = shape.lora_parameters(settings.r, settings.target_modules) if settings.use_lora else 0
    n_frozen, n_trained = (whole, adapters) if settings.use_lora else (0, whole)
    states = model_states(shape, settings, n_frozen, n_trained)

    block = activations.block_saved(
        shape,
        rows,
        tokens,
        b,
        settings.attention,
        settings.target_modules if settings.use_lora else None,
        settings.r,
        settings.lora_dropout > 0,
        every_input=settings.zero_stage == 3,
    )
    entry = b * n * D  # what a block gets
    kept = L * entry if settings.gradient_checkpointing else L * block
    last_norm = activations.norm_saved(shape, n, b, not settings.use_lora) + b * settings.n_labelled * D
    masks = activations.mask_bytes(shape, rows, tokens, b, settings.attention)
    saved = kept + last_norm
    logits = activations.logits_peak(shape, settings.n_labelled, b)
    one_block = block if settings.gradient_checkpointing else 0
    flowing = 2 * entry + 2 * b * n * shape.intermediate  # gradients on their way through a block

    held = states.weights + states.optimizer + states.gathered
    held += states.gradients if states.gradients_stay or settings.gradient_accumulation_steps > 1 else 0
    held += states.buffers if settings.zero_stage == 3 else 0
    held += masks
    later = 0 if states.gradients_stay or settings.gradient_accumulation_steps > 1 else states.gradients
    later += states.buffers if settings.zero_stage < 3 else 0
    end = one_block if settings.gradient_checkpointing else block
    phases = {
        "loss": held + saved + logits,
        "backward_begins": held + kept + one_block + flowing + (states.buffers if settings.zero_stage in (1, 2) else 0),
        "backward_ends": held + later + end + flowing,
        "update": held - masks + later + states.update,
    }
    probe = 0
    if settings.probe_rows:
        spread = settings.zero_stage == 3 and (settings.n_gpus > 1 or settings.offload == "all")
        probe = b * (n_frozen + n_trained) if spread else 0
        answer = activations.answer_parts(
            shape, settings.probe_batch, PROMPT_TOKENS, settings.new_tokens, settings.dtype, settings.attention
        )
        probe += answer["kv_cache"] + max(answer["activations"], answer["logits"])
        held = states.weights + states.optimizer + (states.gradients if states.gradients_stay else 0)
        phases["probe"] = held + (states.buffers if settings.zero_stage == 3 else 0) + probe
    parts = {
        "weights": states.weights,
        "optimizer": states.optimizer,
        "gradients": states.gradients,
        "activations": saved + one_block + flowing + masks,
        "logits": logits,
        "buffers": states.buffers + states.gathered,
        **({"probe": probe} if probe else {}),
    }
    return TrainingMemory(n_frozen, n_trained, parts, phases)
