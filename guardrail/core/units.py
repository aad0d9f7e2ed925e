"""Resumable work in units: planned from the inputs alone, one complete file a unit, the rest done after a kill.

    units = Units(groups, folder, key, identity=lambda item: item.id)
    rows = units.run(work, desc="generate")        # on every rank: one row per item, group by group
    write_json(result, ...)                        # rank 0
    units.clear()                                  # only once the result is on disk

Groups of items are made from the items alone (not from ranks, devices or what is done), so a resumed run and a run on
another number of processes do the same units and give the same rows. Three stages work like this:

* generation: groups of similar length, rows are completions (`guardrail.generation.runner`);
* judges that ask a model: `consecutive` groups of answers. ``final`` says which rows stand: a row that holds a server's
  failure is kept and shown, but its item is asked again by the next run, so that no outage is final;
* extraction: its shards are the store itself and stay, so it shares the planning and not the files:
  ``share(pending(n_shards, lambda n: shard_file(n).is_file()))`` is what this rank has to do.

Work that finishes item by item, in any order (MT-Bench's judge), writes through ``write`` and reads with ``collect``.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from guardrail.core.cli import log
from guardrail.core.errors import UserError
from guardrail.core.files import hash_json, write_jsonl
from guardrail.core.progress import progress
from guardrail.core.ranks import barrier, broadcast, gather, is_main, shard

T = TypeVar("T")
Rows = list[dict[str, Any]]
FOLDER = ".units"


def consecutive(items: Sequence[T], size: int) -> list[list[T]]:
    """``items`` in groups of ``size``, in order; the last one may be smaller."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def pending(n: int, is_done: Callable[[int], bool]) -> list[int]:
    """The numbers below ``n`` that are not done, as rank 0 sees them: no rank looks while another one writes."""
    return broadcast([number for number in range(n) if not is_done(number)] if is_main() else None)


def share(numbers: Sequence[int]) -> list[int]:
    """This rank's part of ``numbers``: disjoint, and all of them over all ranks."""
    return shard(numbers)


class Units(Generic[T]):
    """The units of one piece of work and their files, ``<folder>/.units/<key>/<hash of the plan>/unit-<n>.jsonl``.

    Args:
        groups: the items of every unit, in the order of the result.
        folder: one that all ranks see; the result's own.
        key: what decides a row beside its item (model, options): files of another key are never read.
        identity: what is JSON-able about an item and decides its row; another plan has other files.
        final: False for a row that should be made again by the next run (a server's failure).

    Call its methods on every rank, inside ``guardrail.core.ranks.process_group``.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[T]],
        folder: str | Path,
        key: str,
        identity: Callable[[T], Any] = lambda item: None,
        final: Callable[[dict[str, Any]], bool] = lambda row: True,
    ) -> None:
        self.groups = [list(group) for group in groups]
        self.root = Path(folder) / FOLDER
        self.key = key
        self.folder = self.root / key / hash_json([[identity(item) for item in group] for group in self.groups])
        self.final = final

    def file(self, number: int) -> Path:
        return self.folder / f"unit-{number:06d}.jsonl"

    def read(self, number: int) -> Rows | None:
        """The rows of a unit; None when its file is absent, torn or of another length: then it is made again."""
        try:
            text = self.file(number).read_text(encoding="utf-8")
            rows = [json.loads(line) for line in text.split("\n") if line]
        except (OSError, ValueError):
            return None
        whole = len(rows) == len(self.groups[number]) and all(isinstance(row, dict) for row in rows)
        return rows if whole else None

    def write(self, number: int, rows: Rows) -> None:
        """Keep the rows of a unit; the file is complete or absent."""
        assert len(rows) == len(self.groups[number]), f"{len(self.groups[number])} items but {len(rows)} rows"
        write_jsonl(self.file(number), rows)

    def is_done(self, number: int) -> bool:
        rows = self.read(number)
        return rows is not None and all(self.final(row) for row in rows)

    def missing(self) -> list[int]:
        """The units to do, the same list on every rank."""
        return pending(len(self.groups), self.is_done)

    def run(self, work: Callable[[list[T]], Rows], desc: str, unit: str = "row") -> Rows:
        """Do what is missing with ``work`` (items -> one row each, in order); all rows on every rank.

        In a unit that lies there with rows that are not final, only those items are given to ``work``.
        """
        missing = self.missing()
        if len(missing) < len(self.groups):
            log(
                f"{desc}: {len(self.groups) - len(missing)} of {len(self.groups)} batches are there from an earlier run"
            )
        mine = share(missing)
        with progress(total=sum(len(self.groups[number]) for number in mine), desc=desc, unit=unit) as bar:
            for number in mine:
                kept = {i: row for i, row in enumerate(self.read(number) or ()) if self.final(row)}
                places = [i for i in range(len(self.groups[number])) if i not in kept]
                done = work([self.groups[number][i] for i in places])
                assert len(done) == len(places), f"{len(places)} items but {len(done)} rows"
                rows = kept | dict(zip(places, done, strict=True))
                self.write(number, [rows[i] for i in range(len(rows))])
                bar.update(len(rows))
        return self.collect()

    def collect(self) -> Rows:
        """All rows, group by group, on every rank; no rank returns before all have read (rank 0 may clear then).

        Raises ``UserError`` on every rank when one of them does not see a file.
        """
        barrier()
        found = [self.read(number) for number in range(len(self.groups))]
        lost = gather(next((number for number, rows in enumerate(found) if rows is None), None))
        number = next((number for number in lost if number is not None), None)
        if number is not None:
            raise UserError(
                f"batch {number} is missing in {self.folder}; with several machines the output folder must be on a "
                "file system that all of them share"
            )
        return [row for rows in found for row in rows or ()]

    def clear(self) -> None:
        """`clear_units` of this work."""
        clear_units(self.root.parent, self.key)


def clear_units(folder: str | Path, key: str) -> None:
    """Remove the files of ``key`` below ``folder``, once the result that holds their rows is written (rank 0).

    Work under other keys in the same folder keeps its files.
    """
    if is_main():
        shutil.rmtree(Path(folder) / FOLDER / key, ignore_errors=True)
        with contextlib.suppress(OSError):  # other work's files are there, or it was never made
            (Path(folder) / FOLDER).rmdir()
