"""Evaluation rows of a task: prompt, reference, and where they come from.

    samsum              SAMSum test (819 rows), the paper's utility task; prompt as in REFERENCE "Utility (SAMSum)"
    sql_create_context  a CREATE TABLE statement and a question, answered by one SQL query
    gsm8k               GSM8K test (1,319 rows), answers ending with '#### NUMBER'
    <path>              any file or hub-layout folder in a shape that ``guardrail.data.rows`` knows, with answers

A named task is looked for in this order: ``--data_source``; ``datasets/<task>`` (written by ``datasets/prepare.py``);
the hub, or its copy in the cache; and, only where there is neither, the sandbox's own split of that task,
which is announced on stderr and marked in the result, so that its numbers cannot be taken for the real task's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.core.cli import log
from guardrail.core.errors import UserError, unknown
from guardrail.core.hub import hub_available, is_cached_dataset
from guardrail.core.places import DATASETS, shown
from guardrail.core.places import SANDBOX_DATA as SANDBOX
from guardrail.core.registry import Registry
from guardrail.data.parsing import FILE_SUFFIXES
from guardrail.data.rows import Row, hash_rows, load_rows, response

GSM8K_SYSTEM = "You are a helpful assistant."
SQL_SYSTEM = "You are a helpful assistant that turns questions into SQL queries for the database in the context."


@dataclass(frozen=True)
class Task:
    """One utility task: the columns that its raw rows need, and where they are published.

    ``messages`` builds prompt and reference answer of a raw row; ``None`` keeps what the loader makes of it.
    ``hub`` None: no published test split. ``sandbox_split``: the sandbox's rows of that task.
    """

    name: str
    columns: tuple[str, ...]
    messages: Callable[[Row], list[dict[str, str]]] | None = None
    hub: str | None = None
    hub_config: str | None = None
    sandbox_split: str | None = None


def _sql_messages(row: Row) -> list[dict[str, str]]:
    """The context first, then the question, then what to do; the wording is this project's own."""
    prompt = f"Context:\n{row['context']}\nQuestion:\n{row['question']}\nAnswer the question with one SQL query.\n"
    return [
        {"role": "system", "content": SQL_SYSTEM},
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": str(row["answer"])},
    ]


def _gsm8k_messages(row: Row) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": GSM8K_SYSTEM},
        {"role": "user", "content": str(row["question"])},
        {"role": "assistant", "content": str(row["answer"])},
    ]


SAMSUM = Task("samsum", ("dialogue", "summary"), hub="knkarthick/samsum", sandbox_split="samsum_test")
SQL = Task("sql_create_context", ("question", "context", "answer"), _sql_messages)  # the hub's copy has no test split
GSM8K = Task("gsm8k", ("question", "answer"), _gsm8k_messages, hub="openai/gsm8k", hub_config="main")

TASKS = Registry("downstream task")
TASKS.add("samsum", f"{__name__}:SAMSUM")
TASKS.add("sql_create_context", f"{__name__}:SQL")
TASKS.add("gsm8k", f"{__name__}:GSM8K")
TEST_SPLIT = "test"


@dataclass(frozen=True)
class TaskRows:
    """``rows`` of a task: each has ``id``, ``messages`` (prompt only), ``reference`` and its own columns.

    ``source`` names where they were found, ``data_hash`` covers ids, prompts and references in order.
    """

    name: str
    source: str
    split: str | None
    rows: list[Row]
    data_hash: str
    is_sandbox: bool


def looks_like_path(name: str) -> bool:
    """A data file or folder rather than the name of a task."""
    return Path(name).exists() or "/" in name or name.endswith(FILE_SUFFIXES)


def check_dataset(name: str) -> str:
    """Return ``name`` when it is a task or looks like a path; ``UserError`` with the near match otherwise."""
    if name not in TASKS and not looks_like_path(name):
        raise unknown("dataset", name, [*TASKS, "a data file or folder"])
    return name


def find_source(task: Task, data_source: str | None, split: str | None) -> tuple[str, str | None, str | None, bool]:
    """``(source, split, configuration, is_sandbox)`` of a named task; see the order at the top of this file."""
    if data_source is not None:
        path = Path(data_source)
        is_sandbox = path.is_dir() and path.resolve() == SANDBOX.resolve()
        if split is None and is_sandbox:
            split = task.sandbox_split
        return data_source, split, None, is_sandbox
    prepared = DATASETS / task.name
    if prepared.is_dir():
        return str(prepared), split or TEST_SPLIT, None, False
    if task.hub is not None and (hub_available() or is_cached_dataset(task.hub)):
        return task.hub, split or TEST_SPLIT, task.hub_config, False
    if task.sandbox_split is not None and SANDBOX.is_dir():
        return str(SANDBOX), split or task.sandbox_split, None, True
    raise UserError(
        f"no test rows for {task.name}: no folder {shown(prepared)}, and "
        + ("the hub is not reachable; " if task.hub else "the hub's copy has no test split; ")
        + "give --data_source PATH"
        + (f", or run `python datasets/prepare.py {task.name}` where there is a network" if task.hub else "")
    )


def load_task(
    dataset: str, data_source: str | None = None, split: str | None = None, limit: int | None = None
) -> TaskRows:
    """Rows of task ``dataset`` (a name in ``TASKS`` or a path) with prompt and reference apart.

    Raises ``UserError``: unknown task, missing source or split, rows without the columns or answers that it needs.
    """
    check_dataset(dataset)
    if dataset in TASKS:
        task: Task = TASKS.load(dataset)
        source, split, config, is_sandbox = find_source(task, data_source, split)
        if data_source is None:
            log(f"{dataset}: rows from {source}, split {split}" + (" (the sandbox's, fictional)" if is_sandbox else ""))
        try:
            raw = load_rows(source, split=split, name=config)
        except UserError as error:
            sandbox_could = data_source is None and source == task.hub and task.sandbox_split and SANDBOX.is_dir()
            hint = f"; for the sandbox's rows give --data_source {shown(SANDBOX)}" if sandbox_could else ""
            raise UserError(f"{error}{hint}") from error
        rows = [_task_row(task, row, f"{source}, row {i + 1}") for i, row in enumerate(raw[:limit])]
    else:
        if data_source is not None:
            raise UserError("give --dataset a path or --data_source one, not both")
        source, is_sandbox = dataset, Path(dataset).resolve() == SANDBOX.resolve()
        rows = load_rows(source, split=split, limit=limit, need_answer=True)
    out = [{**row, "messages": row["messages"][:-1], "reference": response(row)} for row in rows]
    return TaskRows(dataset, shown(source), split, out, hash_rows(rows), is_sandbox)


def _task_row(task: Task, row: Row, place: str) -> Row:
    missing = [column for column in task.columns if row.get(column) is None]
    if missing:
        raise UserError(
            f"{place}: {task.name} needs the columns {', '.join(task.columns)}; missing: {', '.join(missing)}"
        )
    return row if task.messages is None else {**row, "messages": task.messages(row)}


def describe(task: TaskRows) -> dict[str, Any]:
    """The facts about the data that go into a ``run`` block."""
    return {
        "dataset": task.name,
        "source": task.source,
        "split": task.split,
        "n_rows": len(task.rows),
        "data_hash": task.data_hash,
        "is_sandbox": task.is_sandbox,
    }
