"""Content hashes of files and folders, each file read once per state.

A file's state is its size and its times of change (contents and attributes): a copy put in its place has another one,
also when it keeps the old modification time. Hashes of large files are kept in the user's cache between processes.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from guardrail.core.errors import UserError
from guardrail.core.files import hash_file, hash_json, write_json

LARGE_BYTES = 1 << 26
_known: dict[str, str] = {}


def file_state(path: str | Path) -> list[int]:
    """``[bytes, mtime_ns, ctime_ns]``: changes whenever the content may have."""
    stat = os.stat(path)
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def cache_file() -> Path:
    """Where hashes of large files are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "guardrail" / "hashes.json"


def content_hash(path: str | Path) -> str:
    """A 16-character hash of a file's content; read again only when its state has changed."""
    real = os.path.realpath(path)
    state = file_state(real)
    key = ":".join(map(str, [real, *state]))
    if key in _known:
        return _known[key]
    large = state[0] > LARGE_BYTES
    stored = _read_cache() if large else {}
    found = stored.get(key) or hash_file(real)
    _known[key] = found
    if large and key not in stored:
        stale = f"{real}:"
        kept = {old: value for old, value in stored.items() if not old.startswith(stale)}
        with contextlib.suppress(OSError, UserError):  # a read-only home costs a re-hash, nothing else
            write_json(cache_file(), {**kept, key: found})
    return found


def _read_cache() -> dict[str, str]:
    try:
        value = json.loads(cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def files_of(path: str | Path) -> list[Path]:
    """The file itself, or every file of a folder in order; hidden and temporary ones are left out."""
    path = Path(path)
    if not path.is_dir():
        return [path] if path.is_file() else []
    inside = (file for file in path.rglob("*") if file.is_file())
    return sorted(f for f in inside if not any(part.startswith(".") for part in f.relative_to(path).parts))


def content_hashes(paths: list[Path], root: Path) -> dict[str, str]:
    """File (relative to ``root``) -> content hash, for files and everything in folders."""
    return {os.path.relpath(file, root): content_hash(file) for path in paths for file in files_of(path)}


def hash_content(path: str | Path) -> str:
    """One hash of a file, or of names and contents of a folder."""
    path = Path(path)
    return content_hash(path) if path.is_file() else hash_json(content_hashes([path], path))
