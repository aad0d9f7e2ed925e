"""HEx-PHI's files: header-less ``category_<n>.csv``, one prompt a line, on the hub and in local copies."""

from __future__ import annotations

import re
from pathlib import Path

from guardrail.core.errors import UserError
from guardrail.core.files import read_text
from guardrail.core.hub import cached_commit, hub_error, is_offline, study_commit
from guardrail.data.parsing import csv_lines
from guardrail.data.rows import PROMPT_COLUMNS, Row

PATTERN = "category_*.csv"
CATEGORIES = (
    "Illegal Activity",
    "Child Abuse Content",
    "Hate/Harass/Violence",
    "Malware",
    "Physical Harm",
    "Economic Harm",
    "Fraud/Deception",
    "Adult Content",
    "Political Campaigning",
    "Privacy Violation Activity",
    "Tailored Financial Advice",
)


def category_files(folder: Path) -> list[Path]:
    """The files of a folder in the order of their numbers (by name, 10 would come before 2); empty if there are none.

    One order for local copies and for the hub: the data hash of a bench depends on it.
    """
    return sorted(folder.glob(PATTERN), key=_number) if folder.is_dir() else []


def _number(file: Path) -> int:
    return int("".join(re.findall(r"\d", file.stem)) or 0)


def read_category(file: Path) -> list[Row]:
    """The prompts of one file with their category. Raises ``UserError`` with the file and line."""
    number = _number(file)
    category = CATEGORIES[number - 1] if 1 <= number <= len(CATEGORIES) else file.stem
    prompts = [line[0] for _, line in csv_lines(read_text(file), file) if line[0].strip()]
    if prompts and prompts[0].strip() in PROMPT_COLUMNS:  # a copy that was saved with a header; a prompt has more words
        del prompts[0]
    return [{"instruction": prompt, "category": category} for prompt in prompts]


def read_hub(hub: str, revision: str | None = None, step: str = "") -> list[Row]:
    """The prompts of the hub data set ``hub``, file by file. Raises ``UserError``: gated, offline, unreachable.

    A copy of the hub may lack a category: which files there are decides, and the row count says so. ``step``: how to do
    without the hub.
    """
    if is_offline() and cached_commit("dataset", hub) is None:
        raise UserError(f"{hub} is gated and the hub is off (HF_HUB_OFFLINE=1)")
    from huggingface_hub import snapshot_download

    revision = revision or study_commit("dataset", hub)
    try:
        folder = snapshot_download(hub, repo_type="dataset", revision=revision, allow_patterns=[PATTERN])
    except Exception as error:  # the hub client raises a dozen types; the reason is what the user needs
        raise hub_error(error, "dataset", hub, step, revision) from error
    files = category_files(Path(folder))
    if not files:
        raise UserError(f"{hub} has no files {PATTERN} on the hub (any more); {step or 'give a local copy'}")
    return [row for file in files for row in read_category(file)]
