"""Load rows from files, hub-layout folders or the hub, in the field's usual shapes.

A loaded row keeps its own columns untouched and has two more: ``id`` (its own, or a content hash plus an
occurrence number) and ``messages`` (the conversation). ``id`` is what every later file joins on.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guardrail.core.errors import UserError, unknown
from guardrail.core.files import HASH_CHARS, hash_json
from guardrail.data.prompts import template_module

Row = dict[str, Any]
FILE_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".csv", ".parquet")
PROMPT_COLUMNS = ("prompt", "instruction", "question", "goal", "query", "text", "Goal", "Prompt", "Instruction")
ID_COLUMNS = ("id", "question_id", "prompt_id")
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


def load_rows(
    source: str | Path,
    split: str | None = None,
    name: str | None = None,
    limit: int | None = None,
    need_answer: bool = False,
    revision: str | None = None,
) -> list[Row]:
    """Rows of a file, of one split of a hub-layout folder, or of a hub data set (configuration ``name``).

    Args:
        source: a json/jsonl(.gz)/csv/parquet file, a folder, or a hub name.
        split: needed for folders and hub names with more than one split.
        limit: keep the first ``limit`` rows.
        need_answer: refuse rows whose conversation does not end with an assistant message.

    Raises ``UserError``: missing file, unknown split (with the near match), malformed row (with its line or row
    number), empty data set, duplicate ``id``.
    """
    path = Path(source)
    if path.is_file():
        raw = _read_file(path)
        where = str(path)
    elif path.is_dir():
        file, where = _split_files(path, split, name)
        raw = [item for one in file for item in _read_file(one)]
    else:
        raw = _read_hub(str(source), split, name, revision)
        where = f"{source}:{split}"
    if not raw:
        raise UserError(f"{where} holds no rows; expected at least one")
    return normalise_rows([row for _, row in raw[:limit]], where, [place for place, _ in raw[:limit]], need_answer)


def normalise_rows(
    raw: list[Row], where: str = "rows", places: list[str] | None = None, need_answer: bool = False
) -> list[Row]:
    """Give every raw row its ``id`` and ``messages``; see ``load_rows`` for what is refused."""
    out: list[Row] = []
    seen: Counter[str] = Counter()
    for position, row in enumerate(raw):
        place = f"{where}, {places[position] if places else f'row {position + 1}'}"
        if not isinstance(row, dict):
            raise UserError(f"{place}: expected an object with named columns, got {type(row).__name__}")
        messages = conversation(row, place)
        if need_answer and messages[-1]["role"] != "assistant":
            raise UserError(f"{place}: the conversation has no answer; expected a last message of role assistant")
        own_id = next((row[c] for c in ID_COLUMNS if row.get(c) not in (None, "")), None)
        if own_id is not None:
            row_id = str(own_id)
            if seen[row_id]:
                raise UserError(f"{place}: id {row_id!r} occurs twice; ids must be unique (or absent)")
            seen[row_id] += 1
        else:
            content = hash_json(messages)[:HASH_CHARS]
            row_id = f"{content}-{seen[content]}"
            seen[content] += 1
        out.append({**row, "id": row_id, "messages": messages})
    return out


def conversation(row: Row, place: str = "row") -> list[dict[str, str]]:
    """The row's conversation, whatever its shape. Rows with only a prompt give one user message."""
    template = template_module()
    try:
        if row.get("messages") is None and row.get("conversations") is not None:  # ShareGPT
            messages = [
                {
                    "role": ROLES[turn.get("from", turn.get("role"))],
                    "content": str(turn.get("value", turn.get("content"))),
                }
                for turn in row["conversations"]
            ]
        elif row.get("messages") is None and row.get("turns") is not None:  # MT-Bench: the first turn
            messages = [{"role": "user", "content": str(row["turns"][0])}]
        else:
            try:
                messages = template.format_any(row)
            except KeyError as error:
                column = next((c for c in PROMPT_COLUMNS if row.get(c) not in (None, "")), None)
                if column is None:
                    raise UserError(
                        f"{place}: {error.args[0]}, or a prompt in {'/'.join(PROMPT_COLUMNS[:4])}"
                    ) from error
                messages = [{"role": "user", "content": str(row[column])}]
        template.check_alternation([m for m in messages if m["role"] != "system"])
    except (TypeError, KeyError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"{place}: malformed conversation: {error}") from error
    return messages


def response(row: Row) -> str:
    """The last assistant message; empty when there is none."""
    last = row["messages"][-1]
    return last["content"] if last["role"] == "assistant" else ""


def hash_rows(rows: list[Row]) -> str:
    """A 16-character hash of ids and conversations in order: the data hash of every record."""
    return hash_json([[row["id"], row["messages"]] for row in rows])


def list_splits(folder: str | Path, name: str | None = None) -> dict[str, list[Path]]:
    """Split name -> its files, in a hub-layout folder (``data/<split>-0000i-of-0000n.parquet``) or a plain one."""
    folder = Path(folder)
    roots = [folder / name / "data", folder / name, folder / "data" / name] if name else [folder / "data", folder]
    out: dict[str, list[Path]] = {}
    for root in roots:
        if not root.is_dir():
            continue
        for file in sorted(root.iterdir()):
            if file.name.startswith(".") or not file.name.endswith(FILE_SUFFIXES):
                continue
            stem = file.name[
                : -len(next(s for s in sorted(FILE_SUFFIXES, key=len, reverse=True) if file.name.endswith(s)))
            ]
            out.setdefault(re.sub(r"-\d{5}-of-\d{5}(-[0-9a-f]{16})?$", "", stem), []).append(file)
        if out:  # with a data/ folder, files beside it (a manifest, say) are no splits
            break
    return out


def _split_files(folder: Path, split: str | None, name: str | None) -> tuple[list[Path], str]:
    splits = list_splits(folder, name)
    if not splits:
        raise UserError(f"no data files in {folder}; expected data/<split>-00000-of-00001.parquet or <split>.jsonl")
    if split is None:
        if len(splits) > 1:
            raise UserError(f"{folder} has several splits; name one of: {', '.join(sorted(splits))}")
        split = next(iter(splits))
    if split not in splits:
        raise unknown(f"split of {folder}:", split, sorted(splits))
    files = splits[split]
    expected = re.search(r"-of-(\d{5})(-[0-9a-f]{16})?\.", files[0].name)
    if expected and int(expected.group(1)) != len(files):
        raise UserError(
            f"{folder} split {split} is incomplete: {len(files)} of {int(expected.group(1))} shards present"
        )
    return files, f"{folder}:{split}"


def _read_file(path: Path) -> list[tuple[str, Row]]:
    name = path.name
    try:
        if name.endswith(".parquet"):
            return list(_read_parquet(path))
        if name.endswith(".csv"):
            with open(path, newline="", encoding="utf-8-sig") as handle:
                return [(f"line {i + 2}", dict(row)) for i, row in enumerate(csv.DictReader(handle))]
        if not name.endswith(FILE_SUFFIXES):
            raise UserError(f"cannot tell the format of {path}; expected one of {', '.join(FILE_SUFFIXES)}")
        opener = gzip.open if name.endswith(".gz") else open
        with opener(path, "rt", encoding="utf-8") as handle:
            text = handle.read()
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    return list(_parse_json(text, path))


def _parse_json(text: str, path: Path) -> Iterator[tuple[str, Row]]:
    """A JSON array, an object holding one, or one object per line: the content decides, not the suffix."""
    start = text.lstrip()[:1]
    if start == "[" or (start == "{" and ".jsonl" not in path.name and "\n{" not in text.strip()):
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {error.lineno}: not valid JSON: {error.msg}") from error
        if isinstance(value, dict):
            value = next((v for v in value.values() if isinstance(v, list)), [value])
        yield from ((f"row {i + 1}", row) for i, row in enumerate(value))
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number}: not valid JSON: {error.msg}") from error


def _read_parquet(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    return ((f"row {i + 1}", row) for i, row in enumerate(table.to_pylist()))


def _read_hub(source: str, split: str | None, name: str | None, revision: str | None) -> list[tuple[str, Row]]:
    looks_local = source.startswith((".", "/", "~")) or source.endswith(FILE_SUFFIXES) or source.count("/") != 1
    if looks_local:
        raise UserError(f"no such file or folder: {source}; expected a data file, a data-set folder or a hub name")
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        raise UserError(f"no such file or folder: {source}, and the hub is off (HF_HUB_OFFLINE=1); give a local copy")
    from datasets import load_dataset  # the library; imported late, it takes a second

    try:
        data = load_dataset(source, name=name, split=split, revision=revision)
    except Exception as error:  # the hub client raises a dozen types; the reason is what the user needs
        raise UserError(
            f"cannot load {source!r} (no local file or folder of that name; hub: {type(error).__name__}: "
            f"{str(error)[:200]}); check the name, log in for gated data, or give a local copy"
        ) from error
    if not hasattr(data, "column_names") or isinstance(data, dict):
        raise UserError(f"{source} has several splits; name one of: {', '.join(sorted(data))}")
    return [(f"row {i + 1}", row) for i, row in enumerate(data.to_list())]
