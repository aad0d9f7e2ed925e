"""Which files are which split, as the card of a published data set says it.

A copy of a hub data set (`hf download --local-dir`) has its files where the authors put them; the front matter of its
README.md names configurations, splits and files, and decides before any file's name does, as in the datasets library:

    configs:
    - config_name: default
      data_files:
      - split: 330k_train
        path: round0/330k/train.jsonl.xz
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from guardrail.data.parsing import FILE_SUFFIXES

FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)
OWN_MARKS = ("manifests", "manifest.json")  # of folders that this project writes: their files are named after splits


def card_splits(folder: Path, name: str | None = None) -> dict[str, list[Path]]:
    """Split -> its files of configuration ``name`` (None: the default one); empty where the card does not say."""
    card = folder / "README.md"
    if not card.is_file() or any((folder / mark).exists() for mark in OWN_MARKS):
        return {}
    config = _config(_front_matter(card).get("configs"), name)
    out: dict[str, list[Path]] = {}
    for split, patterns in _patterns(config.get("data_files")):
        found = [file for pattern in patterns for file in _files(folder, pattern)]
        if found:
            out.setdefault(split, []).extend(found)
    return out


def _front_matter(card: Path) -> dict[str, Any]:
    import yaml

    try:
        match = FRONT_MATTER.match(card.read_text(encoding="utf-8"))
        value = yaml.safe_load(match.group(1)) if match else None
    except (OSError, ValueError, yaml.YAMLError):  # a README of whatever kind is no reason to refuse the data
        return {}
    return value if isinstance(value, dict) else {}


def _config(configs: Any, name: str | None) -> dict[str, Any]:
    known = [one for one in configs if isinstance(one, dict)] if isinstance(configs, list) else []
    if name is not None:
        return next((one for one in known if one.get("config_name") == name), {})
    default = next((one for one in known if one.get("default") or one.get("config_name") == "default"), None)
    return default or (known[0] if len(known) == 1 else {})


def _patterns(data_files: Any) -> list[tuple[str, list[str]]]:
    """Split and patterns, of each of the forms that ``data_files`` may have."""
    if isinstance(data_files, str):
        return [("train", [data_files])]
    out = []
    for one in data_files if isinstance(data_files, list) else []:
        split, path = (one.get("split", "train"), one.get("path")) if isinstance(one, dict) else ("train", one)
        out.append((str(split), [str(each) for each in (path if isinstance(path, list) else [path]) if each]))
    return out


def _files(folder: Path, pattern: str) -> list[Path]:
    """Data files of ``folder`` that match; never one outside of it."""
    if pattern.startswith("/") or ".." in Path(pattern).parts:
        return []
    return sorted(file for file in folder.glob(pattern) if file.is_file() and file.name.endswith(FILE_SUFFIXES))
