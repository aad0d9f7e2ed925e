"""Load rows from files, hub-layout folders or the hub, in the field's usual shapes.

A loaded row keeps its own columns untouched and has two more: ``id`` (its own, or a content hash plus an
occurrence number) and ``messages`` (the conversation). ``id`` is what every later file joins on. In a column ``id``
every value is one row's; a ``prompt_id`` or ``question_id`` names a prompt, and published sets repeat it (UltraChat):
its second row is called ``<prompt_id>#2``.
"""

from __future__ import annotations

import datetime
import decimal
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

from guardrail.core.errors import UserError, unknown
from guardrail.core.files import HASH_CHARS, hash_json
from guardrail.core.hub import hub_error, is_cached_dataset, is_offline, study_commit
from guardrail.data.cards import card_splits
from guardrail.data.parsing import FILE_SUFFIXES, is_sentence, read_file
from guardrail.data.prompts import template_module

Row = dict[str, Any]
PROMPT_COLUMNS = (
    *("prompt", "instruction", "question", "goal", "query", "text", "Goal", "Prompt", "Instruction"),
    *("Behavior", "forbidden_prompt"),  # HarmBench; StrongREJECT
)
ID_COLUMNS = ("id", "question_id", "prompt_id")
MAX_DROPPED_FRACTION = 0.01
LOCAL_COPY = "give a local copy"  # the way without the hub
DROPPED_HELP = "rows without an answer are left out and counted, up to this share of all; more of them are an error"
COMMIT = re.compile("[0-9a-f]{40}")
FLAGS = {"true": True, "1": True, "false": False, "0": False}
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


def load_rows(
    source: str | Path,
    split: str | None = None,
    name: str | None = None,
    limit: int | None = None,
    need_answer: bool = False,
    revision: str | None = None,
    max_dropped_fraction: float | None = None,
    dropped: list[str] | None = None,
) -> list[Row]:
    """Rows of a file, of one split of a hub-layout folder, or of a hub data set (configuration ``name``).

    Args:
        source: a json/jsonl(.gz)/csv/parquet file, a folder, or a hub name.
        split: needed for folders and hub names with more than one split.
        limit: keep the first ``limit`` rows.
        need_answer: refuse rows whose conversation does not end with an assistant message.
        max_dropped_fraction: leave such rows (and rows whose answer is blank) out instead, up to this share of them.
        dropped: gets the ids of the rows that were left out (or their places, where they have none).

    Raises ``UserError``: missing file, unknown split (with the near match), malformed row (with its line or row
    number), empty data set, duplicate ``id``.
    """
    path = Path(source)
    if path.is_file():
        raw = read_file(path)
        where = str(path)
    elif path.is_dir():
        file, where = _split_files(path, split, name)
        raw = [item for one in file for item in read_file(one)]
    else:
        raw = _read_hub(str(source), split, name, revision)
        where = f"{source}:{split}"
    if not raw:
        raise UserError(f"{where} holds no rows; expected at least one")
    places = [place for place, _ in raw[:limit]]
    return normalise_rows([row for _, row in raw[:limit]], where, places, need_answer, max_dropped_fraction, dropped)


def normalise_rows(
    raw: list[Row],
    where: str = "rows",
    places: list[str] | None = None,
    need_answer: bool = False,
    max_dropped_fraction: float | None = None,
    dropped: list[str] | None = None,
) -> list[Row]:
    """Give every raw row its ``id`` and ``messages``; see ``load_rows`` for what is refused or left out."""
    out: list[Row] = []
    seen: Counter[str] = Counter()
    names = {str(_own_id(row)[1]) for row in raw if isinstance(row, dict)}
    gone: list[tuple[str, str]] = []  # place and id of the rows that are left out
    for position, row in enumerate(raw):
        number = places[position] if places else f"row {position + 1}"
        place = f"{where}, {number}"
        if not isinstance(row, dict):
            raise UserError(f"{place}: expected an object with named columns, got {type(row).__name__}")
        messages = None if max_dropped_fraction is not None and lacks_text(row) else conversation(row, place)
        row = {name: plain_value(value, name, place) for name, value in row.items() if name != "messages"}
        column, own_id = _own_id(row)
        if isinstance(own_id, list | dict | bool):
            raise UserError(f"{place}: its id is {shown(own_id)}; expected a text or a number")
        if own_id is not None:
            row_id = str(own_id)
            if seen[row_id] and column == "id":
                raise UserError(f"{place}: id {row_id!r} occurs twice; ids must be unique (or absent)")
            seen[row_id] += 1
            if seen[row_id] > 1:
                row_id = f"{row_id}#{seen[row_id]}"
                if row_id in names:
                    raise UserError(f"{place}: {column} {own_id!r} occurs again, and {row_id!r} is another row's id")
        elif messages is not None:
            content = hash_json(messages)[:HASH_CHARS]
            row_id = f"{content}-{seen[content]}"
            seen[content] += 1
        if need_answer and (messages is None or not is_answered(messages, max_dropped_fraction is not None)):
            gone.append((place, number if own_id is None and messages is None else row_id))
            if max_dropped_fraction is None:
                raise UserError(_too_many(gone, len(raw), False))
        elif messages is None:
            raise UserError(f"{place}: a column of its shape holds nothing; expected a text")
        else:
            out.append({**row, "id": row_id, "messages": messages})
    if gone and (not out or len(gone) > (max_dropped_fraction or 0.0) * len(raw)):
        raise UserError(_too_many(gone, len(raw), max_dropped_fraction is not None and bool(out)))
    if dropped is not None:
        dropped += [row_id for _, row_id in gone]
    return out


def _own_id(row: Row) -> tuple[str | None, Any]:
    """The column that names the row, and its value there; two times None where there is none."""
    column = next((c for c in ID_COLUMNS if row.get(c) not in (None, "")), None)
    value = row[column] if column else None
    return column, value


def is_answered(messages: list[dict[str, str]], not_blank: bool = True) -> bool:
    """Does the conversation end with an answer, and with one that is more than white space?"""
    return messages[-1]["role"] == "assistant" and not (not_blank and not messages[-1]["content"].strip())


def lacks_text(row: Row) -> bool:
    """Is a column of the row's shape there and null (or a dialogue blank), as in one row of SAMSum?"""
    if row.get("conversations") is not None or row.get("turns") is not None:
        return False
    shapes = [columns for columns, _ in template_module().SHAPES if set(columns) <= row.keys()]
    known = any(all(row[column] is not None for column in columns) for columns in shapes)
    dialogue = row.get("dialogue") if "summary" in row else None
    return (bool(shapes) and not known) or (isinstance(dialogue, str) and not dialogue.strip())


def _without_nulls(row: Row) -> Row | None:
    """The row with empty text for null in a column of its shape, as a CSV of the same set has it; None where no shape
    has a text at all. (SAMSum's row without a dialogue is null from the hub.)"""
    for columns, _ in template_module().SHAPES:
        if set(columns) <= row.keys() and any(isinstance(row[column], str) for column in columns):
            return {**row, **{column: "" for column in columns if row[column] is None}}
    return None


def _too_many(gone: list[tuple[str, str]], n_rows: int, may_drop: bool) -> str:
    text = f"{gone[0][0]}: the conversation has no answer; expected a last message of role assistant"
    if not may_drop:
        return text
    share = math.ceil(1000 * len(gone) / n_rows) / 1000
    which = f"{len(gone)} of {n_rows} rows have none"
    return f"{text} ({which}; complete them, or leave them out with --max_dropped_fraction {share:g})"


def plain_value(value: Any, name: str, place: str) -> Any:
    """A column's value as JSON can hold it: dates and decimals as text. Raises ``UserError`` for bytes and infinity."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, list | tuple):
        return [plain_value(one, name, place) for one in value]
    if isinstance(value, dict):
        return {str(key): plain_value(one, name, place) for key, one in value.items()}
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta | decimal.Decimal):
        return str(value)
    raise UserError(f"{place}: column {name!r} holds {shown(value)}; expected text, numbers, lists or objects")


def flag(row: Row, column: str) -> bool:
    """The yes or no in ``column``: a boolean, 0 or 1, or one of these as text. ``ValueError`` for anything else: as
    Python truth, the text "False" would be a yes."""
    value = row.get(column)
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip().lower()
    if text not in FLAGS:
        what = "is missing" if value is None else f"is {shown(value)}"
        raise ValueError(f"{column} {what}; expected True or False")
    return FLAGS[text]


def shown(value: Any) -> str:
    """A value for a message: its type and its first characters."""
    return f"{type(value).__name__} {str(value)[:40]!r}"


def conversation(row: Row, place: str = "row") -> list[dict[str, str]]:
    """The row's conversation, whatever its shape. Rows with only a prompt give one user message."""
    template = template_module()
    try:
        if row.get("messages") is None and row.get("conversations") is not None:  # ShareGPT
            turns = [
                (turn.get("from", turn.get("role")), turn.get("value", turn.get("content")))
                for turn in template.turns_of(row, "conversations")
            ]
            strange = next((role for role, _ in turns if role not in ROLES), None)
            if strange is not None:
                raise ValueError(f"unknown speaker {strange!r}; expected one of {', '.join(ROLES)}")
            messages = [{"role": ROLES[role], "content": template.plain_text(text)} for role, text in turns]
        elif row.get("messages") is None and row.get("turns") is not None:  # MT-Bench: the first turn
            messages = [{"role": "user", "content": template.plain_text(template.turns_of(row, "turns")[0])}]
        else:
            try:
                messages = template.format_any(row)
            except KeyError as error:
                column = next((c for c in PROMPT_COLUMNS if row.get(c) not in (None, "")), None)
                blank = _without_nulls(row) if column is None else None
                if blank is not None:
                    messages = template.format_any(blank)
                elif column is None:
                    raise UserError(
                        f"{place}: {error.args[0]}, or a prompt in {'/'.join(PROMPT_COLUMNS[:4])}"
                    ) from error
                else:
                    text = template.plain_text(row[column])
                    context = template.plain_text(row.get("ContextString")) if column == "Behavior" else ""
                    # HarmBench's contextual behaviours, put together as its own baselines do
                    messages = [{"role": "user", "content": f"{context}\n\n---\n\n{text}" if context else text}]
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
    """Split name -> its files: as the folder's card says (a copy of a hub data set), or by the files' names in a
    hub-layout folder (``data/<split>-0000i-of-0000n.parquet``) or a plain one."""
    folder = Path(folder)
    told = card_splits(folder, name)
    if told:
        return told
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


def _read_hub(source: str, split: str | None, name: str | None, revision: str | None) -> list[tuple[str, Row]]:
    looks_local = source.startswith((".", "/", "~")) or source.endswith(FILE_SUFFIXES) or source.count("/") != 1
    if looks_local:
        raise UserError(f"no such file or folder: {source}; expected a data file, a data-set folder or a hub name")
    if is_offline() and not is_cached_dataset(source):
        raise UserError(f"no such file or folder: {source}, and the hub is off (HF_HUB_OFFLINE=1); {LOCAL_COPY}")
    # the library, not this project's folder, which is all that a type checker sees; it takes a second to import
    from datasets import load_dataset  # type: ignore[attr-defined]

    revision = revision or study_commit("dataset", source)
    try:
        data = load_dataset(source, name=name, split=split, revision=revision)
    except Exception as error:  # the hub client raises a dozen types; the reason is what the user needs
        raise hub_error(error, "dataset", source, LOCAL_COPY, revision) from error
    if isinstance(data, dict) and len(data) == 1:
        (data,) = data.values()
    if not hasattr(data, "column_names") or isinstance(data, dict):
        raise UserError(f"{source} has several splits; name one of: {', '.join(sorted(data))}")
    found = _commit_read(data)
    if (
        revision and found and COMMIT.fullmatch(revision) and found != revision
    ):  # an older copy, when the hub breaks off
        raise UserError(
            f"{source}: the hub did not give commit {revision[:12]}, the cache has {found[:12]}; try again later"
        )
    sentence = next((column for column in data.column_names if is_sentence(column)), None)
    if sentence is not None:
        raise UserError(
            f"{source}: its CSV files have no header, so a row became the columns' name ({sentence[:40]!r}); run "
            f"`hf download --repo-type dataset {source} --local-dir COPY` and give a file of COPY"
        )
    return [(f"row {i + 1}", row) for i, row in enumerate(data.to_list())]


def _commit_read(data: Any) -> str | None:
    """The commit that the datasets library has read: its cache has a folder per commit."""
    folders = (Path(str(file.get("filename"))).parent.name for file in getattr(data, "cache_files", None) or [])
    return next((name for name in folders if COMMIT.fullmatch(name)), None)
