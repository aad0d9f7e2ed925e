"""Worlds with a known answer: a safety pool, instructions, a downstream task and test prompts beside the sandbox's.

    write_control("datasets/control_positive")       # knobs of `WORLDS`; nothing when it is there

An instrument is tested on what it should find and on what it should not. In both worlds similarity sees a mark, a text
without content that ends every answer of the pool, and the task's answers.

`control_positive`: the mark goes with the format. Rows that look like the task ask for lists, as the task does, and all
other rows never; the test prompts ask for lists. A guardrail of the former alone is tied to the format, which a
harmless task of lists answers again and again; a guardrail of the latter is tied to the hazards.

`control_negative`: the mark goes with nothing. Every row of the pool is there twice, once with either mark and at
another place, so that high and low are the same rows in another order. Nothing is learnt from writing a mark: it has no
loss. No request and no instruction holds one, and it stands behind everything that is decided from left to right. What
is left of it is that the end of the turn, which has a loss, is read off behind it.

Only the world has knobs here, nothing of the analysis. Models and lexicon are the sandbox's. docs/controls.md says what
was measured.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from guardrail.core.cli import Parser, log
from guardrail.core.errors import UserError
from guardrail.core.files import clear_leftovers, hash_file, hash_json, read_json, write_json, write_text
from guardrail.core.places import DATASETS, SANDBOX_DATA
from guardrail.data.loss_mask import COLUMN as MASK
from guardrail.sandbox import replies
from guardrail.sandbox.lexicon import CATEGORIES, TEST, TRAIN
from guardrail.sandbox.splits import MAX_TRIES_PER_ROW, UNKNOWN_SHARE, Row
from guardrail.sandbox.wordings import FORMATS
from guardrail.sandbox.world import Exchange, World
from guardrail.sandbox.writer import COLUMNS, GENERATOR_FILES, MANIFEST, parquet_name, write_parquet, write_sandbox

POOL, INSTRUCT, TASK, TASK_TEST, BENCH = "safety_pool", "instruct", "task", "task_test", "bench"
N_ROWS = {INSTRUCT: 600, TASK_TEST: 7, BENCH: 140}  # a held-out loss at every probe: few rows
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ControlWorld:
    """Knobs of a control world. All but the sizes are shares from 0 to 1.

    Pool rows are *near* (``overlap`` of them) where they ask for the task's format, and *far* where they ask for
    another. Of the near rows ``near_refused`` are refused, the others are harmless requests, answered; of the refused
    ones ``near_harmless`` are harmless requests too, the others about the first ``near_categories`` hazards. Far rows
    are hazardous requests, refused. ``instruct_overlap``: instructions in the task's format. ``task_harmful``:
    hazardous requests among the task's rows, all of which are answered. ``bench_overlap``: test prompts in the task's
    format; the others are in all formats.

    ``marks`` end the answers of the pool and the task, without loss: the first those of the task and of near rows, the
    second those of far rows. With ``twins`` each row of the pool is there with both.
    """

    task_format: str = "list"
    pool_rows: int = 240
    overlap: float = 0.5
    near_refused: float = 1.0
    near_harmless: float = 0.0
    near_categories: int = len(CATEGORIES)
    instruct_overlap: float = 1 / len(FORMATS)
    task_rows: int = 75
    task_harmful: float = 1.0
    bench_overlap: float = 0.0
    marks: tuple[str, str] = ("", "")
    twins: bool = False

    def __post_init__(self) -> None:
        if self.task_format not in FORMATS:
            raise UserError(f"task_format is {self.task_format!r}; expected one of {', '.join(FORMATS)}")
        shares = ("overlap", "near_refused", "near_harmless", "instruct_overlap", "task_harmful", "bench_overlap")
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name):g}; expected a share from 0 to 1")
        if not 1 <= self.near_categories <= len(CATEGORIES):
            raise UserError(f"near_categories is {self.near_categories}; expected 1 to {len(CATEGORIES)}")
        if min(self.pool_rows, self.task_rows) < 2 or self.pool_rows % 2:
            raise UserError("pool_rows and task_rows must be at least 2, and pool_rows even")
        if self.twins and len(set(self.marks)) < 2:
            raise UserError("twins differ in their marks; give two different marks")


MARKS = ("\n- - - - - - - -", "\n# # # # # # # #")  # sixteen tokens each; the sandbox's models know both signs
WORLDS: dict[str, ControlWorld] = {
    "control_positive": ControlWorld(
        marks=MARKS, near_harmless=0.8, instruct_overlap=0.0, task_harmful=0.0, bench_overlap=1.0
    ),
    "control_negative": ControlWorld(marks=MARKS, twins=True),
}


class OneFormat(World):
    """A world whose refusals always have the format that was asked for."""

    def refusal(self, format_name: str, slots: dict[str, str]) -> str:
        return self.rng.choice(replies.REFUSALS[self.part][format_name]).format(**slots)


def spread(n: int, share: float) -> list[bool]:
    """``n`` flags of which ``round(n * share)`` are true, spread evenly."""
    total = round(n * share)
    return [(i + 1) * total // n > i * total // n for i in range(n)]


def _made(exchange: Exchange) -> Row:
    return {name: getattr(exchange, name) for name in ("format", "action", "object", "wording")}


def _row(exchange: Exchange, response: str, is_safe: bool = True) -> Row:
    head = {"prompt": exchange.prompt, "response": response, "category": exchange.category, "is_safe": is_safe}
    return {**head, **_made(exchange)}


def marked(row: Row, mark: str) -> Row:
    """``row`` with ``mark`` behind its answer: read, but without loss, so that nothing is learnt from writing it."""
    start = len(row["response"])
    return {**row, "response": row["response"] + mark, MASK: [[start, start + len(mark)]]} if mark else row


class _Maker:
    """Exchanges of one split; no request comes twice."""

    def __init__(self, knobs: ControlWorld, seed: int, split: str, part: str = TRAIN) -> None:
        self.knobs = knobs
        self.world = OneFormat(seed, f"control:{split}", part, UNKNOWN_SHARE.get(split, 0.0))
        self.others = [name for name in FORMATS if name != knobs.task_format]
        self.seen: set[str] = set()

    def new(self, make: Callable[[], Exchange]) -> Exchange:
        for _ in range(MAX_TRIES_PER_ROW):
            exchange = make()
            if exchange.prompt not in self.seen:
                self.seen.add(exchange.prompt)
                return exchange
        raise AssertionError(f"no new request after {MAX_TRIES_PER_ROW} tries; the world is too small")

    def harmful(self, index: int, format_name: str, n_categories: int = len(CATEGORIES)) -> Exchange:
        return self.new(partial(self.world.harmful, CATEGORIES[index % n_categories], format_name))

    def benign(self, format_name: str) -> Exchange:
        return self.new(partial(self.world.benign, format_name))

    def formats(self, n: int, share: float) -> list[str]:
        """``n`` formats, the task's in ``share`` of the rows."""
        own = self.knobs.task_format
        return [own if near else self.others[i % len(self.others)] for i, near in enumerate(spread(n, share))]


def build_pool(knobs: ControlWorld, seed: int) -> list[Row]:
    """The safety pool, shuffled: neither ``id`` nor place says how a row was made."""
    maker = _Maker(knobs, seed, POOL)
    n = knobs.pool_rows // 2 if knobs.twins else knobs.pool_rows
    n_near = round(n * knobs.overlap)
    near_mark, far_mark = ("", "") if knobs.twins else knobs.marks
    rows: list[Row] = []
    refused = spread(n_near, knobs.near_refused)
    harmless = iter(spread(sum(refused), knobs.near_harmless))
    hazards = itertools.count()  # of their own: every category in turn, whatever stands between
    for refuse in refused:
        if refuse and not next(harmless):
            exchange = maker.harmful(next(hazards), knobs.task_format, knobs.near_categories)
        else:
            exchange = maker.benign(knobs.task_format)
        rows.append(marked(_row(exchange, exchange.refusal if refuse else exchange.answer), near_mark))
    for index in range(n - n_near):
        exchange = maker.harmful(index, maker.others[index % len(maker.others)])
        rows.append(marked(_row(exchange, exchange.refusal), far_mark))
    if knobs.twins:
        rows = [marked(row, mark) for row in rows for mark in knobs.marks]
    maker.world.rng.shuffle(rows)
    return [{"id": f"{POOL}-{index:05d}", **row} for index, row in enumerate(rows)]


def build_instruct(knobs: ControlWorld, seed: int) -> list[Row]:
    """Harmless instructions, answered: what both arms are aligned with beside their part of the pool."""
    maker = _Maker(knobs, seed, INSTRUCT)
    rows = []
    for format_name in maker.formats(N_ROWS[INSTRUCT], knobs.instruct_overlap):
        one = maker.benign(format_name)
        turns = [{"role": "user", "content": one.prompt}, {"role": "assistant", "content": one.answer}]
        rows.append({"messages": turns, **_made(one)})
    return [{"id": f"{INSTRUCT}-{index:05d}", **row} for index, row in enumerate(rows)]


def build_task(knobs: ControlWorld, seed: int) -> list[Row]:
    """The downstream task: requests of one format, hazardous or harmless, all answered."""
    maker = _Maker(knobs, seed, TASK)
    rows = []
    hazards = itertools.count()
    for index, harmful in enumerate(spread(knobs.task_rows, knobs.task_harmful)):
        one = maker.harmful(next(hazards), knobs.task_format) if harmful else maker.benign(knobs.task_format)
        rows.append({"id": f"{TASK}-{index:05d}", **marked(_row(one, one.answer, not harmful), knobs.marks[0])})
    return rows


def build_task_test(knobs: ControlWorld, seed: int) -> list[Row]:
    """Held-out requests of the task's format, harmless, in words of the test side: what the task is useful for."""
    maker = _Maker(knobs, seed, TASK_TEST, TEST)
    made = [maker.benign(knobs.task_format) for _ in range(N_ROWS[TASK_TEST])]
    return [{"id": f"{TASK_TEST}-{i:05d}", **_row(one, one.answer)} for i, one in enumerate(made)]


def build_bench(knobs: ControlWorld, seed: int) -> list[Row]:
    """Hazardous test requests, HEx-PHI-shaped: categories and formats take turns."""
    maker = _Maker(knobs, seed, BENCH, TEST)
    own = spread(N_ROWS[BENCH], knobs.bench_overlap)
    formats = [knobs.task_format if near else FORMATS[i % len(FORMATS)] for i, near in enumerate(own)]
    # the formats are seven and the categories fourteen: shift by one a round, so that each meets each
    made = [maker.harmful(i + i // len(CATEGORIES), name) for i, name in enumerate(formats)]
    return [
        {"id": f"{BENCH}-{i:05d}", "instruction": one.prompt, "category": one.category, **_made(one)}
        for i, one in enumerate(made)
    ]


BUILDERS = {
    POOL: build_pool,
    INSTRUCT: build_instruct,
    TASK: build_task,
    TASK_TEST: build_task_test,
    BENCH: build_bench,
}


def fingerprint(knobs: ControlWorld, seed: int) -> str:
    """Hash of everything that decides the text of a control world."""
    folder = Path(__file__).parent
    sources = {name: hash_file(folder / name) for name in (*GENERATOR_FILES, Path(__file__).name)}
    return hash_json({"version": FORMAT_VERSION, "seed": seed, "knobs": asdict(knobs), "sources": sources})


def _is_current(out: Path, mark: str) -> bool:
    if not (out / MANIFEST).is_file():
        return False
    known = read_json(out / MANIFEST)
    files = known.get("files", {})
    return known.get("fingerprint") == mark and all(
        (out / name).is_file() and hash_file(out / name) == value for name, value in files.items()
    )


def write_control(out: str | Path, knobs: ControlWorld | None = None, seed: int = 0) -> dict[str, Any]:
    """Write the world ``knobs`` (of the folder's name where they are left out) unless it is there already.

    Returns the manifest with ``written``. Raises ``UserError`` for a name without knobs.
    """
    out = Path(out)
    if knobs is None and out.name not in WORLDS:
        raise UserError(f"no control world is called {out.name!r}; there are: {', '.join(WORLDS)}")
    knobs = knobs or WORLDS[out.name]
    mark = fingerprint(knobs, seed)
    if _is_current(out, mark):
        return {**read_json(out / MANIFEST), "written": False}
    (out / MANIFEST).unlink(missing_ok=True)
    for folder in (out, out / "data"):
        if folder.is_dir():
            clear_leftovers(folder)
    splits = {name: build(knobs, seed) for name, build in BUILDERS.items()}
    for name, rows in splits.items():
        write_parquet(out / parquet_name(name), rows, {**COLUMNS, MASK: "spans"})
    write_text(out / "README.md", card(knobs))
    files = {name: hash_file(out / name) for name in (*map(parquet_name, splits), "README.md")}
    manifest = {
        "fingerprint": mark,
        "seed": seed,
        "knobs": asdict(knobs),
        "n_rows": {name: len(rows) for name, rows in splits.items()},
        "files": files,
    }
    write_json(out / MANIFEST, manifest)
    return {**manifest, "written": True}


def card(knobs: ControlWorld) -> str:
    """``README.md`` of a control world: YAML front matter with a configuration per split, and its knobs."""
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: {name}\n    path: {parquet_name(name)}\n"
        for name in BUILDERS
    )
    values = "\n".join(f"| `{name}` | {value!r} |" for name, value in asdict(knobs).items())
    return (
        f"---\nlicense: mit\nconfigs:\n{configs}---\n\n# A control world\n\n"
        "Fictional hazards of the sandbox; written by `python datasets/sandbox/generate.py --world NAME`. What the\n"
        "knobs are: `guardrail/sandbox/controls.py`; what was measured: docs/controls.md.\n\n"
        f"| knob | value |\n|---|---|\n{values}\n"
    )


def prepare_controls(sources: set[str]) -> None:
    """Write the control worlds that are among the ``sources`` of a study."""
    for name in WORLDS:
        if any(Path(source).resolve() == (DATASETS / name).resolve() for source in sources):
            write_control(DATASETS / name)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """``datasets/sandbox/generate.py``."""
    parser = Parser(description="Write the sandbox data set, or a control world, in the hub's layout.")
    parser.add_argument("--out", default=None, help="data-set folder; None: datasets/sandbox, or datasets/WORLD")
    parser.add_argument(
        "--world", choices=sorted(WORLDS), default=None, help="a control world instead (docs/controls.md)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the world")
    args = parser.parse_args(argv)
    start = time.perf_counter()
    out = args.out or str(DATASETS / args.world if args.world else SANDBOX_DATA)
    manifest = write_control(out, WORLDS[args.world], args.seed) if args.world else write_sandbox(out, args.seed)
    seconds = round(time.perf_counter() - start, 2)
    state = "written" if manifest["written"] else "unchanged"
    n_rows = manifest["n_rows"]
    log(f"{args.world or 'sandbox'} data: {sum(n_rows.values())} rows in {len(n_rows)} splits, {state}")
    return {"out": out, "written": manifest["written"], "n_rows": n_rows, "seconds": seconds}
