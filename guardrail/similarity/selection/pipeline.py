"""Select rows of a pool by similarity to anchor rows: check, compare with what is there, score once, select, write.

``select`` imports torch only when something has to be computed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from guardrail.core import ranks
from guardrail.core.cli import Parser, log
from guardrail.core.errors import UserError
from guardrail.core.options import add_options, decisive, read_options
from guardrail.core.provenance import fingerprint
from guardrail.data.rows import Row, hash_rows, load_rows
from guardrail.similarity.representations.read import identify
from guardrail.similarity.selection import output
from guardrail.similarity.selection.composition import content_hash
from guardrail.similarity.selection.options import SelectionConfig, file_stem

REPRESENTATIONS = {  # the names under which selection.json knows them
    "pool_reps": "dataset_reps_dir",
    "anchor_reps": "anchoring_reps_dir",
    "safe_anchor_reps": "safe_anchoring_reps_dir",
}


def build_parser() -> Parser:
    parser = Parser(description="Select rows of a pool by similarity to anchor rows.")
    add_options(parser, SelectionConfig)
    return parser


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return select(read_options(SelectionConfig, build_parser().parse_args(argv)))


def select(config: SelectionConfig) -> dict[str, Any]:
    """Run the selection; returns paths and headline numbers. All ranks call it, rank 0 writes."""
    config.check()
    rows = load_rows(config.dataset_dir, split=config.split)
    folder = config.folder
    repeated = _repeated_rows(rows) if config.duplicates == "drop" else set()
    n_pool = len(rows) - len(repeated)
    if config.select_n > n_pool:
        dropped = f" ({len(repeated)} duplicates dropped)" if repeated else ""
        raise UserError(f"--select_n {config.select_n} is more than the pool's {n_pool} rows{dropped}; lower it")
    inputs = {"pool": hash_rows(rows), **_identify_representations(config)}
    if config.anchoring_dataset_dir is not None:
        inputs["anchors"] = hash_rows(load_rows(config.anchoring_dataset_dir, split=config.anchoring_split))
    stems = {name: file_stem(name, n_pool if name == "full" else config.select_n) for name in config.selector}
    for stem in stems.values():
        output.keep_rows(folder / f"{stem}.jsonl", (config.dataset_dir, config.anchoring_dataset_dir))
    prints = {name: fingerprint(output.subset_options(config, name), inputs) for name in config.selector}
    sweep_print = fingerprint(decisive(config), inputs) if config.sweep else None
    reused = all(output.is_current(folder, stems[name], prints[name]) for name in config.selector)
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


def _identify_representations(config: SelectionConfig) -> dict[str, str]:
    """Hashes of the representations; stacks the pool's pieces when asked to, the anchors' where it must."""
    out = {}
    for name, flag in REPRESENTATIONS.items():
        path = getattr(config, flag)
        if path is not None:
            stack = config.stack_vector_tf and (name == "pool_reps" or not Path(path).exists())
            out[name] = identify(path, stack)
    return out


def _repeated_rows(rows: list[Row]) -> set[int]:
    """Numbers of rows whose conversation a row with a smaller id has too."""
    seen: set[str] = set()
    out = set()
    for number, row in sorted(enumerate(rows), key=lambda item: str(item[1]["id"])):
        key = content_hash(row)
        if key in seen:
            out.add(number)
        seen.add(key)
    return out
