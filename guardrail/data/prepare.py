"""Turn a published or private data set into a folder in the hub's layout, with counts and licence on its card."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from guardrail.core.cli import Parser, fraction, positive_int
from guardrail.core.errors import UserError, unknown
from guardrail.core.files import atomic_path, hash_file, read_jsonl, write_json
from guardrail.core.hub import dataset_revision, hub_available, hub_error
from guardrail.core.options import add_options, decisive, option, read_options
from guardrail.core.places import DATASETS
from guardrail.core.provenance import fingerprint, run_record
from guardrail.data.hex_phi import category_files, read_category, read_hub
from guardrail.data.hub_layout import finished_split, keep_sources, own_table, write_split
from guardrail.data.mix import MixConfig, mix
from guardrail.data.rows import (
    DROPPED_HELP,
    MAX_DROPPED_FRACTION,
    Row,
    hash_rows,
    list_splits,
    load_rows,
    normalise_rows,
)
from guardrail.data.sources import ALIASES, NAMES, SOURCES, Source, local_copy_step

DESCRIPTION = "Turn a published or private data set into a data-set folder: rows, card, counts, licence, hashes."
MT_BENCH_FILES = ("question.jsonl", "reference_answer/gpt-4.jsonl", "judge_prompts.jsonl")
MT_BENCH_SPACE = "lmsys/mt-bench"


@dataclass(frozen=True)
class PrepareConfig:
    """One data set. ``limit`` and ``instruct_size`` are recorded."""

    name: str = option(help=f"one of: {', '.join(NAMES)}", positional=True, metavar="NAME")
    source: str | None = option(None, "local copy: a file or a folder; default: the hub", decides=False)
    out: str = option(help="data-set folder; default: datasets/NAME", decides=False, shown_default=None)
    split: str | None = option(None, "only this split (of a file: the name to give it)")
    revision: str | None = option(None, "hub revision; default: the newest, recorded on the card")
    limit: int | None = option(None, "only the first rows of every split", parse=positive_int)
    instruct_size: int | None = option(None, "ultrachat_beavertails: instruction rows to use", parse=positive_int)
    seed: int = option(42, "ultrachat_beavertails: seed of the shuffle")
    max_dropped_fraction: float = option(MAX_DROPPED_FRACTION, DROPPED_HELP, parse=fraction, decides=False)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """``datasets/prepare.py``."""
    parser = Parser(description=DESCRIPTION)
    add_options(parser, PrepareConfig)
    args = parser.parse_args(argv)
    name = canonical(args.name)
    return prepare(read_options(PrepareConfig, args, name=name, out=args.out or str(DATASETS / name)))


def canonical(name: str) -> str:
    """The data set's name here, or ``UserError`` with the near match."""
    name = ALIASES.get(name, name)
    if name not in NAMES:
        raise unknown("data set", name, NAMES)
    return name


def prepare(config: PrepareConfig) -> dict[str, Any]:
    """Write every split that is not there yet; returns folder and row counts."""
    if config.name == "mt_bench":
        return prepare_mt_bench(config)
    if config.name == "ultrachat_beavertails":
        return prepare_mixture(config)
    source = SOURCES[config.name]
    revision = None
    if config.source is None:
        if source.hub is None:
            raise UserError(f"{config.name} has no public source: {local_copy_step(config.name, None, source.steps)}")
        step = local_copy_step(config.name, source.hub)
        revision = dataset_revision(source.hub, step, config.revision, source.gated)
    counts = {}
    for written, read in wanted_splits(config, source, revision).items():
        counts[written] = prepare_split(config, source, written, read, revision)
    return {"dataset": config.out, "splits": counts}


def wanted_splits(config: PrepareConfig, source: Source, revision: str | None) -> dict[str, str | None]:
    """Split to write -> split to read. A local file is one split; a local folder may hold only some of them."""
    if config.source is not None:
        path = Path(config.source).expanduser()
        if path.is_file():
            default = next(iter(source.splits)) if source.splits else "train"
            return {config.split or default: None}
        if path.is_dir() and not category_files(path):
            there = list_splits(path, source.config)
            known = source.splits or {split: split for split in there}
            found = {written: read for written, read in known.items() if read in there}
            found |= {written: written for written in known if written not in found and written in there}
            if not found and len(there) == 1:
                found = {next(iter(known)): next(iter(there))}
            if not found:
                raise UserError(f"{path} has none of the splits {', '.join(known)}; it has: {', '.join(there) or '-'}")
            return _only(config, found)
        if path.is_dir():
            return {"test": None}
        raise UserError(f"no such file or folder: {path}")
    if source.splits is None:
        from datasets import get_dataset_split_names  # type: ignore[attr-defined]

        try:
            names = get_dataset_split_names(source.hub, revision=revision)
        except Exception as error:  # the hub client raises a dozen types; the reason is what the user needs
            step = local_copy_step(config.name, source.hub)
            raise hub_error(error, "dataset", str(source.hub), step, revision) from error
        return _only(config, {split: split for split in names})
    return _only(config, dict(source.splits))


def _only(config: PrepareConfig, splits: dict[str, Any]) -> dict[str, Any]:
    if config.split is None:
        return splits
    if config.split not in splits:
        raise unknown(f"split of {config.name}:", config.split, splits)
    return {config.split: splits[config.split]}


def read_rows(
    config: PrepareConfig, source: Source, split: str | None, revision: str | None, dropped: list[str]
) -> list[Row]:
    """The rows as published; ``dropped`` gets the ids of those without an answer (of SAMSum: or without a dialogue)."""
    if config.name == "hex_phi":
        return read_hex_phi(config, source, revision)
    if config.source is not None:
        where, revision = str(Path(config.source).expanduser()), None
    else:
        where = str(source.hub)
    return load_rows(
        where,
        split,
        source.config,
        need_answer=source.answers,
        revision=revision,
        max_dropped_fraction=config.max_dropped_fraction if source.answers else None,
        dropped=dropped,
    )


def read_hex_phi(config: PrepareConfig, source: Source, revision: str | None) -> list[Row]:
    """HEx-PHI's files of a category each, from the hub or a local copy; or any rows."""
    if config.source is None:
        rows = read_hub(str(source.hub), revision, local_copy_step(config.name, source.hub))
        return normalise_rows(rows, str(source.hub))
    folder = Path(config.source).expanduser()
    files = category_files(folder)
    if not files:
        return load_rows(folder)
    return normalise_rows([row for file in files for row in read_category(file)], str(folder))


def prepare_split(config: PrepareConfig, source: Source, split: str, read: str | None, revision: str | None) -> int:
    """Write one split; returns its row count."""
    folder = Path(config.out)
    keep_sources(folder, split, {"source": (config.source, read)})
    dropped: list[str] = []
    rows = read_rows(config, source, read, revision, dropped)
    n_read = len(rows) + len(dropped)
    kept = [row for number, row in enumerate(rows, 1) if _belongs(config, source, number, row)]
    n_kept = len(kept)
    kept = kept[: config.limit]
    if not kept:
        raise UserError(f"{config.name}: none of {n_read} rows is left ({source.keep_note or 'empty source'})")
    inputs = {"rows": hash_rows(rows), "revision": revision}
    mark = fingerprint({**decisive(config), "what": source.what, "keep_note": source.keep_note}, inputs)
    if finished_split(folder, split, mark) is not None:
        return len(kept)
    where = f"{source.hub}@{revision}" if config.source is None else f"a local copy ({Path(config.source).name})"
    notes = [f"source: {where}, split {read or 'whole file'}, {n_read} rows"]
    if dropped:
        notes.append(f"{len(dropped)} rows without an answer were left out")
    if source.keep_note:
        notes.append(f"{source.keep_note}: {n_kept} of {n_read} rows remain")
    if config.limit:
        notes.append(f"first {len(kept)} rows only (--limit)")
    write_split(
        folder,
        split,
        own_table(kept),
        {
            "n_rows": len(kept),
            "n_rows_read": n_read,
            "n_rows_kept_by_filter": n_kept,
            "n_dropped": len(dropped),
            "dropped_ids": dropped,
            "what": source.what,
            "licence": source.licence,
            "revision": revision,
            "notes": notes,
            "run": run_record("prepare", asdict(config), fingerprint=mark, inputs=inputs, n=len(kept)),
        },
    )
    return len(kept)


def _belongs(config: PrepareConfig, source: Source, number: int, row: Row) -> bool:
    try:
        return source.keep is None or source.keep(row)
    except ValueError as error:
        raise UserError(f"{config.source or source.hub}, row {number} (id {row['id']!r}): {error}") from error


def prepare_mixture(config: PrepareConfig) -> dict[str, Any]:
    """UltraChat and the safe rows of BeaverTails, shuffled: the paper's full upstream set.

    ``source`` may be a folder that holds prepared or downloaded copies as ``ultrachat`` and ``beavertails``.
    """
    parts = {}
    for part in ("ultrachat", "beavertails"):
        local = None if config.source is None else str(Path(config.source).expanduser() / part)
        if local is not None and not Path(local).exists():
            raise UserError(f"{local} does not exist; --source needs the folders ultrachat and beavertails in it")
        out = str(Path(config.out).parent / part)
        if local is None or Path(local).resolve() != Path(out).resolve():
            one = PrepareConfig(
                name=part,
                out=out,
                source=local,
                split="train",
                limit=config.limit,
                max_dropped_fraction=config.max_dropped_fraction,
            )
            parts[part] = prepare(one)["dataset"]
        else:
            parts[part] = out  # already prepared there
    return mix(
        MixConfig(
            instruct=parts["ultrachat"],
            instruct_split="train",
            instruct_size=config.instruct_size,
            safety=parts["beavertails"],
            safety_split="train",
            task="upstream",
            sim="full",
            size=None,
            split="train",
            seed=config.seed,
            out=config.out,
        )
    )


def prepare_mt_bench(config: PrepareConfig) -> dict[str, Any]:
    """FastChat's question, reference-answer and judge-prompt files, as they are."""
    step = (
        "clone github.com/lm-sys/FastChat and run python datasets/prepare.py mt_bench "
        "--source FastChat/fastchat/llm_judge/data/mt_bench"
    )
    folder = Path(config.out)
    if config.source is not None:
        base = Path(config.source).expanduser()
        found = {name: _first(base / name, base.parent / name) for name in MT_BENCH_FILES}
    else:
        if not hub_available(timeout_sec=2.0):
            raise UserError(f"the hub cannot be reached (or HF_HUB_OFFLINE=1): {step}")
        from huggingface_hub import hf_hub_download

        places = dict(zip(MT_BENCH_FILES, ("data/mt_bench/", "data/mt_bench/", "data/"), strict=True))
        try:
            found = {
                name: Path(hf_hub_download(MT_BENCH_SPACE, places[name] + name, repo_type="space"))
                for name in MT_BENCH_FILES
            }
        except Exception as error:  # the hub client raises a dozen types; the reason is what the user needs
            raise hub_error(error, "space", MT_BENCH_SPACE, step) from error
    if found["question.jsonl"] is None:
        raise UserError(f"no question.jsonl in {config.source}; {step}")
    hashes = {}
    for name, file in found.items():
        if file is None:
            continue
        with atomic_path(folder / name) as temporary:
            shutil.copyfile(file, temporary)
        hashes[name] = hash_file(folder / name)
    n = len(read_jsonl(folder / "question.jsonl"))
    record = run_record("prepare", asdict(config), n=n, hashes=hashes)
    write_json(folder / "manifest.json", {"what": "MT-Bench", "licence": "Apache-2.0", "n_rows": n, "run": record})
    return {"dataset": config.out, "files": sorted(hashes), "n_questions": n}


def _first(*places: Path) -> Path | None:
    return next((place for place in places if place.is_file()), None)
