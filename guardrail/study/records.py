"""Is a job done? Decided here and nowhere else: its record has the expected key and its files are those of the record.

`outputs/<study>/records/<job>/<product>.json` is written last: the key, everything in it, and the hash and state of
every file. A record with another key, or whose files were changed since, is stale: nothing reads its numbers, and the
job runs again. A failed attempt leaves `failed.json` beside it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.core.cli import log
from guardrail.core.content import content_hash, file_state, files_of
from guardrail.core.errors import UserError
from guardrail.core.files import read_json, write_json
from guardrail.core.provenance import git_state, library_versions
from guardrail.study.keys import Key, differences

FOLDER = "records"
FAILED = "failed.json"
LOCK = "lock"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt")


@dataclass(frozen=True)
class Product:
    """Files that one job makes and that have one key. ``files`` are files or folders, relative to the study."""

    name: str
    key: Key
    files: tuple[str, ...]


@dataclass(frozen=True)
class State:
    """``status``: done, stale, missing or failed; ``reason`` says why it is not done; ``log`` of a failed attempt.

    ``unanswered``: done, but a judge's server left answers without a judgement: they are asked again, nothing else is.
    ``absent``: done, but its weights were removed after use: a job that needs them makes them again.
    """

    status: str
    reason: str = ""
    log: str | None = None
    unanswered: bool = False
    absent: bool = False

    @property
    def done(self) -> bool:
        return self.status == "done"


def record_file(root: Path, job: str, product: str) -> Path:
    return root / FOLDER / job / f"{product}.json"


def product_state(root: Path, job: str, product: Product) -> State:
    """The state of one product; reads a file only when its size or times differ from the record's."""
    failed = _read(root / FOLDER / job / FAILED)
    if failed is not None and failed.get("keys", {}).get(product.name) == product.key.value:
        return State("failed", failed["reason"], failed["log"])
    record = _read(record_file(root, job, product.name))
    if record is None:
        return State("missing", "has not run")
    if not product.key.complete:
        return State("stale", "an input is not there yet")
    if record.get("key") != product.key.value:
        return State("stale", "; ".join(differences(record.get("parts", {}), product.key.parts)) or "another key")
    present = {os.path.relpath(file, root): file for name in product.files for file in files_of(root / name)}
    known: dict[str, Any] = record["files"]
    removed, absent = record.get("removed", []), False
    for name, fact in known.items():
        file = present.get(name)
        if name in removed:
            absent = absent or file is None or not _as_recorded(file, fact)
        elif file is None:
            return State("stale", f"{name} is gone")
        elif not _as_recorded(file, fact):
            return State("stale", f"{name} was changed")
    return State("done", unanswered=bool(record.get("unanswered")), absent=absent)


def _as_recorded(file: Path, fact: dict[str, Any]) -> bool:
    return file_state(file) == fact["state"] or content_hash(file) == fact["hash"]


def remove_weights(root: Path, job: str, product: Product) -> int:
    """Remove the weights of a product that is done, and keep in its record what they were; the bytes that are free now.

    The record says "removed" before the first file goes: killed in between, nothing looks unmade, and the next call
    removes the rest. Only files that the record names, as it knows them: a file that somebody put there stays.
    """
    path = record_file(root, job, product.name)
    record = read_json(path)
    weights = [name for name in record["files"] if Path(name).suffix in WEIGHT_SUFFIXES]
    there = [name for name in weights if (root / name).is_file() and _as_recorded(root / name, record["files"][name])]
    if not there:
        return 0
    if record.get("removed") != weights:
        write_json(path, {**record, "removed": weights})
    freed = 0
    for name in there:
        freed += (root / name).stat().st_size
        (root / name).unlink()
    return freed


@contextlib.contextmanager
def run_alone(root: Path, job: str) -> Iterator[None]:
    """Hold ``job`` while it runs, whatever node it runs on; waits for another process that holds it.

    On a cluster a job outlives the killed command that submitted it, and the next start submits it again. The lock is
    handed to the stage, so it is free when the job's processes are gone. A file system without locks across nodes is
    no error: then nobody is waited for.
    """
    path = root / FOLDER / job / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.set_inheritable(descriptor, True)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"{job} is still running from an earlier start; waiting for its end")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            log(f"{path} cannot be locked ({error.strerror}); do not start the study twice")
        yield
    finally:
        os.close(descriptor)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = read_json(path) if path.is_file() else None
    except UserError:
        return None
    return value if isinstance(value, dict) else None


def write_record(root: Path, job: str, product: Product, **facts: Any) -> None:
    """Record a finished product: key, contents of the key, hash and state of every file, and ``facts``."""
    files = [file for name in product.files for file in files_of(root / name)]
    for name in product.files:
        if not files_of(root / name):
            raise UserError(f"{job} ended without an error but left no {name}")
    content = {
        "job": job,
        "product": product.name,
        "key": product.key.value,
        "parts": product.key.parts,
        "files": {os.path.relpath(f, root): {"hash": content_hash(f), "state": file_state(f)} for f in files},
        **facts,
        "git": git_state(),
        "versions": library_versions(),
    }
    write_json(record_file(root, job, product.name), content)


def write_failure(root: Path, job: str, products: tuple[Product, ...], reason: str, log: str) -> None:
    """Record a failed attempt at exactly these keys."""
    keys = {product.name: product.key.value for product in products}
    write_json(root / FOLDER / job / FAILED, {"job": job, "keys": keys, "reason": reason, "log": log})


def failed_at(root: Path, job: str) -> float:
    """When the last attempt at ``job`` failed, in seconds since 1970; 0 when it did not."""
    try:
        return (root / FOLDER / job / FAILED).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def clear_failure(root: Path, job: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        (root / FOLDER / job / FAILED).unlink()


def clear_product(root: Path, job: str, product: Product) -> None:
    """Take away the record, then the files: in this order, so that no half-deleted result ever looks done."""
    with contextlib.suppress(FileNotFoundError):
        record_file(root, job, product.name).unlink()
    for name in product.files:
        path = root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
