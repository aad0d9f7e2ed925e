"""Generation: the same prompts as token ids through Hugging Face, vLLM or an OpenAI-compatible server.

    backend = make_backend("hf", model, torch_dtype="float32", prompt_style="llama2_base")
    ids = encode_prompt(backend.tokenizer, "llama2_base", row["messages"])
    completions = generate_resumable(backend, [Request(row["id"], 0, ids)], options, folder, key)

``generate_resumable`` (guardrail.generation.runner) shards over ranks and survives ``kill -9``;
``backend.generate`` does one process's work. A backend is a class in one file and one line in
``guardrail.generation.options.BACKENDS``. Importing this package imports neither torch nor an engine.

    cache         A key-value cache that is written in place, for decoding on any device
    context       make a conversation fit a model's context, by one stated rule, and say what was cut
    interface     what every generation backend takes and gives: sampling options, requests, completions - and ...
    vllm_engine   generation and moderation through vLLM: its own batching, tensor and data parallelism
"""

from __future__ import annotations

from typing import Any

from guardrail.data.prompts import check_style, stop_strings
from guardrail.generation.interface import Backend, Completion, Request, row_seed
from guardrail.generation.options import BACKENDS, DecodingOptions, EngineOptions, SamplingOptions
from guardrail.generation.runner import generate_resumable

__all__ = [
    "BACKENDS",
    "Backend",
    "Completion",
    "DecodingOptions",
    "EngineOptions",
    "Request",
    "SamplingOptions",
    "backend_of",
    "generate_resumable",
    "make_backend",
    "row_seed",
]


def make_backend(
    name: str,
    model_name_or_path: str,
    *,
    prompt_style: str | None = None,
    stops: tuple[str, ...] | None = None,
    trust_remote_code: bool = False,
    batch_rows: int | None = None,
    batch_tokens: int | None = None,
    **engine: Any,
) -> Backend:
    """A generation backend; its model loads at the first ``generate``, its tokenizer at first use.

    Args:
        name: one of ``BACKENDS``.
        model_name_or_path: model folder or hub name; for ``openai`` the folder or name whose tokenizer makes the ids.
        prompt_style: gives the next-turn markers at which completions are cut (``stops`` overrides them).
        batch_rows, batch_tokens: upper limits of one unit of work (and of one HF batch).
        engine: `EngineOptions` by name; those that the backend does not take are left out.

    Raises ``UserError``: unknown name or style, an engine that is not installed, no such model.
    """
    takes = BACKENDS.facts(name).get("takes", ())
    if stops is None:
        stops = stop_strings(check_style(prompt_style)) if prompt_style else ()
    sizes = {"unit_rows": batch_rows, "unit_tokens": batch_tokens}
    return BACKENDS.load(name)(
        model_name_or_path,
        stops=tuple(stops),
        trust_remote_code=trust_remote_code,
        **{option: value for option, value in sizes.items() if value is not None},
        **{option: value for option, value in engine.items() if option in takes},
    )


def backend_of(config: EngineOptions, model_name_or_path: str, prompt_style: str) -> Backend:
    """The backend that a stage's ``config`` asks for."""
    return make_backend(
        config.generation_backend,
        model_name_or_path,
        prompt_style=prompt_style,
        trust_remote_code=config.trust_remote_code,
        batch_rows=config.batch_size_per_device,
        batch_tokens=config.batch_tokens,
        torch_dtype=config.torch_dtype,
        tensor_parallel_size=config.tensor_parallel_size,
        data_parallel_size=config.data_parallel_size,
        base_url=config.base_url,
        served_model_name=config.served_model_name,
    )
