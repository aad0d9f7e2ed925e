"""Raw rows of a data file with their places in it: json, jsonl (both also as .gz and .xz), csv, parquet."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guardrail.core.errors import UserError
from guardrail.core.files import json_lines, parse_json, read_text

FILE_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".jsonl.xz", ".csv", ".parquet")
MAX_FIELD_CHARS = 1 << 30


def read_file(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Every raw row of a file with its place in it. Raises ``UserError`` with the file and the line or row."""
    if path.name.endswith(".parquet"):
        return _read_parquet(path)
    if not path.name.endswith(FILE_SUFFIXES):
        raise UserError(f"cannot tell the format of {path}; expected one of {', '.join(FILE_SUFFIXES)}")
    text = read_text(path)
    return list(_parse_csv(text, path)) if path.name.endswith(".csv") else list(_parse_json(text, path))


def _parse_json(text: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """A JSON array, an object holding one, or one object per line: the content decides, not the suffix.

    A conversation without a key (the AOA set, shallow-vs-deep's answers) is a bare list of messages: an element of the
    array, or a line.
    """
    start = text.lstrip()[:1]
    if start == "[" and _is_conversation_line(text):
        start = ""
    if start == "[" or (start == "{" and ".jsonl" not in path.name and "\n{" not in text.strip()):
        value = parse_json(text, str(path))
        if isinstance(value, dict):
            value = next((v for v in value.values() if isinstance(v, list)), [value])
        yield from ((f"row {i + 1}", _with_key(row)) for i, row in enumerate(value))
        return
    for number, line in json_lines(text):
        yield f"line {number}", _with_key(parse_json(line, str(path), number))


def _is_conversation_line(text: str) -> bool:
    """Is the first line a whole list of messages?"""
    line = text.lstrip().split("\n", 1)[0].strip()
    if not (line.startswith("[") and line.endswith("]") and '"role"' in line):
        return False
    try:
        return _is_conversation(json.loads(line))
    except (ValueError, RecursionError):
        return False


def _is_conversation(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in value)
    )


def _with_key(row: Any) -> dict[str, Any]:
    """A bare list of messages as a row; anything else as it is."""
    return {"messages": row} if _is_conversation(row) else row


def _parse_csv(text: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a CSV file with a header; every row has as many fields as the header, every quote is closed.

    A file of one column whose first line is a sentence has no header: every line is a prompt (the harmful_behaviors.csv
    that goes round without AdvBench's header).
    """
    header: list[str] | None = None
    for number, fields in csv_lines(text, path):
        if header is None and is_sentence(fields[0]):
            if len(fields) > 1:
                raise UserError(
                    f"{path}, line {number}: the first line is no header but a row; expected names of columns: put a "
                    "line such as goal,target in front"
                )
            header = ["prompt"]
        elif header is None:
            header = fields
            twice = sorted(name for name, n in Counter(header).items() if n > 1)
            if twice:
                raise UserError(
                    f"{path}, line {number}: the header names {twice[0]!r} twice; expected one name a column"
                )
            continue
        if len(fields) != len(header):
            raise UserError(
                f"{path}, line {number}: {len(fields)} fields, expected the header's {len(header)} "
                "(a text with commas, quotes or line ends is put in quotes)"
            )
        yield f"line {number}", dict(zip(header, fields, strict=True))


def is_sentence(field: str) -> bool:
    """Three words or more: a prompt, no column's name."""
    return len(field.split()) > 2


def csv_lines(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """The number of the first line and the fields of every record that is not blank. Raises ``UserError``."""
    csv.field_size_limit(MAX_FIELD_CHARS)  # the module's own limit is 128 KiB
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    number = 1
    try:
        for fields in reader:
            if fields:
                yield number, fields
            number = reader.line_num + 1
    except csv.Error as error:
        reason = "a quote is opened and never closed" if "unexpected end" in str(error) else error
        raise UserError(
            f"{path}, line {number}: not valid CSV: {reason}; double a quote inside a quoted text"
        ) from error


def _read_parquet(path: Path) -> list[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:  # `read_table` imports pyarrow's data sets and pandas
            rows = file.read().to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; is it complete? copy or download it again") from error
    # pandas writes a missing number as NaN
    return [(f"row {i + 1}", {k: None if v != v else v for k, v in row.items()}) for i, row in enumerate(rows)]
