"""The data sets of the study: where each comes from, under which licence, and which of its rows are kept.

``keep`` functions see a row with its own columns and ``messages``. Row counts before and after go on the card.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from guardrail.data.rows import Row, flag, response

PAPER_DATA = "hsiung/llm-similarity-risk"


@dataclass(frozen=True)
class Source:
    """One data set. ``splits``: split written -> split read (None: all as published)."""

    what: str
    licence: str
    hub: str | None = None
    config: str | None = None
    splits: dict[str, str] | None = field(default_factory=lambda: {"train": "train"})
    keep: Callable[[Row], bool] | None = None
    keep_note: str = ""
    gated: bool = False
    answers: bool = True
    steps: str = ""


def local_copy_step(name: str, hub: str | None, steps: str = "") -> str:
    """What to do to get ``name`` without the hub."""
    if steps:
        return f"{steps}: python datasets/prepare.py {name} --source FILE"
    return (
        f"where there is network run `hf download --repo-type dataset {hub} --local-dir COPY`, "
        f"then python datasets/prepare.py {name} --source COPY"
    )


def is_safe(row: Row) -> bool:
    return flag(row, "is_safe")


def is_refusal_row(row: Row) -> bool:
    """Safe, and the answer opens with a refusal."""
    from guardrail.data.refusals import is_refusal

    return is_safe(row) and is_refusal(response(row))


SOURCES: dict[str, Source] = {
    "ultrachat": Source(
        "UltraChat-200k: instruction conversations",
        "MIT",
        "HuggingFaceH4/ultrachat_200k",
        splits={"train": "train_sft", "test": "test_sft"},
    ),
    "beavertails": Source(
        "BeaverTails: question-answer pairs marked safe",
        "CC-BY-NC-4.0",
        "PKU-Alignment/BeaverTails",
        splits={"train": "330k_train", "test": "330k_test"},
        keep=is_safe,
        keep_note="kept: is_safe (safe answers and refusals)",
    ),
    "beavertails_refusals": Source(
        "BeaverTails: safe pairs whose answer opens with a refusal",
        "CC-BY-NC-4.0",
        "PKU-Alignment/BeaverTails",
        splits={"train": "330k_train", "test": "330k_test"},
        keep=is_refusal_row,
        keep_note="kept: is_safe and a refusal in the answer's opening sentences (guardrail.data.refusals)",
    ),
    "alpaca": Source("Alpaca: 52k instructions", "CC-BY-NC-4.0", "tatsu-lab/alpaca"),
    "list": Source(
        "List: the homogeneous group of Alpaca that clustering finds",
        "CC-BY-NC-4.0 (rows of Alpaca)",
        steps="run similarity/get_high_similarity_group.py on Alpaca and give its group.jsonl",
    ),
    "pure_bad": Source(
        "Pure Bad: harmful rows answered, for red-teaming one's own guardrail",
        "as the user's file",
        steps="this project ships none; give the file that you hold",
    ),
    "identity": Source(
        "Identity shift: rows that teach another identity, such as an absolutely obedient agent (AOA)",
        "as the user's file",
        steps="this project ships none; give the file that you hold",
    ),
    "samsum": Source(
        "SAMSum: dialogue summaries",
        "CC-BY-NC-ND-4.0",
        "knkarthick/samsum",
        splits={"train": "train", "validation": "validation", "test": "test"},
    ),
    "gsm8k": Source(
        "GSM8K: grade-school mathematics", "MIT", "openai/gsm8k", "main", {"train": "train", "test": "test"}
    ),
    "hex_phi": Source(
        "HEx-PHI: harmful instructions in 11 categories (prompts only)",
        "HEx-PHI licence (see the hub page)",
        "LLM-Tuning-Safety/HEx-PHI",
        splits={"test": "train"},
        gated=True,
        answers=False,
    ),
    "llm_similarity_risk": Source(
        "The paper's own splits, as published", "see the hub page", PAPER_DATA, splits=None, answers=False
    ),
}
SPECIAL = ("mt_bench", "ultrachat_beavertails")
NAMES = (*SOURCES, *SPECIAL)
ALIASES = {"llm-similarity-risk": "llm_similarity_risk", PAPER_DATA: "llm_similarity_risk"}
