"""Secrets in rows, found by Yelp's detect-secrets (``pip install 'guardrail-durability[gate]'``); without it, none are.

Its detectors of known formats are asked line by line: keys and tokens of services, private keys, passwords in
addresses. Those that judge by entropy or by the word before are left out: in ordinary text they see secrets everywhere.
What is kept of a finding is the detector's name.
Known limit: formats of English-speaking services; of personal data only what such a detector calls a secret.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import logging
from typing import Any

from guardrail.data.rows import Row

PACKAGE = "detect-secrets"
LEFT_OUT = {"Base64 High Entropy String", "Hex High Entropy String", "Secret Keyword", "Public IP (ipv4)"}
MAX_KINDS = 63  # bits of a number


def is_installed() -> bool:
    return importlib.util.find_spec("detect_secrets") is not None


def version() -> str | None:
    return importlib.metadata.version(PACKAGE) if is_installed() else None


@functools.cache
def detectors() -> tuple[tuple[str, Any], ...]:
    """Name and detector, in alphabetical order; empty without the package."""
    if not is_installed():
        return ()
    logging.getLogger("detect_secrets").setLevel(logging.CRITICAL)  # its log may quote what it looks at
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

    kinds: dict[str, Any] = get_mapping_from_secret_type_to_class()
    return tuple((name, kinds[name]()) for name in sorted(kinds) if name not in LEFT_OUT)[:MAX_KINDS]


def find_secrets(row: Row) -> int:
    """The kinds of secrets in the row's texts, one bit per detector of `detectors`."""
    found = 0
    lines = [line for message in row["messages"] for line in message["content"].split("\n")]
    for place, (_, detector) in enumerate(detectors()):
        if any(next(iter(detector.analyze_string(line)), None) is not None for line in lines):
            found |= 1 << place
    return found


def kinds_of(bits: int) -> list[str]:
    return [name for place, (name, _) in enumerate(detectors()) if bits >> place & 1]
