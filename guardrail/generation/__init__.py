"""Generation: the same prompts as token ids through Hugging Face, vLLM or an OpenAI-compatible server.

    backend = make_backend("hf", model, torch_dtype="float32", prompt_style="llama2_base")
    ids = encode_prompt(backend.tokenizer, "llama2_base", row["messages"])
    completions = generate_resumable(backend, [Request(row["id"], 0, ids)], options, folder, key)

``generate_resumable`` (guardrail.generation.runner) shards over ranks and survives ``kill -9``;
``backend.generate`` does one process's work. Importing this package imports neither torch nor an engine.
"""

from __future__ import annotations

from typing import Any

from guardrail.core.errors import UserError, unknown
from guardrail.data.prompts import check_style, stop_strings
from guardrail.generation.interface import Backend, Completion, Request, SamplingOptions, row_seed
from guardrail.generation.runner import generate_resumable

BACKENDS = ("hf", "vLLM", "openai")
# shallow-vs-deep's evaluation defaults (its eval_safety.py)
PAPER_SAMPLING = {"do_sample": True, "temperature": 0.9, "top_p": 0.6, "top_k": 50, "max_new_tokens": 512}

__all__ = [
    "BACKENDS",
    "PAPER_SAMPLING",
    "Backend",
    "Completion",
    "Request",
    "SamplingOptions",
    "backend_of",
    "check_engine_options",
    "generate_resumable",
    "make_backend",
    "row_seed",
]


def make_backend(
    name: str,
    model_name_or_path: str,
    *,
    torch_dtype: str = "bfloat16",
    prompt_style: str | None = None,
    stops: tuple[str, ...] | None = None,
    trust_remote_code: bool = False,
    batch_rows: int | None = None,
    batch_tokens: int | None = None,
    tensor_parallel_size: int = 1,
    data_parallel_size: int = 1,
    base_url: str | None = None,
    served_model_name: str | None = None,
) -> Backend:
    """A generation backend; its model loads at the first ``generate``, its tokenizer at first use.

    Args:
        name: ``hf``, ``vLLM`` or ``openai``.
        model_name_or_path: model folder or hub name; for ``openai`` the folder or name whose tokenizer makes the ids.
        prompt_style: gives the next-turn markers at which completions are cut (``stops`` overrides them).
        batch_rows, batch_tokens: upper limits of one unit of work (and of one HF batch).
        tensor_parallel_size, data_parallel_size: vLLM only.
        base_url, served_model_name: openai only; default ``OPENAI_BASE_URL`` and the server's only model.

    Raises ``UserError``: unknown name or style, an option that the backend cannot honour, no such model.
    """
    if name not in BACKENDS:
        raise unknown("generation backend", name, BACKENDS)
    if stops is None:
        stops = stop_strings(check_style(prompt_style)) if prompt_style else ()
    common: dict[str, Any] = {"stops": tuple(stops), "trust_remote_code": trust_remote_code}
    if batch_rows is not None:
        common["unit_rows"] = batch_rows
    if batch_tokens is not None:
        common["unit_tokens"] = batch_tokens
    if name == "hf":
        from guardrail.generation.hf import HFBackend

        return HFBackend(model_name_or_path, torch_dtype=torch_dtype, **common)
    if name == "vLLM":
        from guardrail.generation.vllm_engine import VLLMBackend

        return VLLMBackend(
            model_name_or_path,
            torch_dtype=torch_dtype,
            tensor_parallel_size=tensor_parallel_size,
            data_parallel_size=data_parallel_size,
            **common,
        )
    from guardrail.generation.server import ServerBackend

    return ServerBackend(model_name_or_path, base_url=base_url, served_model_name=served_model_name, **common)


def check_engine_options(config: Any) -> None:
    """Refuse options of a stage's ``config`` that its ``generation_backend`` could not honour (``UserError``)."""
    if config.generation_backend not in BACKENDS:
        raise unknown("generation backend", config.generation_backend, BACKENDS)
    if config.generation_backend != "openai" and (config.base_url or config.served_model_name):
        raise UserError("--base_url and --served_model_name need --generation_backend openai")
    if config.generation_backend != "vLLM" and max(config.tensor_parallel_size, config.data_parallel_size) > 1:
        raise UserError("--tensor_parallel_size and --data_parallel_size need --generation_backend vLLM")


def backend_of(config: Any, prompt_style: str) -> Backend:
    """The backend that a stage's ``config`` asks for: the flags that all generating entry points share."""
    return make_backend(
        config.generation_backend,
        config.model_name_or_path,
        torch_dtype=config.torch_dtype,
        prompt_style=prompt_style,
        trust_remote_code=config.trust_remote_code,
        batch_rows=config.batch_size_per_device,
        batch_tokens=config.batch_tokens,
        tensor_parallel_size=config.tensor_parallel_size,
        data_parallel_size=config.data_parallel_size,
        base_url=config.base_url,
        served_model_name=config.served_model_name,
    )
