"""Files that are complete or absent: temporary name, fsync, rename. JSON, JSON lines and hashes.

A file that exists under its final name was written whole, also after ``kill -9``.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import lzma
import os
import re
import shutil
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from guardrail.core.errors import UserError

HASH_CHARS = 16
MAX_NESTING = 100
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` when the block ends without an error.

    Works for a file or a folder (the block creates either). An existing folder is replaced. Raises ``UserError``
    when the disk is full or the place cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{uuid.uuid4().hex[:6]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.is_dir():
            if path.is_dir():  # a rename onto a filled folder fails: move the old one aside first
                aside = path.with_name(f".{path.name}.old.tmp-{os.getpid()}-{uuid.uuid4().hex[:6]}")
                os.rename(path, aside)
                os.rename(temporary, path)
                shutil.rmtree(aside, ignore_errors=True)
            else:
                os.rename(temporary, path)
        else:
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, path)
    except UnicodeEncodeError as error:
        raise UserError(
            f"cannot write {path}: it would hold {error.object[error.start]!r}, half of a character or a byte that is "
            "no text; look for it in the rows and on the command line"
        ) from error
    except OSError as error:
        if error.errno in (28, 122):
            raise UserError(f"no disk space left for {path}: free some or choose another output folder") from error
        if error.errno in (13, 17, 20, 21, 30):
            raise UserError(f"cannot write {path}: {error.strerror}; choose an output path you can write") from error
        raise
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):  # it may never have been created
                temporary.unlink()


def clear_leftovers(folder: str | Path) -> list[Path]:
    """Delete what `atomic_path` left in ``folder`` when its process was killed; returns what was deleted.

    Only names of processes that no longer run on this machine: call it where no other machine writes.
    """
    found = [path for path in Path(folder).glob(".*.tmp-*") if _is_leftover(path)]
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return found


def _is_leftover(path: Path) -> bool:
    parts = re.fullmatch(r"\..+\.tmp-(\d+)-[0-9a-f]{6}", path.name)
    if not parts:
        return False
    try:
        os.kill(int(parts[1]), 0)  # signal 0: only asks whether there is such a process
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # somebody else's process, or no process number
        return False
    return False


def keep_inputs(flag: str, out: str | Path, inputs: Mapping[str, str | Path | None]) -> None:
    """Refuse an output folder that is, or holds, something that is read: it would be deleted or mixed with results.

    ``inputs`` maps a flag to its path; None and what does not exist here (a hub name) is left out. Paths are compared
    as files are, so that links, ``..`` and mounts hide nothing. Raises ``UserError``.
    """
    out = Path(out).expanduser()
    for name, given in inputs.items():
        path = None if given is None else Path(given).expanduser()
        if path is None or not path.exists():
            continue
        spellings = {Path(os.path.abspath(path)), path.resolve()}
        holders = {parent for spelling in spellings for parent in (spelling, *spelling.parents)}
        if os.path.abspath(out) in map(str, holders) or (
            out.exists() and any(os.path.samefile(parent, out) for parent in holders)
        ):
            raise UserError(
                f"--{flag} {out} is or holds --{name} {given}, which would be overwritten; give another --{flag}"
            )


def write_text(path: str | Path, text: str) -> Path:
    """Write ``text`` (UTF-8) atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | Path, value: Any, indent: int | None = 1) -> Path:
    """Write ``value`` as JSON; NaN and infinity are refused (``ValueError``): they are not JSON."""
    return write_text(path, json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write one JSON object per line."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as handle:
        for row in rows:
            handle.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    return Path(path)


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file (a byte-order mark is dropped), unpacked when its name ends with ``.gz`` or ``.xz``.

    Raises ``UserError``: absent, unreadable, not UTF-8, a cut archive, NUL bytes.
    """
    try:
        content = Path(path).read_bytes()
        if str(path).endswith(".gz"):
            content = gzip.decompress(content)
        elif str(path).endswith(".xz"):
            content = lzma.decompress(content)
        text = content.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"no such file: {path}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8 ({error.reason}); save the file as UTF-8 text") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"cannot read {path}: {error}; is it complete? copy or download it again") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{path}, line {line}: holds a NUL byte; expected text, is the file damaged?")
    return text


def read_json(path: str | Path) -> Any:
    """Read a JSON file; ``UserError`` names the file and line when it is missing or malformed (see `parse_json`)."""
    return parse_json(read_text(path), str(path))


def read_jsonl(path: str | Path) -> list[tuple[int, Any]]:
    """Line number and value of every line of a JSON-lines file that is not blank; errors as in `read_json`."""
    return [(number, parse_json(line, str(path), number)) for number, line in json_lines(read_text(path))]


def json_lines(text: str) -> Iterator[tuple[int, str]]:
    """Number and text of every line that is not blank. Only a line feed ends a line: ``str.splitlines`` would also cut
    at U+2028, U+2029 and U+0085, which JSON strings may hold."""
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def parse_json(text: str, where: str, line: int | None = None) -> Any:
    """``text`` as JSON; ``UserError`` names ``where`` and the line: no JSON, NaN or Infinity, nested too deeply, a lone
    surrogate (no text in any encoding)."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        if text.count("[") + text.count("{") > MAX_NESTING:
            _check_nesting(value)
        if SURROGATE.search(text):  # mostly halves of one character: the two together are well
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise UserError(f"{where}, line {line or error.lineno}: not valid JSON: {error.msg}") from error
    except UnicodeEncodeError as error:
        place = f", line {line}" if line else ""
        raise UserError(
            f"{where}{place}: holds a lone surrogate (\\u{ord(error.object[error.start]):x}), half of a character; "
            "write the whole character or leave it out"
        ) from error
    except (ValueError, RecursionError) as error:
        place = f", line {line}" if line else ""
        reason = f"nested more than {MAX_NESTING} deep" if isinstance(error, RecursionError) else error
        raise UserError(f"{where}{place}: not valid JSON: {reason}") from error
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value; write null, or leave the column out")


def _check_nesting(value: Any) -> None:
    level = [value]
    for _ in range(MAX_NESTING):
        level = [v for one in level if isinstance(one, list | dict) for v in _inside(one)]
        if not level:
            return
    raise RecursionError


def _inside(value: list[Any] | dict[str, Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def readable(text: str) -> str:
    """``text`` with lone surrogates replaced: no file, tokenizer or server takes those."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def hash_json(value: Any) -> str:
    """A stable 16-character hash of any JSON-able value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:HASH_CHARS]


def hash_bytes(data: bytes) -> str:
    """A 16-character hash, that of a file with this content."""
    return hashlib.sha256(data).hexdigest()[:HASH_CHARS]


def hash_file(path: str | Path) -> str:
    """A 16-character hash of a file's content, read in 4 MiB blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()[:HASH_CHARS]


def require_free_space(path: str | Path, needed_bytes: int) -> None:
    """Raise ``UserError`` unless the disk that will hold ``path`` has ``needed_bytes`` free."""
    folder = Path(path).absolute()
    while not folder.exists():
        folder = folder.parent
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise UserError(
            f"not enough disk space for {path}: about {needed_bytes / 2**30:.2f} GiB needed, "
            f"{free_bytes / 2**30:.2f} GiB free; free some or choose another output folder"
        )
