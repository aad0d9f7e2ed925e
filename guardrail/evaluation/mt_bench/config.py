"""The options of ``python __main__.py --benchmark mt_bench``, with their checks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.core.errors import UserError, unknown
from guardrail.data.prompts import check_style
from guardrail.evaluation.mt_bench import answers as answering
from guardrail.models.checkpoints import hash_checkpoint

JUDGE_BACKENDS = ("openai", "vLLM", "hf")
OLD_PROTOCOL_FOLDER = "align_anything_old_protocol"


@dataclass(frozen=True)
class MTBenchConfig:
    """Options of ``--benchmark mt_bench``; the only home of their defaults. Raises ``UserError`` when they clash."""

    model_id: str
    output_dir: str
    model_name_or_path: str | None = None
    answers: str | None = None
    generation_backend: str = "hf"
    torch_dtype: str = "bfloat16"
    prompt_style: str | None = None
    data_dir: str | None = None
    limit: int | None = None
    protocol: str = answering.FASTCHAT
    max_new_tokens: int = 1024
    seed: int = 0
    judge_model: str | None = None
    judge_backend: str = "openai"
    judge_base_url: str | None = None
    judge_torch_dtype: str = "bfloat16"
    judge_max_tokens: int = 2048
    judge_timeout_sec: float = 120.0
    judge_max_retries: int = 4
    judge_workers: int = 8
    base_url: str | None = None
    served_model_name: str | None = None
    batch_size_per_device: int | None = None
    batch_tokens: int | None = None
    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        from guardrail.generation import check_engine_options
        from guardrail.models.loading import DTYPES

        if not re.fullmatch(r"[\w.+-]+", self.model_id) or self.model_id.startswith("."):
            raise UserError(f"--model_id {self.model_id!r} names files: letters, digits, '.', '_', '+' and '-' only")
        if (self.answers is None) == (self.model_name_or_path is None):
            raise UserError("give --model_name_or_path (to answer the questions) or --answers FILE (to judge answers)")
        if self.answers is not None and self.judge_model is None:
            raise UserError("--answers FILE is for judging; give --judge_model as well")
        if self.prompt_style is not None:
            check_style(self.prompt_style)
        for flag, value, known in (
            ("torch_dtype", self.torch_dtype, DTYPES),
            ("judge_torch_dtype", self.judge_torch_dtype, DTYPES),
            ("judge_backend", self.judge_backend, JUDGE_BACKENDS),
            ("protocol", self.protocol, answering.PROTOCOLS),
        ):
            if value not in known:
                raise unknown(f"value for --{flag}:", value, known)
        check_engine_options(self)
        if self.judge_base_url and (self.judge_model is None or self.judge_backend != "openai"):
            raise UserError("--judge_base_url needs --judge_model and --judge_backend openai")
        if self.judge_timeout_sec <= 0 or self.judge_max_retries < 0:
            raise UserError("--judge_timeout_sec must be above 0 and --judge_max_retries at least 0")

    @property
    def folder(self) -> Path:
        folder = Path(self.output_dir)
        return folder if self.protocol == answering.FASTCHAT else folder / OLD_PROTOCOL_FOLDER

    @property
    def judge_name(self) -> str | None:
        """The judge as it appears in file names and results."""
        return None if self.judge_model is None else Path(self.judge_model.rstrip("/")).name

    def answer_options(self) -> answering.AnswerOptions:
        return answering.AnswerOptions(self.protocol, self.max_new_tokens, self.seed)

    def judge_facts(self) -> dict[str, Any] | None:
        """What decides a judgement, given its prompt."""
        if self.judge_model is None:
            return None
        facts: dict[str, Any] = {
            "judge": self.judge_model,
            "backend": self.judge_backend,
            "max_tokens": self.judge_max_tokens,
        }
        if self.judge_backend != "openai":
            facts |= {"model": hash_checkpoint(self.judge_model), "dtype": self.judge_torch_dtype}
        return facts
