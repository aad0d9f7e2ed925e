"""Generation and moderation through vLLM: its own batching, tensor and data parallelism; one process of ours.

Needs vLLM (scripts/install_vllm.sh). On a CPU the engine runs eagerly with a small key-value cache
(``VLLM_CPU_KVCACHE_SPACE``, GiB). Engine logs go to stderr. Greedy completions equal the HF backend's within
floating-point noise; sampled ones are reproducible per row but use vLLM's own random numbers.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

from guardrail.core.errors import UserError
from guardrail.core.loaded import loaded
from guardrail.core.ranks import world_size
from guardrail.generation.interface import Backend, Completion, Request, eos_ids_of, row_seed
from guardrail.generation.options import SamplingOptions
from guardrail.models.adapters import read_adapter
from guardrail.models.checkpoints import check_checkpoint_files, resolve_checkpoint
from guardrail.models.fetch import local_checkpoint

UNIT_ROWS = 1024
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as max_lora_rank


def require_vllm() -> None:
    """Prepare for vLLM's import; ``UserError`` when it is not installed or there are several processes."""
    if importlib.util.find_spec("vllm") is None:
        raise UserError("vLLM is not installed in this environment; run scripts/install_vllm.sh, or use the hf backend")
    if world_size() > 1:
        raise UserError(
            f"vLLM does its own parallelism, but there are {world_size()} processes; start it with plain python "
            "(--tensor_parallel_size, --data_parallel_size)"
        )
    # read at vLLM's first import: engine logs must not reach stdout
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


def make_engine(model: str, dtype: str, *, in_process: bool = True, **options: Any) -> Any:
    """A ``vllm.LLM`` with settings that suit the device and keep stdout clean."""
    require_vllm()
    folder = local_checkpoint(model)
    check_checkpoint_files(folder)
    import torch

    if (adapter := read_adapter(folder)) is not None:  # applied per request: `lora_arguments`
        folder = local_checkpoint(adapter.base)
        rank = next((rank for rank in LORA_RANKS if rank >= adapter.rank), LORA_RANKS[-1])
        options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}

    if in_process:  # nothing is left behind when this process is killed
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    if not torch.cuda.is_available():
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        options.setdefault("enforce_eager", True)
    import vllm

    try:
        return loaded(
            lambda: vllm.LLM(model=folder, dtype=dtype, disable_log_stats=True, **options),
            *("vLLM", model, dtype, repr(sorted(options.items()))),
        )
    except (ValueError, OSError) as error:
        raise UserError(f"vLLM cannot load {model}: {' '.join(str(error).split())[:300]}") from error


def lora_arguments(model: str) -> dict[str, Any]:
    """What ``generate`` and ``embed`` of an engine for ``model`` need where it is an adapter's folder; else nothing."""
    adapter = read_adapter(resolve_checkpoint(model))
    if adapter is None:
        return {}
    from vllm.lora.request import LoRARequest

    return {"lora_request": LoRARequest("adapter", 1, str(adapter.folder))}


class VLLMBackend(Backend):
    """vLLM in this process; loads at the first ``generate``."""

    name = "vLLM"

    def __init__(
        self,
        model_name_or_path: str,
        torch_dtype: str = "bfloat16",
        tensor_parallel_size: int = 1,
        data_parallel_size: int = 1,
        **common: Any,
    ) -> None:
        require_vllm()
        super().__init__(model_name_or_path, **{"unit_rows": UNIT_ROWS, **common})
        self.torch_dtype = torch_dtype
        self.parallel = {"tensor_parallel_size": tensor_parallel_size}
        if data_parallel_size > 1:
            self.parallel["data_parallel_size"] = data_parallel_size

    @functools.cached_property
    def engine(self) -> Any:
        return make_engine(
            self.model_name_or_path,
            self.torch_dtype,
            in_process=max(self.parallel.values()) == 1,
            trust_remote_code=self.trust_remote_code,
            **self.parallel,
        )

    @functools.cached_property
    def eos_ids(self) -> tuple[int, ...]:  # type: ignore[override]  # a value that is computed once
        from transformers import GenerationConfig

        try:
            configured = GenerationConfig.from_pretrained(local_checkpoint(self.model_name_or_path, weights=False))
        except OSError:  # no generation_config.json: the tokenizer's EOS is all there is
            configured = None
        return eos_ids_of(self.tokenizer, configured)

    @functools.cached_property
    def context_tokens(self) -> int:  # type: ignore[override]
        return int(self.engine.llm_engine.model_config.max_model_len)

    def describe(self) -> dict[str, Any]:
        return {"backend": self.name, "torch_dtype": self.torch_dtype, **self.parallel}

    def generate(self, requests: Sequence[Request], options: SamplingOptions) -> list[Completion]:
        """Complete ``requests`` in one call of the engine; see ``Backend``."""
        from vllm import SamplingParams, TokensPrompt

        parameters = []
        for request in requests:
            sampling: dict[str, Any] = {"temperature": 0.0}
            if options.do_sample:
                sampling = {
                    "temperature": options.temperature,
                    "top_p": options.top_p,
                    "top_k": options.top_k or -1,
                    "seed": row_seed(options.seed, request.id, request.sample),
                }
            parameters.append(
                SamplingParams(
                    max_tokens=self.room(request, options),
                    stop=list(self.stops) or None,
                    stop_token_ids=list(self.stop_ids) or None,
                    include_stop_str_in_output=True,
                    skip_special_tokens=True,
                    **sampling,
                )
            )
        prompts = [TokensPrompt(prompt_token_ids=list(r.prompt_ids)) for r in requests]
        outputs = self.engine.generate(prompts, parameters, use_tqdm=False, **lora_arguments(self.model_name_or_path))
        return [self.finish(request, out.outputs[0].token_ids) for request, out in zip(requests, outputs, strict=True)]

    def top_next_tokens(self, prompts: Sequence[Sequence[int]], k: int = 20) -> list[list[tuple[int, float]]]:
        """The ``k`` likeliest next tokens of each prompt with their probabilities."""
        import math

        from vllm import SamplingParams, TokensPrompt

        outputs = self.engine.generate(
            [TokensPrompt(prompt_token_ids=list(p)) for p in prompts],
            SamplingParams(temperature=0.0, max_tokens=1, logprobs=k, detokenize=False),
            use_tqdm=False,
            **lora_arguments(self.model_name_or_path),
        )
        return [[(t, math.exp(v.logprob)) for t, v in out.outputs[0].logprobs[0].items()] for out in outputs]


@functools.lru_cache(maxsize=1)
def _classifier(model: str, dtype: str) -> Any:
    if read_adapter(resolve_checkpoint(model)) is not None:
        raise UserError(f"{model} is an adapter; vLLM classifies with plain checkpoints only, use the hf backend")
    return make_engine(model, dtype, runner="pooling")


def classify(model: str, texts: Sequence[Sequence[int]], dtype: str, n_labels: int) -> list[list[float]]:
    """Sigmoid probabilities ``(N, n_labels)`` of a multi-label sequence classifier for token-id ``texts``.

    Raises ``UserError`` when the model is no multi-label classifier with ``n_labels`` (vLLM would apply a softmax).
    """
    from transformers import AutoConfig
    from vllm import TokensPrompt

    config = AutoConfig.from_pretrained(local_checkpoint(model, weights=False))
    if config.num_labels != n_labels or config.problem_type != "multi_label_classification":
        raise UserError(
            f"{model}: vLLM needs problem_type multi_label_classification and {n_labels} labels in config.json, found "
            f"{config.problem_type} and {config.num_labels}; use the hf backend"
        )
    outputs = _classifier(model, dtype).classify(
        [TokensPrompt(prompt_token_ids=list(text)) for text in texts], use_tqdm=False
    )
    return [list(map(float, out.outputs.probs)) for out in outputs]
