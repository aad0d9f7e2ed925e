"""Instruction rows plus a selected safety subset: one training split, with its ratio, order and hashes recorded.

Which rows of the safety source are taken when it has more than ``size``: ``high`` the first (a ``top`` file starts with
the most similar), ``low`` the last (a ``bottom`` file ends with the least similar), ``random`` a seeded draw, ``full``
all of them, ``none`` none: the instructions alone, for the arm without safety data.
"""

from __future__ import annotations

import random
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from guardrail.core.errors import UserError
from guardrail.core.provenance import fingerprint, run_record
from guardrail.data.hub_layout import finished_split, keep_sources, mixed_table, parquet_path, plain_row, write_split
from guardrail.data.rows import Row, hash_rows, load_rows

SIMILARITIES = ("high", "low", "random", "full", "none")
ORDERS = ("shuffled", "instruct_first", "safety_first")
VERSION = 1


def parse_size(text: str) -> int:
    """``1000``, ``1k`` or ``5K`` as a number of rows."""
    found = re.fullmatch(r"(\d+)([kK]?)", text)
    size = int(found.group(1)) * (1000 if found.group(2) else 1) if found else 0
    if size < 1:
        raise UserError(f"--size {text!r} is not a number of rows such as 500, 1000 or 1k")
    return size


def size_label(size: int) -> str:
    """``1k`` for 1000; other numbers as they are."""
    return f"{size // 1000}k" if size % 1000 == 0 else str(size)


def split_name(task: str, sim: str, size: int) -> str:
    """``train_list_low_sim_1k``; ``train_list_full_1k`` for the whole pool."""
    middle = "full" if sim == "full" else f"{sim}_sim"
    return f"train_{task}_{middle}_{size_label(size)}"


@dataclass(frozen=True)
class MixConfig:
    """One mixture. ``size`` None takes every safety row (``sim`` full)."""

    instruct: str
    safety: str
    task: str
    sim: str
    size: int | None
    out: str
    instruct_split: str | None = None
    instruct_size: int | None = None
    safety_split: str | None = None
    split: str | None = None
    order: str = "shuffled"
    seed: int = 42


def choose(rows: list[Row], sim: str, size: int, seed: int) -> list[Row]:
    """``size`` rows by the rule of ``sim``, in their own order."""
    if size > len(rows):
        raise UserError(
            f"--size {size} is larger than the {len(rows)} rows of the safety subset; select more, or lower it"
        )
    if sim == "random":
        keep = sorted(random.Random(seed).sample(range(len(rows)), size))
        return [rows[i] for i in keep]
    return rows[len(rows) - size :] if sim == "low" else rows[:size]


def mix(config: MixConfig) -> dict[str, Any]:
    """Write the split (nothing when it is there already); returns its paths and counts."""
    instruct = load_rows(config.instruct, split=config.instruct_split, limit=config.instruct_size, need_answer=True)
    safety = load_rows(config.safety, split=config.safety_split, need_answer=True)
    if config.instruct_size and config.instruct_size > len(instruct):
        raise UserError(f"--instruct_size {config.instruct_size} is larger than the {len(instruct)} rows there are")
    size = 0 if config.sim == "none" else len(safety) if config.size is None else config.size
    chosen = choose(safety, config.sim, size, config.seed)
    split = config.split or split_name(config.task, config.sim, size)
    folder = Path(config.out)
    read = {"instruct": (config.instruct, config.instruct_split), "safety": (config.safety, config.safety_split)}
    keep_sources(folder, split, read)
    options = {key: value for key, value in asdict(config).items() if key not in ("out", "instruct", "safety")}
    inputs = {"instruct": hash_rows(instruct), "safety": hash_rows(chosen), "version": VERSION}
    mark = fingerprint(options, inputs)
    summary = {
        "dataset": str(folder),
        "split": split,
        "file": str(parquet_path(folder, split)),
        "n_instruct": len(instruct),
        "n_safety": len(chosen),
    }
    if finished_split(folder, split, mark) is not None:
        return {**summary, "skipped": True}
    rows, n_renamed = merge(instruct, chosen, config.order, config.seed)
    safety_fraction = len(chosen) / len(rows)
    write_split(
        folder,
        split,
        mixed_table(rows),
        {
            "n_rows": len(rows),
            "what": f"{len(instruct)} instruction rows and {len(chosen)} safety rows ({config.sim}), {config.order}",
            "notes": [
                f"safety share {safety_fraction:.4f}; order {config.order}, seed {config.seed}",
                f"instruction rows: {config.instruct} {config.instruct_split or ''}, hash {inputs['instruct']}".strip(),
                f"safety rows: {config.safety} {config.safety_split or ''}, hash {inputs['safety']}".strip(),
            ],
            "n_instruct": len(instruct),
            "n_safety": len(chosen),
            "safety_fraction": safety_fraction,
            "n_ids_renamed": n_renamed,
            "order": config.order,
            "run": run_record("mix", asdict(config), fingerprint=mark, inputs=inputs, n=len(rows), seed=config.seed),
        },
    )
    return summary


def merge(instruct: list[Row], safety: list[Row], order: str, seed: int) -> tuple[list[Row], int]:
    """Rows of both in ``order``, and how many safety ids had to be renamed because both sets use them."""
    taken = {row["id"] for row in instruct}
    n_renamed = 0
    renamed = []
    for row in safety:
        if row["id"] in taken:
            n_renamed += 1
            row = {**row, "id": f"{row['id']}#safety"}
        renamed.append(plain_row(row, "safety"))
    first = [plain_row(row, "instruct") for row in instruct]
    if order == "safety_first":
        return renamed + first, n_renamed
    rows = first + renamed
    if order == "shuffled":
        random.Random(seed).shuffle(rows)
    return rows, n_renamed
