"""Data of the representation map and of the learning curves, small enough to sit in a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from guardrail.core.cli import log
from guardrail.core.errors import UserError
from guardrail.core.files import hash_json, read_json, read_jsonl, write_json
from guardrail.data.rows import load_rows
from guardrail.study.grid import Grid
from guardrail.study.properties import representation_folder, training_split

MAP_FILE = "map.json"
MAX_POOL_POINTS = 1200
MAX_TASK_POINTS = 300
MAX_CURVE_POINTS = 120
VISIBLE_WORDS = 3


def redact(text: str, words: int = VISIBLE_WORDS) -> str:
    """The first ``words`` words and how many follow: enough to recognise a row, too little to use it."""
    parts = text.split()
    hidden = len(parts) - words
    return " ".join(parts) if hidden <= 0 else f"{' '.join(parts[:words])} ▒▒▒ ({hidden} more words)"


def representation_map(grid: Grid) -> dict[str, Any] | None:
    """Points of pool and tasks on two principal components; ``None`` without representations.

    A point: ``x``, ``y``, ``set`` (`pool` or the task), ``text`` (redacted), ``category``, ``similarity`` per task and
    ``selected`` (`task:subset` of the largest size). Kept in `map.json` while the stores and splits are unchanged.
    """
    names = ["safety_pool", *grid.study.tasks]
    folders = {name: representation_folder(grid, name) for name in names}
    if not all((folder / "manifest.json").is_file() for folder in folders.values()):
        return None
    size, seed = max(grid.study.subset_sizes), grid.study.seeds[0]
    splits = {
        f"{cell.task}:{cell.subset}": training_split(grid, cell.alignment)
        for cell in grid.cells
        if cell.subset in ("high", "low") and cell.size == size and cell.seed == seed
    }
    splits = {name: path for name, path in splits.items() if path.is_file()}
    stores = [read_json(folder / "manifest.json")["fingerprint"] for folder in folders.values()]
    key = hash_json({"stores": stores, "splits": {n: str(p.relative_to(grid.folder)) for n, p in splits.items()}})
    cache = grid.folder / MAP_FILE
    if cache.is_file() and read_json(cache)["key"] == key:
        return read_json(cache)
    try:
        data = {"key": key, **_map(grid, folders, splits)}
    except UserError as error:
        log(f"no representation map: {error}")
        return None
    write_json(cache, data, indent=None)
    return data


def _map(grid: Grid, folders: dict[str, Path], splits: dict[str, Path]) -> dict[str, Any]:
    import numpy as np

    from guardrail.similarity.representations.read import read_representations
    from guardrail.similarity.scorers.cosines import score_pool

    stores = {name: read_representations(folder) for name, folder in folders.items()}
    pool = stores["safety_pool"]
    scores = {task: score_pool(pool.matrix, stores[task].matrix) for task in grid.study.tasks}
    unit = {name: _unit(store.matrix.float().numpy()) for name, store in stores.items()}
    together = np.concatenate(list(unit.values()))
    mean = together.mean(axis=0)
    _, values, axes = np.linalg.svd(together - mean, full_matrices=False)
    share = values**2 / (values**2).sum()
    selected = {name: {row["id"].removesuffix("#safety") for row in load_rows(path)} for name, path in splits.items()}
    rng = np.random.default_rng(0)
    points = []
    for name, store in stores.items():
        source = grid.study.safety_pool if name == "safety_pool" else grid.study.tasks[name].train
        rows = {row["id"]: row for row in load_rows(source.source, split=source.split)}
        assert store.ids is not None
        limit = MAX_POOL_POINTS if name == "safety_pool" else MAX_TASK_POINTS
        keep = np.sort(rng.permutation(len(store.ids))[:limit])
        place = (unit[name] - mean) @ axes[:2].T
        for i in keep:
            row = rows[store.ids[i]]
            point: dict[str, Any] = {
                "x": round(float(place[i, 0]), 4),
                "y": round(float(place[i, 1]), 4),
                "set": "pool" if name == "safety_pool" else name,
                "text": redact(next(m["content"] for m in row["messages"] if m["role"] == "user")),
                "category": str(row.get("category") or row.get("format") or ""),
                "selected": [key for key, ids in selected.items() if name == "safety_pool" and row["id"] in ids],
            }
            if name == "safety_pool":
                point["similarity"] = {task: round(float(values[i]), 3) for task, values in scores.items()}
            points.append(point)
    return {
        "tasks": list(grid.study.tasks),
        "explained_percent": [round(100 * float(part), 2) for part in share[:2]],
        "n_pool": len(pool.ids or []),
        "points": points,
    }


def _unit(matrix: Any) -> Any:
    import numpy as np

    return matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)


def loss_curves(grid: Grid) -> list[dict[str, Any]]:
    """Training losses of every finished alignment and fine-tuning, thinned to 120 points (means of equal runs)."""
    jobs = [("alignment", a.subset, a.task, a.seed, grid.aligned_folder(a)) for a in grid.alignments]
    jobs += [("fine-tuning", c.subset, c.task, c.seed, grid.cell_folder(c)) for c in grid.cells]
    curves = []
    for stage, subset, task, seed, folder in jobs:
        path = folder / "losses.jsonl"
        if not path.is_file():
            continue
        rows = [row for _, row in read_jsonl(path)]
        losses = [row["loss"] for row in rows if row.get("loss") is not None]
        if not losses:
            continue
        width = -(-len(losses) // MAX_CURVE_POINTS)
        parts = [losses[i : i + width] for i in range(0, len(losses), width)]
        curves.append(
            {
                "stage": stage,
                "subset": subset,
                "task": task,
                "seed": seed,
                "step": [min((i + 1) * width, len(losses)) for i in range(len(parts))],
                "loss": [round(sum(part) / len(part), 5) for part in parts],
            }
        )
    return curves
