"""What the alignment subsets of a study are made of, how similar they are to each task, and a map of all of it.

The safety rows of every arm are read back from the training split that was really used, so that random and full
subsets are described like selected ones. Similarity is the selection's own score: the mean over the subset's rows of
the largest cosine to the task's rows. An arm's numbers are means over its seeds' splits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from guardrail.core.cli import log
from guardrail.core.errors import UserError
from guardrail.core.files import hash_file, hash_json, read_json, write_json
from guardrail.data.rows import load_rows
from guardrail.study.config import Source
from guardrail.study.grid import Alignment, Cell, Grid, sizeless
from guardrail.study.results import Results

VERSION = 3  # raise when the same files give other descriptions
CACHE = "subsets.json"
MAP_FILE = "map.json"
MAX_POOL_POINTS = 1200
MAX_TASK_POINTS = 300
VISIBLE_WORDS = 3
BLOCK_BYTES = 64 << 20
RENAMED = "#safety"  # what guardrail.data.mix adds to a safety row whose id an instruction has as well


def representation_folder(grid: Grid, name: str) -> Path:
    """The representation store of `safety_pool` or of a task."""
    return grid.folder / "similarity" / name / "reps" / "extraction"


def training_split(grid: Grid, alignment: Alignment) -> Path:
    """The mixed rows that this alignment was trained on."""
    return grid.folder / "data" / f"seed{alignment.seed}" / "data" / f"{alignment.split}-00000-of-00001.parquet"


def instruction_ids(source: Source, size: int | None) -> frozenset[str]:
    """Ids of the instructions, read as `guardrail.data.mix` reads them."""
    rows = load_rows(source.source, split=source.split, limit=size, need_answer=True, max_dropped_fraction=1.0)
    return frozenset(row["id"] for row in rows)


def safety_ids(split: Path, instructions: frozenset[str], pool: frozenset[str]) -> list[str]:
    """Ids, as the pool has them, of the safety rows of a training split.

    An id alone does not say where a row is from: an instruction may have the id of a pool row. The mixture then
    renamed the safety row, and only then; so a row is the pool's if no instruction has its id, or under the new name.
    Raises ``UserError`` when there is none.
    """
    import pyarrow.parquet

    found = []
    with pyarrow.parquet.ParquetFile(split) as file:
        row_ids = file.read(columns=["id"])["id"].to_pylist()
    for row_id in row_ids:
        original = row_id.removesuffix(RENAMED)
        if row_id in pool and row_id not in instructions:
            found.append(row_id)
        elif original != row_id and original in pool and original in instructions:
            found.append(original)
    if not found:
        raise UserError(f"{split} holds no row of the safety pool")
    return found


def _kept(cache: Path, key: str, make: Any, what: str) -> dict[str, Any] | None:
    """The content of ``cache`` if it has this key, else of ``make()``, which is then kept; ``None`` if it cannot."""
    if cache.is_file():
        known = read_json(cache)
        if known.get("key") == key:
            return known
    log(f"{what} ...")
    try:
        data = {"key": key, **make()}
    except UserError as error:
        log(f"{what}: not possible: {error}")
        return None
    write_json(cache, data, indent=None if cache.name == MAP_FILE else 1)
    return data


def _stores(results: Results) -> dict[str, Path]:
    """The representation stores that are done for the study as it is set now."""
    grid = results.grid
    folders = {name: representation_folder(grid, name) for name in ("safety_pool", *grid.study.anchors)}
    return {name: folder for name, folder in folders.items() if results.done(folder)}


def _key(grid: Grid, stores: dict[str, Path], splits: list[Path], **more: Any) -> str:
    return hash_json(
        {
            "version": VERSION,
            "stores": [read_json(folder / "manifest.json")["fingerprint"] for folder in stores.values()],
            "splits": {str(path.relative_to(grid.folder)): hash_file(path) for path in sorted(set(splits))},
            **more,
        }
    )


def describe_subsets(results: Results, finished: set[Cell]) -> list[dict[str, Any]]:
    """One entry per task x subset x size of the ``finished`` cells; kept in `subsets.json` while they are unchanged.

    ``similarity`` (cosine), ``diversity`` (Vendi score), ``log_det_fraction``, ``mean_pairwise_cosine``,
    ``response_chars``, ``list_share_percent``, ``categories``, ``n``; of the task's rows ``task_diversity``,
    ``task_response_chars``, ``task_list_share_percent``.
    """
    grid, stores = results.grid, _stores(results)
    if "safety_pool" not in stores:
        return []
    arms: dict[tuple[str, str, int], list[Path]] = {}
    for cell in grid.cells:
        split = training_split(grid, cell.alignment)
        if cell in finished and cell.subset != "none" and results.done(split) and cell.anchor in stores:
            splits = arms.setdefault((grid.study.utility_of(cell.task), cell.subset, cell.size), [])
            splits += [split] if split not in splits else []
    key = _key(grid, stores, [path for paths in arms.values() for path in paths], arms=sorted(arms))
    what = f"describing {len(arms)} subsets"
    found = _kept(grid.folder / CACHE, key, lambda: {"subsets": _describe(grid, arms)}, what)
    return found["subsets"] if found else []


def _describe(grid: Grid, arms: dict[tuple[str, str, int], list[Path]]) -> list[dict[str, Any]]:
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
    instructions = instruction_ids(grid.study.instruct, grid.study.instruct_size)
    homes = {grid.study.utility_of(name): task.aligned_as or name for name, task in grid.study.tasks.items()}
    anchors = {
        name: read_representations(representation_folder(grid, name)) for name in {homes[task] for task, _, _ in arms}
    }
    of_anchor = {name: score_pool(pool.matrix, one.matrix) for name, one in anchors.items()}
    scores = {task: of_anchor[homes[task]] for task, _, _ in arms}
    tasks = {
        task: _describe_task(grid.study.anchors[homes[task]], anchors[homes[task]].matrix)
        for task in dict.fromkeys(task for task, _, _ in arms)
    }
    described: dict[Path, dict[str, Any]] = {}
    out = []
    for (task, subset, size), splits in arms.items():
        parts = []
        for split in splits:
            if split not in described:
                members = [place[row_id] for row_id in safety_ids(split, instructions, frozenset(place))]
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
                **tasks[task],
                "splits": sorted({str(split.relative_to(grid.folder)) for split in splits}),
            }
        )
    return out


def _describe_task(source: Source, matrix: Any) -> dict[str, float]:
    """Length, lists and diversity of a task's rows: rivals of the pair's similarity that are the task's own."""
    from guardrail.similarity.selection.composition import describe_rows
    from guardrail.similarity.selection.diversity import describe_diversity

    composition = describe_rows(load_rows(source.source, split=source.split))
    return {
        "task_diversity": round(float(describe_diversity(matrix)["vendi_score"]), 6),
        "task_response_chars": round(float(composition["length_chars"]["mean"]), 6),
        "task_list_share_percent": round(100 * float(composition["list_fraction"]), 4),
    }


def redact(text: str, words: int = VISIBLE_WORDS) -> str:
    """The first ``words`` words and how many follow: enough to recognise a row, too little to use it."""
    parts = text.split()
    hidden = len(parts) - words
    return " ".join(parts) if hidden <= 0 else f"{' '.join(parts[:words])} ▒▒▒ ({hidden} more words)"


def principal_axes(matrices: list[Any], n_axes: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean (D,), first axes (n_axes, D) and shares of variance (D,) of the unit rows of all ``matrices``, (N, D) each.

    From the D x D covariance, summed in blocks of 64 MiB: a pool is never copied. An axis points to where its entry of
    largest size is positive.
    """
    D = matrices[0].shape[1]
    total, products, n = np.zeros(D), np.zeros((D, D)), 0
    step = max(1, BLOCK_BYTES // (8 * D))
    for matrix in matrices:
        for start in range(0, matrix.shape[0], step):
            block = unit_rows(matrix[start : start + step])
            total += block.sum(axis=0)
            products += block.T @ block
            n += len(block)
    mean = total / n
    values, vectors = np.linalg.eigh(products / n - np.outer(mean, mean))
    values, axes = np.maximum(values[::-1], 0.0), vectors[:, ::-1][:, :n_axes].T
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
    return mean, axes, values / max(values.sum(), 1e-300)


def unit_rows(matrix: Any) -> np.ndarray:
    """Rows of a tensor (N, D) at length 1, float64; a zero row stays."""
    rows = matrix.double().numpy()
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def representation_map(results: Results, finished: set[Cell]) -> dict[str, Any] | None:
    """Points of pool and tasks on two principal components; ``None`` without representations.

    A point: ``x``, ``y``, ``set`` (`pool` or the task), ``text`` (redacted), ``category``, ``similarity`` per task and
    ``selected`` (`task:subset` of the largest size). Kept in `map.json` while the stores and splits are unchanged.
    """
    grid, stores = results.grid, _stores(results)
    if len(stores) < 1 + len(grid.study.anchors):
        return None
    size, seed = max(grid.study.subset_sizes), grid.study.seeds[0]
    splits = {
        f"{cell.anchor}:{cell.subset}": training_split(grid, cell.alignment)
        for cell in grid.cells
        if cell in finished and cell.subset in ("high", "low") and cell.size == size and cell.seed == seed
    }
    splits = {name: path for name, path in splits.items() if results.done(path)}
    if not finished:
        return None
    key = _key(grid, stores, list(splits.values()))
    return _kept(grid.folder / MAP_FILE, key, lambda: _map(grid, stores, splits), "drawing the map of representations")


def _map(grid: Grid, folders: dict[str, Path], splits: dict[str, Path]) -> dict[str, Any]:
    import torch

    from guardrail.similarity.representations.read import read_representations
    from guardrail.similarity.scorers.cosines import score_pool

    stores = {name: read_representations(folder) for name, folder in folders.items()}
    pool = stores["safety_pool"]
    scores = {task: score_pool(pool.matrix, stores[task].matrix) for task in grid.study.anchors}
    mean, axes, share = principal_axes([store.matrix for store in stores.values()])
    instructions = instruction_ids(grid.study.instruct, grid.study.instruct_size)
    known = frozenset(pool.ids or ())
    selected = {name: set(safety_ids(path, instructions, known)) for name, path in splits.items()}
    rng = np.random.default_rng(0)
    points = []
    for name, store in stores.items():
        in_pool = name == "safety_pool"
        source = grid.study.safety_pool if in_pool else grid.study.anchors[name]
        rows = {row["id"]: row for row in load_rows(source.source, split=source.split)}
        assert store.ids is not None
        keep = np.sort(rng.permutation(len(store.ids))[: MAX_POOL_POINTS if in_pool else MAX_TASK_POINTS])
        place = (unit_rows(store.matrix[torch.from_numpy(keep)]) - mean) @ axes.T
        for i, (x, y) in zip(keep, place, strict=True):
            row = rows[store.ids[i]]
            point: dict[str, Any] = {
                "x": round(float(x), 4),
                "y": round(float(y), 4),
                "set": "pool" if in_pool else name,
                "text": redact(next(m["content"] for m in row["messages"] if m["role"] == "user")),
                "category": str(row.get("category") or row.get("format") or ""),
                "selected": [key for key, ids in selected.items() if in_pool and row["id"] in ids],
            }
            if in_pool:
                point["similarity"] = {task: round(float(values[i]), 3) for task, values in scores.items()}
            points.append(point)
    return {
        "tasks": list(grid.study.anchors),
        "explained_percent": [round(100 * float(part), 2) for part in share[:2]],
        "n_pool": len(known),
        "points": points,
    }
