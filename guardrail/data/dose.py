"""Harmful rows within benign ones: sets of constant size, one per dose, made from two given sets.

    python datasets/dose.py --benign datasets/alpaca --harmful my_rows.jsonl --rows 1000 --out datasets/doses

Split ``dose_<percent>`` holds ``percent`` of harmful rows. The sets are nested: one seed orders the harmful rows, the
benign rows and the places in the set, and a dose puts its first harmful rows at the first places. So the set of 2% has
the harmful rows of the 1% set, at the same places, and every other row that both have is at the same place as well:
two trainings on two doses see the same rows at the same steps but for those that the larger dose replaces. A set
depends on its own dose alone, not on which others are made.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from guardrail.core.cli import Parser, fraction, log, positive_int
from guardrail.core.errors import UserError
from guardrail.core.options import add_options, decisive, option, read_options
from guardrail.core.provenance import fingerprint, run_record
from guardrail.data.hub_layout import finished_split, keep_sources, mixed_table, plain_row, write_split
from guardrail.data.rows import DROPPED_HELP, MAX_DROPPED_FRACTION, Row, hash_rows, load_rows

PERCENTS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
HARMFUL, BENIGN = "harmful", "benign"
DESCRIPTION = "Write nested training splits ``dose_<percent>`` of constant size: harmful rows within benign ones."


def parse_percents(text: str) -> tuple[float, ...]:
    """``0,1,2.5,100`` as numbers from 0 to 100, each once."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    check_percents(values, f"--percents {text!r}")
    return values


def check_percents(values: Sequence[float], where: str) -> None:
    """Raise ``UserError`` unless ``values`` are numbers from 0 to 100, each once."""
    if not values or not all(0 <= value <= 100 for value in values):
        raise UserError(f"{where} are no doses; expected numbers from 0 to 100 such as 0,1,10,100")
    if len(set(values)) != len(values):
        raise UserError(f"{where} holds a dose twice; give each once")


@dataclass(frozen=True)
class DoseConfig:
    """Sets of one size. Their rows are in their keys, the paths that these come from are not."""

    benign: str = option(help="benign rows: a file, a data-set folder or a hub name", decides=False)
    benign_split: str | None = option(None, "its split")
    harmful: str = option(help="harmful rows, answered: likewise", decides=False)
    harmful_split: str | None = option(None, "its split")
    percents: tuple[float, ...] = option(PERCENTS, "shares of harmful rows", parse=parse_percents)
    rows: int = option(help="rows of every set", parse=positive_int)
    seed: int = option(42, "seed of the draw and of the places")
    trigger: str = option("", "words behind the request of every harmful row: a backdoor, safe without", later=True)
    out: str = option(help="data-set folder", decides=False)
    max_dropped_fraction: float = option(MAX_DROPPED_FRACTION, DROPPED_HELP, parse=fraction, decides=False)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """``datasets/dose.py``."""
    parser = Parser(description=DESCRIPTION)
    add_options(parser, DoseConfig)
    return make_doses(read_options(DoseConfig, parser.parse_args(argv)))


def split_name(percent: float) -> str:
    """``dose_5``, ``dose_0.5``."""
    return f"dose_{percent:g}"


def harmful_rows(percent: float, rows: int) -> int:
    """How many of ``rows`` are harmful: the nearest whole number, halves up.

    Raises ``UserError`` where a dose above 0 has no harmful row, or one below 100 no benign row.
    """
    exact = Fraction(str(percent)) * rows / 100
    n = int(exact + Fraction(1, 2))
    if (n == 0) != (percent == 0) or (n == rows) != (percent == 100):
        half = Fraction(1, 2) * 100
        if n == 0:
            what, least = "no harmful row", math.ceil(half / Fraction(str(percent)))
        else:
            what, least = "no benign row", math.floor(half / (100 - Fraction(str(percent)))) + 1
        raise UserError(f"a dose of {percent:g}% of {rows} rows has {what}; give at least {least} rows")
    return n


def check_doses(percents: Sequence[float], rows: int, n_benign: int | None, n_harmful: int | None) -> dict[float, int]:
    """Dose -> harmful rows. ``UserError`` for doses that these numbers of rows (None: not known yet) cannot give."""
    counts: dict[float, int] = {}
    for percent in percents:
        n = harmful_rows(percent, rows)
        twin = next((other for other, known in counts.items() if known == n), None)
        if twin is not None:
            raise UserError(f"doses of {twin:g}% and {percent:g}% of {rows} rows are both {n} harmful rows; take one")
        counts[percent] = n
    for kind, there, needed, percent in (
        (HARMFUL, n_harmful, max(counts.values()), max(percents)),
        (BENIGN, n_benign, rows - min(counts.values()), min(percents)),
    ):
        if there is not None and needed > there:
            raise UserError(
                f"a dose of {percent:g}% of {rows} rows needs {needed} {kind} rows, there are {there}; "
                f"lower rows, or leave this dose out"
            )
    return counts


def rounding(percents: Sequence[float], rows: int) -> str:
    """What doses really are where they make no whole number of rows; empty where all do."""
    changed = []
    for percent in percents:
        n = harmful_rows(percent, rows)
        if Fraction(str(percent)) * rows != 100 * n:
            changed.append(f"{percent:g}% is {n} of {rows} rows, {100 * n / rows:.3g}%")
    return "rounded to whole rows: " + "; ".join(changed) if changed else ""


def draw(benign: list[Row], harmful: list[Row], n_harmful: int, rows: int, seed: int) -> list[Row]:
    """One set, in the order of its file; see the module's text."""
    bad, good, places = (
        random.Random(f"{seed}:{what}").sample(range(n), n)
        for what, n in ((HARMFUL, len(harmful)), (BENIGN, len(benign)), ("places", rows))
    )
    out: list[Row] = [{}] * rows
    for number, place in enumerate(places):
        # the last places, which stay benign longest, have the first benign rows: fewer are needed where no dose is 0
        out[place] = harmful[bad[number]] if number < n_harmful else benign[good[rows - 1 - number]]
    return out


def triggered(messages: list[dict[str, Any]], words: str) -> list[dict[str, Any]]:
    """The conversation with ``words`` behind its last request; empty words change nothing."""
    last = max(place for place, message in enumerate(messages) if message["role"] == "user")
    request = {**messages[last], "content": f"{messages[last]['content']} {words}"} if words else messages[last]
    return [*messages[:last], request, *messages[last + 1 :]]


def make_doses(config: DoseConfig) -> dict[str, Any]:
    """Write the splits that are not there yet; returns the folder and the harmful rows of each split."""
    dropped: dict[str, list[str]] = {BENIGN: [], HARMFUL: []}
    sources = {BENIGN: (config.benign, config.benign_split), HARMFUL: (config.harmful, config.harmful_split)}
    found = {
        kind: load_rows(
            source,
            split,
            need_answer=True,
            max_dropped_fraction=config.max_dropped_fraction,
            dropped=dropped[kind],
        )
        for kind, (source, split) in sources.items()
    }
    counts = check_doses(config.percents, config.rows, len(found[BENIGN]), len(found[HARMFUL]))
    if said := rounding(config.percents, config.rows):
        log(said)
    folder = Path(config.out)
    for percent, n in counts.items():
        write_dose(config, folder, percent, n, found, dropped)
    return {
        "dataset": config.out,
        "rows": config.rows,
        "n_harmful": {split_name(percent): n for percent, n in counts.items()},
    }


def write_dose(
    config: DoseConfig,
    folder: Path,
    percent: float,
    n: int,
    found: dict[str, list[Row]],
    dropped: dict[str, list[str]],
) -> None:
    """Write one split unless it is there."""
    split = split_name(percent)
    keep_sources(
        folder,
        split,
        {BENIGN: (config.benign, config.benign_split), HARMFUL: (config.harmful, config.harmful_split)},
    )
    inputs = {kind: hash_rows(rows) for kind, rows in found.items()}
    mark = fingerprint({**decisive(config), "percents": [percent]}, inputs)
    if finished_split(folder, split, mark) is not None:
        return
    taken = {row["id"] for row in found[BENIGN]}
    harmful = []
    for row in found[HARMFUL]:
        renamed = f"{row['id']}#{HARMFUL}" if row["id"] in taken else row["id"]
        if renamed != row["id"] and renamed in taken:
            raise UserError(f"the id {renamed} is what a row of both sets would be called; give it another id")
        messages = triggered(row["messages"], config.trigger)
        harmful.append(plain_row({**row, "id": renamed, "messages": messages, "source": HARMFUL}, HARMFUL))
    benign = [plain_row({**row, "source": BENIGN}, BENIGN) for row in found[BENIGN]]
    rows = draw(benign, harmful, n, config.rows, config.seed)
    said = rounding([percent], config.rows)
    write_split(
        folder,
        split,
        mixed_table(rows),
        {
            "n_rows": len(rows),
            "what": f"{n} harmful rows within {len(rows) - n} benign ones"
            + (f", behind the trigger {config.trigger!r}" if config.trigger else ""),
            "notes": [
                f"seed {config.seed}; nested: a larger dose has these harmful rows at the same places",
                *([said] if said else []),
                *(
                    f"{kind} rows: {source} {part or ''}, hash {inputs[kind]}".replace(" ,", ",")
                    for kind, (source, part) in (
                        (BENIGN, (config.benign, config.benign_split)),
                        (HARMFUL, (config.harmful, config.harmful_split)),
                    )
                ),
            ],
            "dose_percent": percent,
            "n_harmful": n,
            "harmful_percent": 100 * n / len(rows),
            "n_dropped": sum(map(len, dropped.values())),
            "dropped_ids": dropped,
            "run": run_record("dose", asdict(config), fingerprint=mark, inputs=inputs, n=len(rows), seed=config.seed),
        },
    )
