"""From what the user names to a loadable model folder, and a content hash of it.

A path may be the folder itself, an output folder holding ``slice_end/`` (align-anything's habit), or a hub name.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from guardrail.core.errors import UserError
from guardrail.core.files import hash_file, hash_json, write_json

SLICE = "slice_end"
WEIGHT_SUFFIXES = (".safetensors", ".bin")


def resolve_checkpoint(name: str | Path) -> str:
    """The loadable folder, or the hub name unchanged. Raises ``UserError`` when it can be neither."""
    path = Path(name).expanduser()
    if path.is_dir():
        for folder in (path, path / SLICE):
            if (folder / "config.json").is_file():
                if not any(file.name.endswith(WEIGHT_SUFFIXES) for file in folder.iterdir()):
                    raise UserError(f"{folder} has a config.json but no weights (*.safetensors); is it complete?")
                return str(folder)
        raise UserError(f"{path} is no model folder: no config.json in it nor in {path / SLICE}")
    text = str(name)
    if path.is_file() or text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise UserError(f"no such model folder: {name}; expected a Hugging Face folder or a hub name like org/model")
    if os.environ.get("HF_HUB_OFFLINE") == "1" and not _in_hub_cache(text):
        raise UserError(f"no model folder {name!r} here, and the hub is off (HF_HUB_OFFLINE=1); give a folder")
    return text


def _in_hub_cache(name: str) -> bool:
    home = os.environ.get("HF_HUB_CACHE") or os.path.join(
        os.environ.get("HF_HOME", os.path.expanduser("~/.cache/huggingface")), "hub"
    )
    return os.path.isdir(os.path.join(home, "models--" + name.replace("/", "--")))


def hash_checkpoint(name: str | Path) -> str:
    """A 16-character hash of configuration, tokenizer and weights of a local folder; of the name for the hub.

    Weights are hashed once per file state: the result is kept in the user's cache keyed on path, size and time.
    """
    resolved = Path(resolve_checkpoint(name))
    if not resolved.is_dir():
        return hash_json({"hub": str(resolved)})
    names = ("config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja")
    files = [f for f in sorted(resolved.iterdir()) if f.name in names or f.name.endswith(WEIGHT_SUFFIXES)]
    cache_file = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "guardrail" / "hashes.json"
    try:
        cache = json.loads(cache_file.read_text())
    except (OSError, ValueError):
        cache = {}
    parts, changed = {}, False
    for file in files:
        stat = file.stat()
        key = f"{file.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
        if key not in cache:
            cache[key] = hash_file(file)
            changed = changed or stat.st_size > 1 << 26
        parts[file.name] = cache[key]
    if changed:  # only worth keeping for large files
        with contextlib.suppress(OSError, UserError):  # a read-only home costs a re-hash, nothing else
            write_json(cache_file, cache)
    return hash_json(parts)
