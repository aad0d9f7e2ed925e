"""Memory and operations of a stage, from a model's shape: what a GPU needs before anything is started. No torch.

    estimate(shape, stage, settings=None, **changes) -> Estimate
        shape: a `Shape`, or what `find_shape` takes: "llama2-7b", a hub name of such a model, a folder
        stage: "sft" | "extract" | "generate" | "moderate"
        changes: fields of `Settings`, such as zero_stage=2, n_gpus=4, use_lora=True, batch_size=8
        Estimate.parts            bytes per GPU of each part when it is largest (weights, gradients, optimizer, ...)
        Estimate.phases           bytes per GPU at each moment that can be the peak
        Estimate.peak_bytes       the largest of them: what torch.cuda.max_memory_allocated should say
        Estimate.flops            operations of one step on one GPU, `guardrail.bench.flops.Flops`
        Estimate.tokens_per_step  tokens that one GPU works on in a step
    fits(found, gpu_bytes) -> Fit
        Fit.fits, Fit.needed_bytes, Fit.usable_bytes, Fit.suggestions (what would fit, one change each where one will)
        Fit.message()             one line for a person, with the suggestions
    settings_of_training(ds_config, **options) -> Settings
        from the content of a DeepSpeed file and options named as in `guardrail.training.config.SFTConfig`

A step is one micro-batch forward and backward with its update (sft), one batch (extract, moderate), or one batch of
prompts with all their new tokens (generate). How the parts of a training are counted: `guardrail.bench.training`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.bench import activations
from guardrail.bench.flops import Flops, generation_flops, reading_flops, training_flops
from guardrail.bench.settings import GiB, Settings, stage_defaults
from guardrail.bench.shapes import DTYPE_BYTES, Shape, find_shape
from guardrail.bench.training import training_memory
from guardrail.core.errors import UserError

# Of a GPU's memory, what the CUDA context, NCCL and the allocator's gaps may take: an allowance, not a measurement.
RESERVED_FRACTION = 0.1


@dataclass(frozen=True)
class Estimate:
    """See the head of this module. ``n_trained`` is 0 for everything but sft."""

    shape: Shape
    stage: str
    settings: Settings
    n_parameters: int
    n_trained: int
    parts: Mapping[str, int]
    phases: Mapping[str, int]
    flops: Flops
    tokens_per_step: int

    @property
    def peak_bytes(self) -> int:
        return max(self.phases.values())

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, units in the names."""
        return {
            "shape": dataclasses.asdict(self.shape),
            "stage": self.stage,
            "settings": dataclasses.asdict(self.settings),
            "n_parameters": self.n_parameters,
            "n_trained_parameters": self.n_trained,
            "part_bytes": dict(self.parts),
            "phase_bytes": dict(self.phases),
            "peak_bytes": self.peak_bytes,
            "model_flops_per_step": self.flops.model,
            "hardware_flops_per_step": self.flops.hardware,
            "tokens_per_step": self.tokens_per_step,
        }


def estimate(shape: Shape | str | Path, stage: str, settings: Settings | None = None, **changes: Any) -> Estimate:
    """What ``stage`` needs on one GPU with a model of ``shape``. Raises ``UserError``: unknown shape or stage."""
    found = shape if isinstance(shape, Shape) else find_shape(shape)
    wanted = stage_defaults(stage, dataclasses.replace(settings or Settings(), **changes), found)
    return _training(found, wanted) if stage == "sft" else _inference(found, stage, wanted)


def _training(shape: Shape, settings: Settings) -> Estimate:
    assert settings.batch_size is not None
    memory = training_memory(shape, settings)
    n = settings.batch_size * settings.row_tokens
    flops = training_flops(
        shape,
        settings.batch_size,
        settings.row_tokens,
        settings.n_labelled,
        gradient_checkpointing=settings.gradient_checkpointing,
        r=settings.r if settings.use_lora else None,
        targets=settings.target_modules,
        causal_kernel=settings.attention != "eager",
    )
    total = memory.n_frozen + memory.n_trained
    return Estimate(shape, "sft", settings, total, memory.n_trained, memory.parts, memory.phases, flops, n)


def _inference(shape: Shape, stage: str, settings: Settings) -> Estimate:
    """One forward pass without gradients, and for generation the cache and the picking of tokens."""
    assert settings.batch_size is not None and settings.attention is not None
    b, rows, tokens = DTYPE_BYTES[settings.dtype], settings.batch_size, settings.row_tokens
    head = {"extract": "none", "moderate": "labels", "generate": "lm"}[stage]
    n = shape.n_parameters(head)
    share = settings.n_gpus if stage == "generate" else 1  # tensor parallel; other stages copy the model
    weights, causal = b * n // share, settings.attention != "eager"
    if stage == "generate":
        new = settings.new_tokens
        parts = activations.answer_parts(shape, rows, tokens, new, settings.dtype, settings.attention, share)
        parts = {"weights": weights, **parts}
        flops = generation_flops(shape, rows, tokens, new, causal_kernel=causal)
        flops = Flops(flops.model // share, flops.hardware // share)
        phases = {
            "prompt": weights + parts["activations"] + parts["kv_cache"],
            "sampling": weights + parts["kv_cache"] + parts["logits"],
        }
        return Estimate(shape, stage, settings, n, 0, parts, phases, flops, rows * (tokens + new))
    parts = {"weights": weights, "activations": activations.pass_bytes(shape, rows, tokens, b, settings.attention)}
    flops = reading_flops(shape, rows, tokens, head=head, causal_kernel=causal)
    phases = {"pass": parts["weights"] + parts["activations"]}
    return Estimate(shape, stage, settings, n, 0, parts, phases, flops, rows * tokens)


@dataclass(frozen=True)
class Suggestion:
    """A change of the settings that makes a stage fit, in the words of the flags, and what it then needs."""

    text: str
    changes: Mapping[str, Any]
    peak_bytes: int


@dataclass(frozen=True)
class Fit:
    """Does it fit? ``usable_bytes`` is the GPU's memory less an allowance (`RESERVED_FRACTION`)."""

    found: Estimate
    needed_bytes: int
    usable_bytes: int
    suggestions: tuple[Suggestion, ...]

    @property
    def fits(self) -> bool:
        return self.needed_bytes <= self.usable_bytes

    def message(self) -> str:
        """One line: what is needed, what there is, what would fit."""
        need, have = self.needed_bytes / GiB, self.usable_bytes / GiB
        text = f"{self.found.stage} of {self.found.shape.name} needs about {need:.1f} GiB per GPU"
        if self.fits:
            return f"{text}; {have:.1f} GiB are usable"
        hints = [f"{s.text} ({s.peak_bytes / GiB:.1f} GiB)" for s in self.suggestions]
        return f"{text}, but {have:.1f} GiB are usable; " + (
            f"what would fit: {'; '.join(hints)}" if hints else "no change of its settings would make it fit"
        )


def fits(found: Estimate, gpu_bytes: int, reserved_fraction: float = RESERVED_FRACTION) -> Fit:
    """Is there room for ``found`` on a GPU of ``gpu_bytes``? If not, with what change would there be?

    Suggestions are single changes where one is enough; else the shortest pile of them, in the order in which people
    try them, that is.
    """
    usable = int(gpu_bytes * (1 - reserved_fraction))
    needed = found.peak_bytes
    if needed <= usable:
        return Fit(found, needed, usable, ())

    def suggestion(text: str, changes: dict[str, Any]) -> Suggestion | None:
        peak = estimate(found.shape, found.stage, found.settings, **changes).peak_bytes
        return Suggestion(text, changes, peak) if peak <= usable else None

    singles: dict[str, Suggestion] = {}  # by setting: the smallest change of each that is enough
    for text, changes in _changes(found):
        key = next(iter(changes))
        if key not in singles and (one := suggestion(text, changes)) is not None:
            singles[key] = one
    if singles:
        return Fit(found, needed, usable, tuple(singles.values()))
    pile: dict[str, tuple[str, dict[str, Any]]] = {}
    for text, changes in _changes(found):
        pile[next(iter(changes))] = (text, changes)
        if (one := _together(pile, suggestion)) is not None:
            for key in list(pile):  # is each of them needed?
                rest = {name: value for name, value in pile.items() if name != key}
                if (smaller := _together(rest, suggestion)) is not None:
                    pile, one = rest, smaller
            return Fit(found, needed, usable, (one,))
    return Fit(found, needed, usable, ())


def _together(
    pile: Mapping[str, tuple[str, dict[str, Any]]], suggestion: Callable[[str, dict[str, Any]], Suggestion | None]
) -> Suggestion | None:
    """All changes of ``pile`` as one suggestion, if that is enough."""
    changes = {name: value for _, some in pile.values() for name, value in some.items()}
    return suggestion(" and ".join(text for text, _ in pile.values()), changes)


def _changes(found: Estimate) -> Iterator[tuple[str, dict[str, Any]]]:
    """Single changes that save memory, those first that change the result least."""
    settings, training = found.settings, found.stage == "sft"
    assert settings.batch_size is not None
    if training and not settings.gradient_checkpointing:
        yield "--gradient_checkpointing True", {"gradient_checkpointing": True}
    if training and settings.n_gpus > 1 and settings.zero_stage < 3:
        yield "ZeRO 3 (--ds_cfgs ds_z3_config.json)", {"zero_stage": 3}
    size = settings.batch_size // 2
    flag = "--per_device_train_batch_size" if training else "a batch of"
    while size >= 1:
        yield f"{flag} {size}" + ("" if training else " rows"), {"batch_size": size}
        size //= 2
    if training and not settings.use_lora:
        targets = ", ".join(settings.target_modules)
        yield f"--use_lora True (r {settings.r}: {targets})", {"use_lora": True}
    if training or found.stage == "generate":
        for n_gpus in (2, 4, 8):
            if n_gpus > settings.n_gpus:
                changes: dict[str, Any] = {"n_gpus": n_gpus}
                if training and settings.zero_stage < 3:
                    changes["zero_stage"] = 3
                yield f"{n_gpus} GPUs" + (" with ZeRO 3" if training else " (tensor parallel)"), changes
    if training and settings.offload == "none":
        yield (
            "the optimizer in the host's memory (--ds_cfgs ds_z3_offload_config.json)",
            {"offload": "all", "zero_stage": 3},
        )
    if settings.probe_rows:
        yield "no probes (fine_tuning.probes: 0)", {"probe_rows": 0}
    tokens = settings.row_tokens // 2
    while tokens >= 512:
        yield f"rows of at most {tokens} tokens", {"row_tokens": tokens}
        tokens //= 2


def settings_of_training(ds_config: Mapping[str, Any], **options: Any) -> Settings:
    """`Settings` of an sft from a DeepSpeed file's content and the trainer's options (or fields of `Settings`).

    Options of `SFTConfig` that are known here: per_device_train_batch_size, gradient_accumulation_steps,
    gradient_checkpointing, model_max_length, bf16, fp16, use_lora, r, lora_dropout, target_modules,
    attn_implementation; others are left alone. Raises ``UserError`` for a ZeRO stage that does not exist.
    """
    zero = ds_config.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise UserError(f"zero_optimization.stage is {stage!r} in the DeepSpeed file; expected 0, 1, 2 or 3")
    names = {field.name for field in dataclasses.fields(Settings)}
    renamed = {
        "per_device_train_batch_size": "batch_size",
        "model_max_length": "row_tokens",
        "attn_implementation": "attention",
    }
    values = {renamed.get(name, name): value for name, value in options.items()}
    if "bf16" in values or "fp16" in values:
        values["dtype"] = "bfloat16" if values.get("bf16", True) else "float16" if values.get("fp16") else "float32"
    host = {name for name in ("offload_optimizer", "offload_param") if zero.get(name, {}).get("device") == "cpu"}
    own: dict[str, Any] = {
        "zero_stage": stage,
        "offload": "all" if "offload_param" in host else "optimizer" if host else "none",
        "bucket_numbers": int(zero.get("reduce_bucket_size", 500_000_000)),
        "bucket_buffers": 2 if zero.get("overlap_comm", False) and stage in (1, 2) else 1,
        "live_numbers": int(zero.get("stage3_max_live_parameters", 1_000_000_000)),
        "prefetch_numbers": int(zero.get("stage3_prefetch_bucket_size", 50_000_000)),
    }
    return Settings(**own | {name: value for name, value in values.items() if name in names})
