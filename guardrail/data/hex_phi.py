"""HEx-PHI's files: header-less ``category_<n>.csv``, one prompt a line, on the hub and in local copies."""

from __future__ import annotations

import re
from pathlib import Path

from guardrail.core.files import read_text
from guardrail.data.rows import Row, csv_lines

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
