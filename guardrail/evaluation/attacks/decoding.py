"""Decoding: sampling with another temperature or top-p than the model is used with (Huang et al. 2023, arXiv
2310.06987: generation exploitation). One setting; ``eval_safety.py --decoding_sweep`` tries many."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from guardrail.core.errors import UserError
from guardrail.core.options import option
from guardrail.evaluation.attacks import Attack
from guardrail.generation.interface import SamplingOptions


@dataclass(frozen=True, kw_only=True)
class Decoding(Attack):
    name: ClassVar[str] = "decoding"

    temperature: float = option(1.0, "of sampling")
    top_p: float = option(1.0, "nucleus of sampling")

    def __post_init__(self) -> None:
        if self.temperature <= 0 or not 0 < self.top_p <= 1:
            raise UserError("attack decoding samples: temperature must be above 0, top_p above 0 and at most 1")

    def decoding(self, options: SamplingOptions) -> SamplingOptions:
        return dataclasses.replace(options, do_sample=True, temperature=self.temperature, top_p=self.top_p)
