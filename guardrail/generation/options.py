"""Options of everything that generates: which engine with what, and how to decode; the backends by name.

A stage's configuration inherits `EngineOptions` and, where it samples, `DecodingOptions`. Imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from guardrail.core.cli import boolean, positive_int
from guardrail.core.errors import UserError, unknown
from guardrail.core.options import decisive, option, options_of
from guardrail.core.registry import Registry
from guardrail.models.loading import DTYPES

# ``takes``: the engine options that a backend honours; the others are refused
BACKENDS = Registry("generation backend")
BACKENDS.add("hf", "guardrail.generation.hf:HFBackend", takes=("torch_dtype",))
BACKENDS.add(
    *("vLLM", "guardrail.generation.vllm_engine:VLLMBackend"),
    takes=("torch_dtype", "tensor_parallel_size", "data_parallel_size"),
)
BACKENDS.add("openai", "guardrail.generation.server:ServerBackend", takes=("base_url", "served_model_name"))
NEEDS_A_BACKEND = (("base_url", "served_model_name"), ("tensor_parallel_size", "data_parallel_size"))


@dataclass(frozen=True)
class SamplingOptions:
    """How to decode. Greedy unless ``do_sample``; then temperature, top-k (0: off), top-p in the field's order.

    Raises ``UserError`` for values that no backend could honour.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.do_sample and not self.temperature > 0:
            raise UserError(
                f"temperature {self.temperature} with sampling; expected > 0, or --do_sample False (greedy)"
            )
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p {self.top_p}; expected a number above 0 and at most 1")
        if self.top_k < 0:
            raise UserError(f"top_k {self.top_k}; expected 0 (off) or a positive number")
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens {self.max_new_tokens}; expected at least 1")

    def as_dict(self) -> dict[str, Any]:
        """The options that can change a completion: with greedy decoding the sampling numbers are left out."""
        out = dataclasses.asdict(self)
        return out if self.do_sample else {k: out[k] for k in ("do_sample", "max_new_tokens")}


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """The engine and what it runs on: the flags that all generating entry points share."""

    generation_backend: str = option("hf", "engine", choices=BACKENDS.names)
    torch_dtype: str = option("bfloat16", "dtype of the weights", choices=DTYPES)
    base_url: str | None = option(None, "openai backend: the server; default OPENAI_BASE_URL")
    served_model_name: str | None = option(
        None, "openai backend: the model's name there; default: the server's only one"
    )
    batch_size_per_device: int | None = option(None, "most rows per batch", parse=positive_int, decides=False)
    batch_tokens: int | None = option(None, "most padded tokens per batch", parse=positive_int, decides=False)
    tensor_parallel_size: int = option(1, "vLLM backend", parse=positive_int, decides=False)
    data_parallel_size: int = option(1, "vLLM backend", parse=positive_int, decides=False)
    trust_remote_code: bool = option(False, "run code that comes with the model", parse=boolean)

    def check_engine(self) -> None:
        """Refuse values that are none of an option's, and options that the backend could not honour (``UserError``)."""
        for item in options_of(self):
            choices, value = item.metadata["choices"], getattr(self, item.name)
            if choices is not None and value is not None and item.name != "generation_backend":
                known = choices() if callable(choices) else choices
                if value not in known:
                    raise unknown(f"value for --{item.name}:", value, known)
        takes = BACKENDS.facts(self.generation_backend).get("takes", ())
        default = {item.name: item.default for item in dataclasses.fields(EngineOptions)}
        for group in NEEDS_A_BACKEND:
            given = any(getattr(self, name) != default[name] for name in group)
            if given and not set(group) <= set(takes):
                able = [name for name in BACKENDS if set(group) <= set(BACKENDS.facts(name).get("takes", ()))]
                flags = " and ".join(f"--{name}" for name in group)
                raise UserError(f"{flags} need --generation_backend {' or '.join(able)}")

    def engine_identity(self) -> dict[str, Any]:
        """`decisive` options with what they stand for: a server's resolved address; no dtype that is not ours."""
        out = decisive(self)
        takes = BACKENDS.facts(self.generation_backend).get("takes", ())
        if "base_url" in takes:
            from guardrail.core.openai_client import resolve_base_url

            out["base_url"] = resolve_base_url(self.base_url)
        if "torch_dtype" not in takes:
            out["torch_dtype"] = None
        return out


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """How to decode, and how often; a stage gives its own defaults."""

    do_sample: bool = option(False, "sample instead of greedy decoding", parse=boolean)
    temperature: float = option(0.9, "with --do_sample True")
    top_p: float = option(0.6, "with --do_sample True")
    top_k: int = option(50, "with --do_sample True; 0: off")
    max_new_tokens: int = option(512, "longest completion in tokens", parse=positive_int)
    seed: int = option(0, "with --do_sample True; every row and sample draws from its own stream")
    samples_per_prompt: int = option(1, "completions per row, with --do_sample True", parse=positive_int)

    def sampling(self) -> SamplingOptions:
        return SamplingOptions(self.do_sample, self.temperature, self.top_p, self.top_k, self.max_new_tokens, self.seed)

    def decoding_identity(self) -> dict[str, Any]:
        """The decoding options that have an effect; None for the others, so that they are in no key."""
        used = self.sampling().as_dict()
        names = (item.name for item in dataclasses.fields(DecodingOptions) if item.name != "samples_per_prompt")
        return {name: used.get(name) for name in names}
