"""Instruction rows plus a selected safety subset: one training split, with its ratio, order and hashes recorded.

Which rows of the safety source are taken when it has more than ``size``: ``high`` the first (a ``top`` file starts with
the most similar), ``low`` the last (a ``bottom`` file ends with the least similar), ``random`` a seeded draw, ``full``
all of them, ``none`` none: the instructions alone, for the arm without safety data.

The rows that were taken stand in the order of the pool (``--pool``; by id without it), not in that of the selection:
equal sets make equal mixtures, and train equally, whatever chose them. For the same reason ``random`` draws ids.

With ``replay_fraction`` not all instructions are taken, but a seeded draw that makes up this share of the split: for a
chat model that has seen them already. Beside ``none`` it is as many rows as an arm of ``size`` safety rows has.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from guardrail.core.cli import Parser, fraction, positive_int
from guardrail.core.errors import UserError
from guardrail.core.options import add_options, decisive, option, read_options
from guardrail.core.provenance import fingerprint, run_record
from guardrail.data.hub_layout import finished_split, keep_sources, mixed_table, parquet_path, plain_row, write_split
from guardrail.data.loss_mask import hash_masked_rows
from guardrail.data.rows import DROPPED_HELP, MAX_DROPPED_FRACTION, Row, load_rows

SIMILARITIES = ("high", "low", "random", "full", "none")
ORDERS = ("shuffled", "instruct_first", "safety_first")
VERSION = 2  # 2: safety rows in the order of the pool; a random draw by id
DESCRIPTION = (
    "Build the training split ``train_<task>_<high|low|random>_sim_<size>`` from instructions and a safety subset."
)


def parse_size(text: str) -> int:
    """``1000``, ``1k`` or ``5K`` as a number of rows."""
    found = re.fullmatch(r"([0-9]{1,15})([kK]?)", text)
    size = int(found.group(1)) * (1000 if found.group(2) else 1) if found else 0
    if size < 1:
        raise UserError(f"--size {text!r} is not a number of rows such as 500, 1000 or 1k")
    return size


def share(text: str) -> float:
    """A fraction of at least 0 and below 1."""
    value = fraction(text)
    if value == 1:
        raise UserError("--replay_fraction 1 leaves no room for safety rows; expected at least 0 and below 1")
    return value


def size_label(size: int) -> str:
    """``1k`` for 1000; other numbers as they are."""
    return f"{size // 1000}k" if size % 1000 == 0 else str(size)


def split_name(task: str, sim: str, size: int) -> str:
    """``train_list_low_sim_1k``; ``train_list_full_1k`` for the whole pool."""
    middle = "full" if sim == "full" else f"{sim}_sim"
    return f"train_{task}_{middle}_{size_label(size)}"


@dataclass(frozen=True)
class MixConfig:
    """One mixture. The rows themselves are in its key, the paths that they come from are not."""

    instruct: str = option(help="instruction rows: a file, a data-set folder or a hub name", decides=False)
    instruct_split: str | None = option(None, "its split")
    instruct_size: int | None = option(None, "use only its first rows", parse=positive_int)
    replay_fraction: float | None = option(
        None, "draw so many instruction rows that they are this share of the split", parse=share, later=True
    )
    safety: str = option(help="the selected subset (top/bottom file) or the whole pool", decides=False)
    safety_split: str | None = option(None, "its split")
    pool: str | None = option(
        None, "the pool that --safety was selected from: rows stand in its order (default: by id)", decides=False
    )
    pool_split: str | None = option(None, "its split", decides=False)
    task: str = option(help="downstream task the subset was selected for; part of the name")
    sim: str = option(help="which rows of a larger source are taken", choices=SIMILARITIES)
    size: int | None = option(None, "safety rows, such as 1000 or 1k; default: all", parse=parse_size)
    split: str | None = option(None, "name of the split, instead of train_<task>_<sim>_sim_<size>")
    order: str = option("shuffled", "order of the rows in the file", choices=ORDERS)
    seed: int = option(42, "seed of the shuffle and of the random draw")
    out: str = option(help="data-set folder", decides=False)
    max_dropped_fraction: float = option(MAX_DROPPED_FRACTION, DROPPED_HELP, parse=fraction, decides=False)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """``datasets/mix.py``."""
    parser = Parser(description=DESCRIPTION)
    add_options(parser, MixConfig)
    return mix(read_options(MixConfig, parser.parse_args(argv)))


def choose(rows: list[Row], sim: str, size: int, seed: int) -> list[Row]:
    """``size`` rows by the rule of ``sim``, in the order of ``rows``."""
    if size > len(rows):
        raise UserError(
            f"--size {size} is larger than the {len(rows)} rows of the safety subset; select more, or lower it"
        )
    if sim == "random":
        drawn = set(random.Random(seed).sample(sorted(str(row["id"]) for row in rows), size))
        return [row for row in rows if str(row["id"]) in drawn]
    return rows[len(rows) - size :] if sim == "low" else rows[:size]


def in_pool_order(rows: list[Row], config: MixConfig) -> list[Row]:
    """``rows`` in the order of the pool that they were taken from. Raises ``UserError`` for one that it lacks."""
    if config.pool is None:
        selected = config.sim in ("high", "low")  # else the source is the pool itself
        return sorted(rows, key=lambda row: str(row["id"])) if selected else rows
    pool = load_rows(config.pool, split=config.pool_split)
    place = {row["id"]: number for number, row in enumerate(pool)}
    strange = next((row["id"] for row in rows if row["id"] not in place), None)
    if strange is not None:
        raise UserError(f"--pool {config.pool} has no row {strange}, which --safety has; name the pool it came from")
    return sorted(rows, key=lambda row: place[row["id"]])


def replayed(rows: list[Row], config: MixConfig, n_safety: int) -> list[Row]:
    """The seeded draw of ``replay_fraction``, in the rows' own order; at most all of them."""
    assert config.replay_fraction is not None
    if config.sim == "none":
        n = round((config.size or 0) / (1 - config.replay_fraction))
        if not n:
            raise UserError("--replay_fraction with --sim none needs --size: as many rows as an arm of that size has")
    else:
        n = round(n_safety * config.replay_fraction / (1 - config.replay_fraction))
    keep = random.Random(config.seed).sample(range(len(rows)), min(n, len(rows)))
    return [rows[i] for i in sorted(keep)]


def mix(config: MixConfig) -> dict[str, Any]:
    """Write the split (nothing when it is there already); returns its paths and counts."""
    allowed, dropped = config.max_dropped_fraction, {"instruct": list[str](), "safety": list[str]()}
    instruct = load_rows(
        config.instruct,
        split=config.instruct_split,
        limit=config.instruct_size,
        need_answer=True,
        max_dropped_fraction=allowed,
        dropped=dropped["instruct"],
    )
    safety = load_rows(
        config.safety,
        split=config.safety_split,
        need_answer=True,
        max_dropped_fraction=allowed,
        dropped=dropped["safety"],
    )
    n_read = len(instruct) + len(dropped["instruct"])
    if config.instruct_size and config.instruct_size > n_read:
        raise UserError(f"--instruct_size {config.instruct_size} is larger than the {n_read} rows there are")
    size = 0 if config.sim == "none" else len(safety) if config.size is None else config.size
    chosen = in_pool_order(choose(safety, config.sim, size, config.seed), config)
    if config.replay_fraction is not None:
        instruct = replayed(instruct, config, len(chosen))
    split = config.split or split_name(config.task, config.sim, size)
    folder = Path(config.out)
    read = {"instruct": (config.instruct, config.instruct_split), "safety": (config.safety, config.safety_split)}
    if config.pool is not None:
        read["pool"] = (config.pool, config.pool_split)
    keep_sources(folder, split, read)
    inputs = {"instruct": hash_masked_rows(instruct), "safety": hash_masked_rows(chosen), "version": VERSION}
    mark = fingerprint(decisive(config), inputs)
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
            "n_dropped": sum(map(len, dropped.values())),
            "dropped_ids": dropped,
            "order": config.order,
            "run": run_record("mix", asdict(config), fingerprint=mark, inputs=inputs, n=len(rows), seed=config.seed),
        },
    )
    return summary


def merge(instruct: list[Row], safety: list[Row], order: str, seed: int) -> tuple[list[Row], int]:
    """Rows of both in ``order``, and how many safety ids had to be renamed because both sets use them."""
    taken = {row["id"] for row in instruct}
    used = taken | {row["id"] for row in safety}
    n_renamed = 0
    renamed = []
    for row in safety:
        if row["id"] in taken:
            n_renamed += 1
            row = {**row, "id": f"{row['id']}#safety"}
            if row["id"] in used:  # whose row it is must be told by its id
                raise UserError(f"the id {row['id']} is what a row of both sets would be called; give it another id")
        renamed.append(plain_row(row, "safety"))
    first = [plain_row(row, "instruct") for row in instruct]
    if order == "safety_first":
        return renamed + first, n_renamed
    rows = first + renamed
    if order == "shuffled":
        random.Random(seed).shuffle(rows)
    return rows, n_renamed
