"""A customer's file, line by line: the bytes of every row as they are, and the conversation in them.

Lines of .jsonl (also .gz, .xz) stream: one is in memory at a time, and its bytes are what is written again. Rows of
other formats (.json, .csv, .parquet, a data-set folder as PATH::SPLIT) have no lines: each becomes one line of JSON.
Blank lines are no rows. Known limit: .json and .csv are read whole.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from guardrail.core.errors import UserError
from guardrail.core.files import parse_json
from guardrail.data.loss_mask import mask_of
from guardrail.data.parsing import FILE_SUFFIXES, read_file
from guardrail.data.rows import ID_COLUMNS, Row, is_answered, list_splits, normalise_rows, plain_value

LINE_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.xz")
# Why a row cannot be trained on as it is; the codes of the rule ``format``.
FORMAT_CODES = ("", "not_utf8", "not_json", "unknown_shape", "no_answer", "bad_loss_mask", "repeated_id")
FORMAT_WORDS = {
    "not_utf8": "the line is not UTF-8 text",
    "not_json": "the line is not one JSON object",
    "unknown_shape": "no conversation can be read from its columns",
    "no_answer": "the conversation does not end with an answer, or with a blank one",
    "bad_loss_mask": "its loss_mask does not fit its answer",
    "repeated_id": "its id is an earlier row's",
}


@dataclass(frozen=True)
class Line:
    """One row: its place (from 1, blank lines counted), its bytes without the line end, the line end."""

    number: int
    content: bytes
    end: bytes = b"\n"

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.content).hexdigest()[:16]


def files_of(source: str) -> list[Path]:
    """The files of ``PATH`` or ``PATH::SPLIT``. Raises ``UserError``."""
    path, _, split = source.partition("::")
    place = Path(path).expanduser()
    if place.is_dir():
        splits = list_splits(place)
        if split not in splits:
            expected = f"PATH::SPLIT with one of {', '.join(sorted(splits))}" if splits else "a folder with data files"
            raise UserError(f"{source}: expected {expected}")
        return splits[split]
    if not place.is_file():
        raise UserError(f"no such file: {path}; expected the customer's rows, such as customer.jsonl")
    if not place.name.endswith(FILE_SUFFIXES):
        raise UserError(f"cannot tell the format of {place}; expected one of {', '.join(FILE_SUFFIXES)}")
    return [place]


def read_lines(source: str) -> Iterator[Line]:
    """The rows of ``source`` in order."""
    number = 0
    for file in files_of(source):
        if file.name.endswith(LINE_SUFFIXES):
            yield from _stream(file)
            continue
        rows = _parquet_rows(file) if file.suffix == ".parquet" else (row for _, row in read_file(file))
        for row in rows:
            number += 1
            row = {name: plain_value(value, name, f"{file}, row {number}") for name, value in row.items()}
            yield Line(number, json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass"))


def _stream(file: Path) -> Iterator[Line]:
    try:
        with _open(file) as handle:
            for number, line in enumerate(handle, 1):
                content = line.rstrip(b"\r\n")
                if number == 1:
                    content = content.removeprefix(b"\xef\xbb\xbf")
                if content.strip():
                    yield Line(number, content, line[len(line.rstrip(b"\r\n")) :])
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"cannot read {file}: {type(error).__name__}; is it complete? copy it again") from error


def _open(file: Path) -> IO[bytes]:
    if file.name.endswith(".gz"):
        return gzip.open(file, "rb")  # type: ignore[return-value]
    return lzma.open(file, "rb") if file.name.endswith(".xz") else open(file, "rb")


def _parquet_rows(file: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(1024):
                for row in batch.to_pylist():
                    yield {name: None if value != value else value for name, value in row.items()}
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"cannot read {file}: {type(error).__name__}; is it complete? copy it again") from error


def hash_source(source: str) -> str:
    """SHA-256 of the source's bytes."""
    digest = hashlib.sha256()
    for file in files_of(source):
        with open(file, "rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class Parsed:
    """The row of a line, or the code of what is wrong with it; ``own_id`` is a hash of its own id, 0 without one."""

    row: Row | None
    code: str = ""
    own_id: int = 0


def parse(line: Line) -> Parsed:
    """The conversation in ``line``. Nothing is raised, and no text of the row is in what is returned as a code."""
    try:
        text = line.content.decode("utf-8")
    except UnicodeDecodeError:
        return Parsed(None, "not_utf8")
    try:
        value: Any = parse_json(text, "a row")
    except UserError:
        return Parsed(None, "not_json")
    if isinstance(value, list):
        value = {"messages": value}
    if not isinstance(value, dict):
        return Parsed(None, "not_json")
    own = next((value[name] for name in ID_COLUMNS if value.get(name) not in (None, "")), None)
    try:
        (row,) = normalise_rows([value], "a row")
    except UserError:
        return Parsed(None, "unknown_shape")
    own_id = 0
    if own is not None and value.get("id") not in (None, ""):  # only a column id has to be unique
        own_id = int.from_bytes(hashlib.sha256(str(own).encode("utf-8", "surrogatepass")).digest()[:8], "big") | 1
    row = {**row, "id": str(line.number)}
    if not is_answered(row["messages"]):
        return Parsed(None, "no_answer", own_id)
    with contextlib.suppress(UserError):
        mask_of(row)
        return Parsed(row, "", own_id)
    return Parsed(None, "bad_loss_mask", own_id)
