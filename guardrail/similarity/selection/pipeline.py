"""One selection run: check, compare with what is there, score once, run every selector asked for, write.

``select`` imports torch only when something has to be computed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from guardrail.core import ranks
from guardrail.core.cli import log
from guardrail.core.errors import UserError, unknown
from guardrail.core.provenance import fingerprint
from guardrail.data.rows import Row, hash_rows, load_rows
from guardrail.similarity.representations.read import identify
from guardrail.similarity.selection import output
from guardrail.similarity.selection.composition import content_hash
from guardrail.similarity.selection.names import DUPLICATES, MERGES, SELECTOR_NEEDS, SWEEPS, file_stem


@dataclass(frozen=True)
class SelectionConfig:
    """Resolved options of one run; paths are ``None`` where no selector needs them."""

    pool_data: str
    folder: str
    pool_split: str | None = None
    pool_reps: str | None = None
    anchor_reps: str | None = None
    safe_anchor_reps: str | None = None
    anchor_data: str | None = None
    anchor_split: str | None = None
    selectors: tuple[str, ...] = ("high", "low")
    select_n: int = 100
    avg_n: int = 1
    merge: str = "score"
    duplicates: str = "keep"
    seed: int = 42
    view: str | None = None
    stack: bool = False
    diversity: bool = True
    sweep: tuple[str, ...] = ()

    @property
    def needs(self) -> set[str]:
        return {need for name in self.selectors for need in SELECTOR_NEEDS[name]}

    @property
    def swept_selectors(self) -> tuple[str, ...]:
        return tuple(name for name in self.selectors if SELECTOR_NEEDS[name] == ("scores",))


def check_config(config: SelectionConfig) -> None:
    """Refuse unknown names and impossible combinations before anything is loaded."""
    for name in config.selectors:
        if name not in SELECTOR_NEEDS:
            raise unknown("selector", name, SELECTOR_NEEDS)
    if config.merge not in MERGES:
        raise unknown("--merge", config.merge, MERGES)
    if config.duplicates not in DUPLICATES:
        raise unknown("--duplicates", config.duplicates, DUPLICATES)
    if config.merge != "score" and config.avg_n != 1:
        raise UserError(f"--avg_n only concerns --merge score, not --merge {config.merge}; leave one of them out")
    if config.merge in ("union", "round_robin") and not {"high", "low"} & set(config.selectors):
        raise UserError(f"--merge {config.merge} only concerns the selectors high and low; leave it out")
    for kind in config.sweep:
        if kind not in SWEEPS:
            raise unknown("--sweep", kind, SWEEPS)
    if config.sweep and not config.swept_selectors:
        raise UserError("--sweep compares selectors that use the representations, such as high and low; name one")
    by = ",".join(config.selectors)
    if (config.pool_reps is None) != (config.anchor_reps is None) and "scores" not in config.needs:
        raise UserError("--dataset_reps_dir and --anchoring_reps_dir go together; give both or neither")
    if "scores" in config.needs and (config.pool_reps is None or config.anchor_reps is None):
        raise UserError(f"--selector {by} needs --dataset_reps_dir and --anchoring_reps_dir")
    if "safe_anchors" in config.needs and config.safe_anchor_reps is None:
        raise UserError(
            f"--selector {by} needs --safe_anchoring_reps_dir (--anchoring_reps_dir are the unsafe anchors)"
        )
    if "safe_anchors" not in config.needs and config.safe_anchor_reps is not None:
        raise UserError("--safe_anchoring_reps_dir is for the bi_anchor selectors only; leave it out")
    if "anchor_data" in config.needs and config.anchor_data is None:
        raise UserError(f"--selector {by} needs --anchoring_dataset_dir (the anchors' rows, for their lengths)")


def select(config: SelectionConfig) -> dict[str, Any]:
    """Run the selection; returns paths and headline numbers. All ranks call it, rank 0 writes."""
    check_config(config)
    rows = load_rows(config.pool_data, split=config.pool_split)
    folder = Path(config.folder)
    repeated = _repeated_rows(rows) if config.duplicates == "drop" else set()
    n_pool = len(rows) - len(repeated)
    if config.select_n > n_pool:
        dropped = f" ({len(repeated)} duplicates dropped)" if repeated else ""
        raise UserError(f"--select_n {config.select_n} is more than the pool's {n_pool} rows{dropped}; lower it")
    inputs = {"pool": hash_rows(rows), **_identify_representations(config)}
    if config.anchor_data is not None:
        inputs["anchors"] = hash_rows(load_rows(config.anchor_data, split=config.anchor_split))
    stems = {name: file_stem(name, n_pool if name == "full" else config.select_n) for name in config.selectors}
    for stem in stems.values():
        output.keep_rows(folder / f"{stem}.jsonl", (config.pool_data, config.anchor_data))
    prints = {name: fingerprint(subset_config(config, name), inputs) for name in config.selectors}
    sweep_print = fingerprint({**asdict(config), "folder": None}, inputs) if config.sweep else None
    reused = all(output.is_current(folder, stems[name], prints[name]) for name in config.selectors)
    reused = reused and output.sweep_is_current(folder, sweep_print)
    if reused:
        log(f"{folder} is up to date: {', '.join(stems.values())}")
    else:
        from guardrail.similarity.selection.compute import compute_subsets

        with ranks.process_group():
            compute_subsets(config, rows, repeated, stems, prints, inputs, sweep_print)
    subsets = output.read_selection(folder)["subsets"] if ranks.is_main() else {}
    return {
        "folder": str(folder),
        "selection": str(folder / output.SELECTION),
        "files": {name: str(folder / f"{stem}.jsonl") for name, stem in stems.items()},
        "n": {name: subsets[stem]["n"] for name, stem in stems.items() if stem in subsets},
        "mean_score": {name: subsets[stem]["scores"].get("mean") for name, stem in stems.items() if stem in subsets},
        **({"sweep": str(folder / output.SWEEP)} if config.sweep else {}),
        "reused": reused,
    }


def subset_config(config: SelectionConfig, selector: str) -> dict[str, Any]:
    """The options that decide one subset: no output folder, no other selectors."""
    out = asdict(config)
    for key in (
        "folder",
        "selectors",
        "sweep",
        "pool_reps",
        "anchor_reps",
        "safe_anchor_reps",
        "pool_data",
        "anchor_data",
    ):
        del out[key]
    return {**out, "selector": selector}


def _identify_representations(config: SelectionConfig) -> dict[str, str]:
    """Hashes of the representations; stacks the pool's pieces when asked to, the anchors' where it must."""
    out = {}
    for name in ("pool_reps", "anchor_reps", "safe_anchor_reps"):
        path = getattr(config, name)
        if path is not None:
            out[name] = identify(path, config.stack and (name == "pool_reps" or not Path(path).exists()))
    return out


def _repeated_rows(rows: list[Row]) -> set[int]:
    """Numbers of rows whose conversation occurred before."""
    seen: set[str] = set()
    out = set()
    for number, row in enumerate(rows):
        key = content_hash(row)
        if key in seen:
            out.add(number)
        seen.add(key)
    return out
