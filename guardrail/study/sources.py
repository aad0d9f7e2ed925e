"""How many rows a study's sources have, from file metadata where the format has it."""

from __future__ import annotations

from pathlib import Path

from guardrail.core.errors import UserError, unknown
from guardrail.data.rows import list_splits
from guardrail.study.config import Source, Study


def count_rows(source: Source) -> int | None:
    """Rows of a local source, from file metadata where the format has it; ``None`` for the hub.

    Raises ``UserError`` for a wrong split or a missing file.
    """
    path = Path(source.source)
    if not path.exists():
        if path.suffix or source.source.count("/") != 1:
            raise UserError(f"no such file or folder: {source.source}")
        return None
    files = [path]
    if path.is_dir():
        splits = list_splits(path)
        if source.split not in splits:
            raise unknown(f"split of {path}:", source.split, sorted(splits))
        files = splits[source.split]
    if all(file.suffix == ".parquet" for file in files):
        import pyarrow.parquet

        return sum(pyarrow.parquet.read_metadata(file).num_rows for file in files)
    from guardrail.data.rows import load_rows

    return len(load_rows(path, source.split))


def pool_rows(study: Study) -> int | None:
    """Rows of the safety pool; ``UserError`` where a subset is larger than it."""
    pool = count_rows(study.safety_pool)
    largest = max(study.subset_sizes)
    if pool is not None and largest > pool:
        raise UserError(
            f"subset size {largest} is larger than the safety pool {study.safety_pool.source}:"
            f"{study.safety_pool.split} ({pool} rows); choose at most {pool}"
        )
    return pool
