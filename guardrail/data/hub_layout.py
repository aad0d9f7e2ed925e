"""Data-set folders in the hub's own layout: ``data/<split>-00000-of-00001.parquet``, a README.md card, manifests.

``load_dataset(folder, split=...)`` of the datasets library reads them, locally and after ``push_to_hub``. Every split
has ``manifests/<split>.json``, written after its parquet file: a split without one is not complete. Writers of one
folder take turns on a lock, so that stages may run side by side.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from guardrail.core.cli import log
from guardrail.core.errors import UserError
from guardrail.core.files import atomic_path, clear_leftovers, hash_file, read_json, write_json, write_text
from guardrail.data.rows import Row

COLUMNS = ("id", "messages", "source", "category", "extra")
MANIFESTS = "manifests"


def parquet_path(folder: Path, split: str) -> Path:
    return folder / "data" / f"{split}-00000-of-00001.parquet"


def manifest_path(folder: Path, split: str) -> Path:
    return folder / MANIFESTS / f"{split}.json"


def finished_split(folder: Path, split: str, fingerprint: str) -> dict[str, Any] | None:
    """The split's manifest if it was made from the same inputs and options and its file is still the one written."""
    manifest, data = manifest_path(folder, split), parquet_path(folder, split)
    if not manifest.is_file() or not data.is_file():
        return None
    value = read_json(manifest)
    same = value.get("run", {}).get("fingerprint") == fingerprint and value.get("sha") == hash_file(data)
    return value if same else None


def plain_row(row: Row, source: str) -> Row:
    """The fixed columns; everything else the row carries goes into ``extra`` as JSON text."""
    known = {"id", "messages", "source", "category", "extra"}
    others = {key: value for key, value in row.items() if key not in known and value is not None}
    if isinstance(row.get("extra"), str) and row["extra"]:  # a row of an earlier folder: keep what it carries
        with contextlib.suppress(ValueError, TypeError):  # a column of that name which is none of ours
            others = {**json.loads(row["extra"]), **others}
    category = row.get("category")
    return {
        "id": row["id"],
        "messages": [{"role": m["role"], "content": m["content"]} for m in row["messages"]],
        "source": str(row.get("source") or source),
        "category": None if category is None else category if isinstance(category, str) else json.dumps(category),
        "extra": json.dumps(others, ensure_ascii=False, sort_keys=True, default=str) if others else None,
    }


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """One writer at a time; the lock is the kernel's and ends with the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another output folder") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"waiting for another process that writes into {folder}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def mixed_table(rows: Iterable[Row]) -> Any:
    """``plain_row``s as an Arrow table with the fixed columns: every split of a folder of mixtures looks alike."""
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    types = [(name, pa.list_(message) if name == "messages" else pa.string()) for name in COLUMNS]
    return pa.Table.from_pylist(list(rows), schema=pa.schema(types))


def own_table(rows: list[Row]) -> Any:
    """Rows of one source as an Arrow table with ``id``, ``messages`` and their own columns.

    A column whose values have no common type is kept as JSON text.
    """
    import pyarrow as pa

    names = list(dict.fromkeys(["id", "messages", *(name for row in rows for name in row)]))
    columns = []
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            column = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            column = None
        if column is None or _holds_empty_struct(column.type):
            column = pa.array([None if v is None else json.dumps(v, ensure_ascii=False) for v in values])
        columns.append(column)
    return pa.table(columns, names=names)


def keep_sources(folder: Path, split: str, sources: Mapping[str, tuple[str | None, str | None]]) -> None:
    """Refuse to write ``split`` over what is read, or a card over a README.md that is somebody else's.

    ``sources`` maps a flag to its path (or hub name) and the split that is read from it. Raises ``UserError``.
    """
    written = parquet_path(folder, split)
    for flag, (given, read) in sources.items():
        path = Path(given or "").expanduser()
        if given and path.exists() and folder.exists():
            itself = written.exists() and (path.samefile(written) or (path.samefile(folder) and read is None))
            if itself or (path.samefile(folder) and read == split):
                raise UserError(
                    f"--out {folder} would overwrite split {split} of --{flag} {given}, which is read; "
                    "give another --out or another split"
                )
    if (folder / "README.md").is_file() and not (folder / MANIFESTS).is_dir():
        raise UserError(f"--out {folder} has a README.md that is not this program's; give another --out")


def _holds_empty_struct(kind: Any) -> bool:
    """Parquet has no type for an object without keys, at any depth."""
    inside = [kind.field(i).type for i in range(kind.num_fields)]
    return (not inside and str(kind) == "struct<>") or any(map(_holds_empty_struct, inside))


def write_split(folder: Path, split: str, table: Any, manifest: dict[str, Any]) -> Path:
    """Write one split, its manifest and the folder's card; returns the parquet file."""
    import pyarrow.parquet as pq

    data = parquet_path(folder, split)
    with folder_lock(folder):
        for place in (folder, folder / "data", folder / MANIFESTS):  # of a writer that was killed: the lock was its own
            clear_leftovers(place)
        manifest_path(folder, split).unlink(missing_ok=True)
        with atomic_path(data) as temporary:
            pq.write_table(table, temporary)
        columns = table.column_names
        write_json(
            manifest_path(folder, split), {"split": split, "sha": hash_file(data), "columns": columns, **manifest}
        )
        write_text(folder / "README.md", card(folder))
    return data


def card(folder: Path) -> str:
    """The card: where each split's file is, for the hub, and a table of what each split is, for people."""
    manifests = [read_json(file) for file in sorted((folder / MANIFESTS).glob("*.json"))]
    lines = ["---", "configs:", "- config_name: default", "  data_files:"]
    for manifest in manifests:
        split = manifest["split"]
        lines += [f"  - split: {split}", f"    path: data/{split}-00000-of-00001.parquet"]
    lines += ["---", "", f"# {folder.name}", ""]
    columns = dict.fromkeys(name for manifest in manifests for name in manifest.get("columns", COLUMNS))
    lines += [f"Columns: {', '.join(f'`{name}`' for name in columns)}. `messages` is the conversation.", ""]
    lines += ["| split | rows | what | licence | revision | sha-256 (16) |", "| --- | --- | --- | --- | --- | --- |"]
    for manifest in manifests:
        cells = (manifest.get(key) or "-" for key in ("split", "n_rows", "what", "licence", "revision", "sha"))
        lines.append("| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in cells) + " |")
    for manifest in manifests:
        notes = manifest.get("notes") or []
        if notes:
            lines += ["", f"## {manifest['split']}", "", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"
