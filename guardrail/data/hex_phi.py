"""HEx-PHI's files: header-less ``category_<n>.csv``, one prompt a line, on the hub and in local copies."""

from __future__ import annotations

import os
import re
from pathlib import Path

from guardrail.core.errors import UserError
from guardrail.core.files import read_text
from guardrail.data.parsing import csv_lines
from guardrail.data.rows import Row

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
    return sorted(folder.glob("category_*.csv"), key=_number) if folder.is_dir() else []


def _number(file: Path) -> int:
    return int("".join(re.findall(r"\d", file.stem)) or 0)


def read_category(file: Path) -> list[Row]:
    """The prompts of one file with their category. Raises ``UserError`` with the file and line."""
    number = _number(file)
    category = CATEGORIES[number - 1] if 1 <= number <= len(CATEGORIES) else file.stem
    lines = csv_lines(read_text(file), file)
    return [{"instruction": line[0], "category": category} for _, line in lines if line[0].strip()]


def read_hub(hub: str) -> list[Row]:
    """The prompts of the hub data set ``hub``, file by file. Raises ``UserError``: gated, offline, unreachable."""
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        raise UserError(f"{hub} is gated and the hub is off (HF_HUB_OFFLINE=1)")
    from huggingface_hub import hf_hub_download

    rows = []
    for number in range(1, len(CATEGORIES) + 1):
        try:
            file = hf_hub_download(hub, f"category_{number}.csv", repo_type="dataset")
        except Exception as error:  # the hub client raises a dozen types; the reason is what the user needs
            if number > 1 and "404" in str(error):
                continue  # a later copy dropped a category; the row count says so
            raise UserError(f"cannot load {hub} ({type(error).__name__}: {str(error)[:150]})") from error
        rows += read_category(Path(file))
    return rows
