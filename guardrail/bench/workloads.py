"""The stages as this project runs them, on models with random weights and rows of random tokens.

    work = WORKLOADS[stage](shape, settings, device)
    work.step()                      # one step, as `guardrail.bench.estimate` counts it
    work.reference()                 # the same rows one at a time, where a stage has such a habit to compare with

Rows all have ``row_tokens`` tokens: what is measured is the software, not a data set's lengths.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from guardrail.bench.build import build
from guardrail.bench.settings import PROMPT_TOKENS, Settings
from guardrail.bench.shapes import Shape

FIRST_ID = 3  # below are the special tokens of `guardrail.bench.build.configuration`


@dataclass(frozen=True)
class Workload:
    """``step`` works on ``n_tokens``; ``reference`` does the same rows one by one (None: there is no such loop)."""

    step: Callable[[], Any]
    n_tokens: int
    reference: Callable[[], Any] | None = None
    model: Any = None


def random_ids(shape: Shape, n_rows: int, n_tokens: int) -> np.ndarray:
    """(rows, tokens) of random ids, the same every time."""
    return np.random.default_rng(0).integers(FIRST_ID, shape.vocabulary, (n_rows, n_tokens), dtype=np.int32)


def deepspeed_settings(settings: Settings) -> dict[str, Any]:
    """``zero_optimization`` of the shipped DeepSpeed file for these settings, with their bucket sizes."""
    from guardrail.training.config import deepspeed_config

    offload = "" if settings.offload == "none" else "_offload"
    number = 2 if settings.zero_stage == 1 else settings.zero_stage
    zero = copy.deepcopy(deepspeed_config(f"ds_z{number}{offload}_config.json")["zero_optimization"])
    zero["stage"] = settings.zero_stage
    if settings.offload == "optimizer":
        zero.pop("offload_param", None)
    if settings.zero_stage:
        zero["reduce_bucket_size"] = settings.bucket_numbers
        zero["overlap_comm"] = settings.bucket_buffers == 2
    if settings.zero_stage == 3:
        zero["stage3_max_live_parameters"] = settings.live_numbers
        zero["stage3_prefetch_bucket_size"] = settings.prefetch_numbers
    return zero


def sft(shape: Shape, settings: Settings, device: torch.device) -> Workload:
    """Optimizer steps of `guardrail.training` on DeepSpeed, each with a probe behind it where there are probes."""
    from guardrail.core.ranks import world_size
    from guardrail.training import engine as engines
    from guardrail.training.config import SFTConfig
    from guardrail.training.data import TokenisedRows
    from guardrail.training.loop import Trainer
    from guardrail.training.observe import undisturbed
    from guardrail.training.whole import whole

    assert settings.batch_size is not None
    config = SFTConfig(
        model_name_or_path=shape.name,
        train_datasets="random",
        train_template="random",
        output_dir="none",
        log_type="none",
        learning_rate=1e-6,
        model_max_length=settings.row_tokens,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        gradient_checkpointing=settings.gradient_checkpointing,
        bf16=settings.dtype == "bfloat16",
        fp16=settings.dtype == "float16",
        use_lora=settings.use_lora,
        r=settings.r,
        lora_alpha=settings.r,
        lora_dropout=settings.lora_dropout,
        target_modules=settings.target_modules,
        ds_cfgs=f"ds_z{2 if settings.zero_stage == 1 else settings.zero_stage}_config.json",
    )
    engines.init_distributed()
    engines.check_precision(config)
    ds_config = engines.resolved_deepspeed_config(config, world_size())
    ds_config["zero_optimization"] = deepspeed_settings(settings)
    hook = engines.partition_while_loading(ds_config)
    model = build(shape, "sft", settings.dtype, device if hook is None else None, settings.attention)
    loaded = engines.prepare_model(model, config, hook)
    engine = engines.build_engine(config, ds_config, loaded.model, 10**6)

    rows = settings.batch_size * settings.gradient_accumulation_steps * world_size()
    tokens = settings.row_tokens
    first_labelled = tokens - settings.n_labelled // settings.batch_size
    spans = np.array([(row, max(1, first_labelled), tokens) for row in range(rows)], dtype=np.int64)
    offsets = np.arange(rows + 1, dtype=np.int64) * tokens
    data = TokenisedRows(
        random_ids(shape, rows, tokens).reshape(-1),
        offsets,
        spans,
        np.full(rows, tokens, dtype=np.int64),
        tuple(map(str, range(rows))),
    )
    trainer = Trainer(engine, data, config, 0, lambda *_: None, lambda _step: None)
    n_tokens = settings.batch_size * settings.gradient_accumulation_steps * tokens

    def step() -> Any:
        trainer.train(1)
        if settings.probe_rows:
            with whole(engine), undisturbed(engine.module):
                _answers(shape, engine.module, settings.probe_batch, PROMPT_TOKENS, settings.new_tokens, False)()
        return loaded  # alive as long as the step is

    return Workload(step, n_tokens, None, engine)


def extract(shape: Shape, settings: Settings, device: torch.device) -> Workload:
    """Batches of `guardrail.similarity.representations`, and rows one at a time."""
    from guardrail.similarity.representations.hidden_states import HfRunner
    from guardrail.similarity.representations.options import ExtractionOptions, ModelFacts
    from guardrail.similarity.representations.sequences import TokenSequence

    assert settings.batch_size is not None
    T = settings.row_tokens
    options = ExtractionOptions(
        architecture="causal",
        layers=(shape.layers,),
        positions=("eos",),
        text="full",
        prompt_style=None,
        max_length=T,
        long_rows="cut",
        final_norm=True,
        torch_dtype=settings.dtype,
        dtype="float32",
        backend="hf",
    )
    model = build(shape, "extract", settings.dtype, device, settings.attention)
    facts = ModelFacts("causal", shape.layers, shape.max_tokens)
    runner = HfRunner.from_module(model, options, facts, 0, settings.batch_size * T)
    sequences = [
        TokenSequence(ids.tolist(), {"eos": (T - 1, T)}, T) for ids in random_ids(shape, settings.batch_size, T)
    ]
    return Workload(
        lambda: list(runner.run(list(enumerate(sequences)))),
        settings.batch_size * T,
        lambda: [runner.forward([sequence]) for sequence in sequences],
        model,
    )


class _NoText:
    """In place of a tokenizer: random weights have nothing to say, and no token ends their answers."""

    pad_token_id, eos_token_id = 0, None

    def decode(self, *_: Any, **__: Any) -> str:
        return ""


def _answers(
    shape: Shape, model: Any, n_rows: int, n_tokens: int, new_tokens: int, do_sample: bool
) -> Callable[..., Any]:
    """A function that answers random prompts in one batch, each answer ``new_tokens`` long; given a number, so many."""
    from guardrail.generation.hf import HFBackend
    from guardrail.generation.interface import Request
    from guardrail.generation.options import SamplingOptions

    class Backend(HFBackend):
        eos_ids = ()

    backend = Backend(shape.name, unit_rows=n_rows, unit_tokens=n_rows * (n_tokens + new_tokens))
    backend.use(model, _NoText())
    backend.context_tokens = None
    options = SamplingOptions(max_new_tokens=new_tokens, do_sample=do_sample)
    requests = [Request(str(i), 0, ids.tolist()) for i, ids in enumerate(random_ids(shape, n_rows, n_tokens))]
    return lambda some=None: backend.generate(requests if some is None else [requests[some]], options)


def generate(shape: Shape, settings: Settings, device: torch.device) -> Workload:
    """A batch of answers of the Hugging Face backend, sampled, each ``new_tokens`` long; and rows one at a time."""
    assert settings.batch_size is not None
    B, T = settings.batch_size, settings.row_tokens
    model = build(shape, "generate", settings.dtype, device, settings.attention)
    answers = _answers(shape, model, B, T, settings.new_tokens, True)
    return Workload(answers, B * (T + settings.new_tokens), lambda: [answers(i) for i in range(B)], model)


def moderate(shape: Shape, settings: Settings, device: torch.device) -> Workload:
    """A batch of `guardrail.evaluation.judges.moderation`, and rows one at a time."""
    from guardrail.evaluation.judges.moderation import classify_batch

    assert settings.batch_size is not None
    model = build(shape, "moderate", settings.dtype, device, settings.attention)
    texts = [ids.tolist() for ids in random_ids(shape, settings.batch_size, settings.row_tokens)]
    return Workload(
        lambda: classify_batch(model, texts),
        settings.batch_size * settings.row_tokens,
        lambda: [classify_batch(model, [text]) for text in texts],
        model,
    )


WORKLOADS: dict[str, Callable[[Shape, Settings, torch.device], Workload]] = {
    "sft": sft,
    "extract": extract,
    "generate": generate,
    "moderate": moderate,
}
