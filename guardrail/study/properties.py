"""What the alignment subsets of a study are made of, and how similar they are to each task.

The safety rows of every arm are read back from the training split that was really used (joined to the pool by id), so
that random and full subsets are described like selected ones. Similarity is the selection's own score: the mean over
the subset's rows of the largest cosine to the task's rows. An arm's numbers are means over its seeds' splits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from guardrail.core.cli import log
from guardrail.core.errors import UserError
from guardrail.core.files import hash_file, hash_json, read_json, write_json
from guardrail.data.rows import load_rows
from guardrail.study.grid import Alignment, Grid, sizeless

CACHE = "subsets.json"


def representation_folder(grid: Grid, name: str) -> Path:
    """The representation store of `safety_pool` or of a task."""
    return grid.folder / "similarity" / name / "reps" / "extraction"


def training_split(grid: Grid, alignment: Alignment) -> Path:
    """The mixed rows that this alignment was trained on."""
    return grid.folder / "data" / f"seed{alignment.seed}" / "data" / f"train_{alignment.name}-00000-of-00001.parquet"


def describe_subsets(grid: Grid) -> list[dict[str, Any]]:
    """One entry per task x subset x size whose files are there; kept in `subsets.json` while they are unchanged.

    ``similarity`` (cosine), ``diversity`` (Vendi score), ``log_det_fraction``, ``mean_pairwise_cosine``,
    ``response_chars``, ``list_share_percent``, ``categories``, ``n``.
    """
    pool_store = representation_folder(grid, "safety_pool")
    if not (pool_store / "manifest.json").is_file():
        return []
    arms: dict[tuple[str, str, int], list[Path]] = {}
    for cell in grid.cells:
        split = training_split(grid, cell.alignment)
        task_store = representation_folder(grid, cell.task)
        if cell.subset != "none" and split.is_file() and (task_store / "manifest.json").is_file():
            arms.setdefault((cell.task, cell.subset, cell.size), []).append(split)
    stores = [pool_store, *(representation_folder(grid, task) for task in grid.study.tasks)]
    files = sorted({path for paths in arms.values() for path in paths})
    key = hash_json(
        {
            "splits": {str(path.relative_to(grid.folder)): hash_file(path) for path in files},
            "stores": [
                read_json(s / "manifest.json")["fingerprint"] for s in stores if (s / "manifest.json").is_file()
            ],
            "arms": sorted(arms),
        }
    )
    cache = grid.folder / CACHE
    if cache.is_file() and read_json(cache)["key"] == key:
        return read_json(cache)["subsets"]
    log(f"describing {len(arms)} subsets ...")
    try:
        subsets = _describe(grid, arms)
    except UserError as error:
        log(f"subsets are not described: {error}")
        return []
    write_json(cache, {"key": key, "subsets": subsets})
    return subsets


def _describe(grid: Grid, arms: dict[tuple[str, str, int], list[Path]]) -> list[dict[str, Any]]:
    import numpy as np
    import torch

    from guardrail.similarity.representations.read import read_representations
    from guardrail.similarity.scorers.cosines import score_pool
    from guardrail.similarity.selection.composition import describe_rows
    from guardrail.similarity.selection.diversity import describe_diversity

    source = grid.study.safety_pool
    rows = {row["id"]: row for row in load_rows(source.source, split=source.split)}
    pool = read_representations(representation_folder(grid, "safety_pool"))
    assert pool.ids is not None
    place = {row_id: number for number, row_id in enumerate(pool.ids)}
    scores = {
        task: score_pool(pool.matrix, read_representations(representation_folder(grid, task)).matrix)
        for task in {task for task, _, _ in arms}
    }
    described: dict[Path, dict[str, Any]] = {}
    out = []
    for (task, subset, size), splits in arms.items():
        parts = []
        for split in splits:
            if split not in described:
                ids = [row["id"].removesuffix("#safety") for row in load_rows(split)]
                members = [place[row_id] for row_id in ids if row_id in place]
                if not members:
                    raise UserError(f"{split} holds no row of the safety pool")
                described[split] = {
                    "members": members,
                    "composition": describe_rows([rows[pool.ids[i]] for i in members]),
                    "diversity": describe_diversity(pool.matrix[torch.tensor(members)]),
                }
            facts = described[split]
            parts.append({**facts, "similarity": float(scores[task][facts["members"]].mean())})

        def mean(*path: str, parts: list[dict[str, Any]] = parts) -> float:
            values = []
            for part in parts:
                value: Any = part
                for key in path:
                    value = value[key]
                values.append(value)
            return round(float(np.mean(values)), 6)

        out.append(
            {
                "task": task,
                "subset": subset,
                "subset_size": None if sizeless(subset) else size,
                "n": parts[0]["composition"]["n"],
                "similarity": mean("similarity"),
                "diversity": mean("diversity", "vendi_score"),
                "log_det_fraction": mean("diversity", "log_det_fraction"),
                "mean_pairwise_cosine": mean("diversity", "mean_pairwise_cosine"),
                "response_chars": mean("composition", "length_chars", "mean"),
                "list_share_percent": round(100 * mean("composition", "list_fraction"), 4),
                "duplicate_rows": parts[0]["composition"]["duplicate_rows"],
                "categories": parts[0]["composition"]["categories"],
                "splits": sorted({str(split.relative_to(grid.folder)) for split in splits}),
            }
        )
    return out
