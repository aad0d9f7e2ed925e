"""Options of a scoring run: one frozen dataclass, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from guardrail.core.cli import Parser, positive_int
from guardrail.core.errors import UserError
from guardrail.core.options import add_options, option
from guardrail.models.loading import DTYPES
from guardrail.similarity.scorers import SCORERS

VERSION = 1  # raise when the same rows and options give other numbers; one scorer's own: `version` where it is added
SPACES = ("auto", "linear", "last_block", "lora")
ALL = "all"
FLAGS = {  # what a scorer needs -> the flags that give it
    "model": "--model_name_or_path",
    "representations": "--model_name_or_path or --representations",
    "anchors": "--anchors",
    "safe_anchors": "--safe_anchors or --alignment",
    "alignment": "--alignment",
    "refusals": "--refusals, --safe_anchors or --alignment",
    "safety": "--safety or --alignment",
    "moderation_model": "--moderation_model",
}


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """Options of a scoring run. A set is PATH or PATH::SPLIT; of files that are read, the content decides."""

    rows: str | None = option(None, "the rows to score: PATH or PATH::SPLIT", decides=False)
    limit: int | None = option(None, "score the first rows only", parse=positive_int, decides=False)
    scorers: tuple[str, ...] = option(("length", "random"), "names with commas, or all", shown_default="length,random")
    out: str | None = option(
        None, "scores, one JSON line per row; <out without .jsonl>.json is the record", decides=False
    )
    compare: str | None = option(None, "scores of the target model, to compare those in --out with", decides=False)
    model_name_or_path: str | None = option(None, "the model that would be fine-tuned, or a smaller one", decides=False)
    prompt_style: str | None = option(None, "chat string of a causal LM (default llama2_base)")
    max_length: int | None = option(None, "cap in tokens (default: the model's, at most 4096)", parse=positive_int)
    layer: int = option(-1, "layer of the cosines: 0 embeddings, -1 the last after the final norm")
    position: str | None = option(None, "position of the cosines (default: eos, encoders mean)")
    avg_n: int = option(1, "similarity: mean of so many largest cosines", parse=positive_int)
    anchors: str | None = option(None, "harmful rows with answers, or stored representations of some", decides=False)
    safe_anchors: str | None = option(
        None, "safe rows to set against the anchors (default: --alignment)", decides=False
    )
    alignment: str | None = option(None, "the alignment set, or stored representations of it", decides=False)
    refusals: str | None = option(
        None, "refusing answers to the anchors' prompts (default: answers of --safe_anchors put to them)", decides=False
    )
    safety: str | None = option(None, "rows of the safety loss: refusals (default: --alignment)", decides=False)
    representations: str | None = option(None, "stored representations of --rows, instead of a model", decides=False)
    moderation_model: str | None = option(None, "sequence classifier with Beaver-Dam's labels", decides=False)
    max_set_rows: int = option(256, "rows used of each set besides --rows; a seeded sample of more", parse=positive_int)
    gradient_parameters: str = option(
        "auto", "weights whose gradient is looked at (auto: linear; last_block for a large model)", choices=SPACES
    )
    gradient_tokens: int | None = option(
        None, "only the first tokens of an answer enter gradients (He et al.: 10; default: all)", parse=positive_int
    )
    lora_rank: int = option(8, "rank of the fresh adapters of lora and gradient_projection", parse=positive_int)
    projection_dim: int = option(512, "numbers per row that gradient_projection keeps", parse=positive_int)
    subspace_dim: int = option(4, "directions of the consensus subspace", parse=positive_int)
    seed: int = option(42, "seed of random scores, samples, adapters and projections")
    torch_dtype: str = option(
        "auto", "the model's dtype (auto: bfloat16 on GPU, float32 on CPU)", choices=("auto", *DTYPES)
    )
    batch_tokens: int | None = option(
        None, "padded tokens per batch (default: 1024 on CPU, 8192 on GPU)", parse=positive_int, decides=False
    )
    trust_remote_code: bool = option(False, "run code that comes with the model")

    @property
    def names(self) -> tuple[str, ...]:
        """The scorers asked for, in order, each once; of ``all`` those whose needs are given.

        Raises ``UserError``: unknown name, none at all, a named one lacks what it needs.
        """
        if self.scorers == (ALL,):
            return tuple(name for name in SCORERS if not self.missing(name))
        if not self.scorers:
            raise UserError(f"--scorers is empty; give names with commas, or all; available: {', '.join(SCORERS)}")
        for name in self.scorers:
            SCORERS.check(name)
            missing = self.missing(name)
            if missing:
                flags = "; ".join(FLAGS.get(need, f"--{need}") for need in missing)
                raise UserError(f"scorer {name} needs {', '.join(missing)}; leave {name} out, or give {flags}")
        return tuple(dict.fromkeys(self.scorers))

    def missing(self, name: str) -> list[str]:
        """What the scorer needs and these options do not give."""
        return [need for need in SCORERS.facts(name).get("needs", ()) if not self.has(need)]

    def has(self, need: str) -> bool:
        given: dict[str, Any] = {
            "model": self.model_name_or_path,
            "representations": self.representations or self.model_name_or_path,
            "safe_anchors": self.safe_anchors or self.alignment,
            "refusals": self.refusals or self.safe_anchors or self.alignment,
            "safety": self.safety or self.alignment,
        }
        return given.get(need, getattr(self, need, None)) is not None

    def set_path(self, name: str) -> str:
        """Where the set ``name`` is: its own path, or the one that stands in for it."""
        stands_in = {
            "safe_anchors": self.safe_anchors or self.alignment,
            "refusals": self.refusals or self.safe_anchors or self.alignment,
            "safety": self.safety or self.alignment,
        }
        path: str | None = stands_in.get(name, getattr(self, name, None))
        assert path is not None, name
        return path


def build_parser() -> Parser:
    parser = Parser(description="Before fine-tuning: how risky is each row? One number per row and scorer.")
    add_options(parser, ScoringConfig)
    return parser
