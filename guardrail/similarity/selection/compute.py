"""The computing half of a selection run: align rows with representations, score, select, describe, write."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from guardrail.core import ranks
from guardrail.core.cli import log
from guardrail.core.errors import UserError
from guardrail.core.files import write_json
from guardrail.core.provenance import run_record
from guardrail.data.rows import Row, load_rows
from guardrail.similarity.representations.read import (
    Representations,
    align_rows,
    check_comparable,
    read_representations,
)
from guardrail.similarity.scorers import Inputs, cosines, score_rows
from guardrail.similarity.selection import diversity, output, ranking, sweep
from guardrail.similarity.selection.composition import describe_rows, length_chars, score_correlations
from guardrail.similarity.selection.options import SELECTORS, SelectionConfig
from guardrail.similarity.selection.selectors import Pool

Array = np.ndarray[Any, Any]
ENTROPY_CLUSTERS = 20
ENTROPY_SAMPLE = 20_000


def compute_subsets(
    config: SelectionConfig,
    rows: list[Row],
    repeated: set[int],
    stems: dict[str, str],
    prints: dict[str, str],
    inputs: dict[str, str],
    sweep_print: str | None = None,
) -> None:
    """Score on all ranks; select and write on rank 0."""
    place = {row["id"]: number for number, row in enumerate(rows)}
    reps, anchors, notes, n_without = None, None, [], 0
    pool_rows = rows
    if config.dataset_reps_dir is not None and config.anchoring_reps_dir is not None:
        reps = read_representations(config.dataset_reps_dir, config.view)
        anchors = read_representations(config.anchoring_reps_dir, config.view)
        notes += check_comparable(reps, anchors)
        pool_rows, n_without = align_rows(rows, reps, config.dataset_dir)
        views = sweep.sweep_views(reps, anchors, config.sweep) if config.sweep else []
    keep = [i for i, row in enumerate(pool_rows) if place[row["id"]] not in repeated]
    if config.select_n > len(keep):
        raise UserError(
            f"--select_n {config.select_n} is more than the {len(keep)} rows left: {n_without} have no "
            f"representation (too long), {len(repeated)} are duplicates"
        )
    scores = None
    if reps is not None and anchors is not None:
        avg_n = len(anchors) if config.merge == "mean" else config.avg_n
        part = rows_of(reps.matrix, keep)
        inputs_ = Inputs(representations=part, anchors=anchors.matrix, avg_n=avg_n, seed=config.seed)
        scores = score_rows("similarity", [pool_rows[i] for i in keep], inputs_)
    if not ranks.is_main():
        return
    # Selectors see the pool in the order of its ids: every tie and every draw falls the same way in whatever order the
    # rows were written. (Scores do not depend on the order; reading in the file's is faster.)
    by_id = sorted(range(len(keep)), key=lambda i: str(pool_rows[keep[i]]["id"]))
    keep = [keep[i] for i in by_id]
    scores = None if scores is None else scores[by_id]
    matrix = None if reps is None else rows_of(reps.matrix, keep)
    pool_rows = [pool_rows[i] for i in keep]
    pool = Pool(pool_rows, config.seed, matrix, None if anchors is None else anchors.matrix, scores, config.merge)
    _add_optional(pool, config, reps)
    chosen = {name: SELECTORS.load(name)(pool, config.select_n) for name in config.selector}
    for name, indices in chosen.items():
        assert len(set(indices.tolist())) == len(indices) == (len(pool) if name == "full" else config.select_n)
    row_numbers = np.asarray([place[row["id"]] for row in pool_rows], dtype=np.int64)
    clusters = _pool_clusters(pool, config)
    subsets = {}
    for name, indices in chosen.items():
        files = output.write_subset(
            config.folder,
            stems[name],
            [pool_rows[i] for i in indices],
            row_numbers[indices],
            None if scores is None else scores[indices],
        )
        overlap = {stems[other]: len(set(indices.tolist()) & set(rows_.tolist())) for other, rows_ in chosen.items()}
        subsets[stems[name]] = {
            "selector": name,
            "rule": SELECTORS.facts(name).get("rule", ""),
            "parameters": output.subset_options(config, name),
            "n": len(indices),
            "scores": _describe_scores(pool, name, indices),
            "overlap": {other: count for other, count in overlap.items() if other != stems[name]},
            "anchors": _effective_anchors(matrix, anchors, indices),
            "composition": describe_rows([pool_rows[i] for i in indices]),
            "diversity": _diversity(pool, config, name, indices, clusters),
            "notes": pool.notes.get(name, []),
            "fingerprint": prints[name],
            **files,
            "run": run_record(
                "select", output.subset_options(config, name), n=len(indices), seed=config.seed, inputs=inputs
            ),
        }
    output.merge_selection(config.folder, subsets, _shared(pool, config, rows, reps, anchors, notes, n_without))
    if config.sweep:
        assert reps is not None and anchors is not None
        _sweep(pool, config, keep, reps, anchors, views, inputs, sweep_print)
    log(f"{config.folder}: " + ", ".join(f"{stem} ({entry['n']} rows)" for stem, entry in subsets.items()))


def rows_of(matrix: torch.Tensor, rows: list[int]) -> cosines.Matrix:
    """These rows of ``matrix``: a view, not a copy, for the pool may be larger than the memory that is left."""
    return matrix if rows == list(range(len(matrix))) else cosines.RowView(matrix, np.asarray(rows))


def _add_optional(pool: Pool, config: SelectionConfig, reps: Representations | None) -> None:
    if "anchor_data" in config.needs:
        assert config.anchoring_dataset_dir is not None
        pool.anchor_lengths = [
            length_chars(row) for row in load_rows(config.anchoring_dataset_dir, split=config.anchoring_split)
        ]
    if "safe_anchors" in config.needs:
        assert config.safe_anchoring_reps_dir is not None and reps is not None and pool.anchors is not None
        safe = read_representations(config.safe_anchoring_reps_dir, config.view)
        check_comparable(reps, safe)
        pool.bi_anchor_scores = cosines.mean_scores(reps.matrix if pool.matrix is None else pool.matrix, pool.anchors)
        pool.bi_anchor_scores -= cosines.mean_scores(reps.matrix if pool.matrix is None else pool.matrix, safe.matrix)


def _sweep(
    pool: Pool,
    config: SelectionConfig,
    keep: list[int],
    reps: Representations,
    anchors: Representations,
    views: list[str],
    inputs: dict[str, str],
    sweep_print: str | None,
) -> None:
    """Select under every view and write the agreement; rank 0 only, one view in memory at a time."""

    def choose(view: str) -> dict[str, Array]:
        whole = read_representations(reps.path, view).matrix
        matrix = rows_of(whole, keep)
        others = read_representations(anchors.path, view).matrix
        scores = cosines.score_pool(matrix, others, len(others) if config.merge == "mean" else config.avg_n)
        under = Pool(pool.rows, config.seed, matrix, others, scores, config.merge, lengths=pool.lengths)
        return {name: SELECTORS.load(name)(under, config.select_n) for name in config.swept_selectors}

    from guardrail.similarity.figures import draw_sweep, write_png

    result = sweep.run_sweep(views, config.swept_selectors, len(pool), choose)
    folder = config.folder
    write_png(folder / "sweep.png", draw_sweep(result))
    run = run_record("select_sweep", {"sweep": list(config.sweep or ()), "views": views}, n=len(pool), inputs=inputs)
    write_json(folder / output.SWEEP, {**result, "figure": "sweep.png", "fingerprint": sweep_print, "run": run})


def _describe_scores(pool: Pool, name: str, indices: Array) -> dict[str, Any]:
    values = pool.bi_anchor_scores if name.startswith("bi_anchor") else pool.scores
    if values is None:
        return {"scored": False}
    part = values[indices].astype(np.float64)
    similarity = None if pool.scores is None else float(pool.scores[indices].astype(np.float64).mean())
    return {
        "scored": True,
        "mean": round(float(part.mean()), 6),
        "min": round(float(part.min()), 6),
        "max": round(float(part.max()), 6),
        "mean_similarity": None if similarity is None else round(similarity, 6),
    }


def _effective_anchors(
    matrix: cosines.Matrix | None, anchors: Representations | None, indices: Array
) -> dict[str, Any]:
    """How many anchors a subset hangs on: inverse Simpson index 1 / sum p_j^2 of the selected rows' nearest anchors."""
    if matrix is None or anchors is None:
        return {}
    nearest, _ = cosines.nearest_anchors(cosines.RowView(matrix, indices), anchors.matrix)
    used, counts = np.unique(nearest, return_counts=True)
    share = counts / counts.sum()
    top = np.argsort(-counts, kind="stable")[:5]
    return {
        "n_anchors": len(anchors),
        "n_used": len(used),
        "effective_number": round(float(1.0 / (share**2).sum()), 3),
        "most_used": [{"anchor": _anchor_name(anchors, int(used[i])), "rows": int(counts[i])} for i in top],
    }


def _anchor_name(anchors: Representations, number: int) -> str | int:
    return number if anchors.ids is None else anchors.ids[number]


def _pool_clusters(pool: Pool, config: SelectionConfig) -> Array | None:
    """k-means labels of the pool, for the cluster entropy; fitted on at most 20,000 rows."""
    if not config.diversity or pool.matrix is None or len(pool) < 2 * ENTROPY_CLUSTERS:
        return None
    from guardrail.similarity.clustering.clusters import label_rows

    return label_rows(pool.matrix, ENTROPY_CLUSTERS, config.seed, sample=ENTROPY_SAMPLE)


def _diversity(
    pool: Pool, config: SelectionConfig, name: str, indices: Array, clusters: Array | None
) -> dict[str, Any] | None:
    if not config.diversity or pool.matrix is None:
        return None
    whole = name == "full"
    rows = pool.matrix if whole else cosines.RowView(pool.matrix, indices)
    return diversity.describe_diversity(rows, None if whole else pool.matrix, clusters, indices)


def _shared(
    pool: Pool,
    config: SelectionConfig,
    rows: list[Row],
    reps: Representations | None,
    anchors: Representations | None,
    notes: list[str],
    n_without: int,
) -> dict[str, Any]:
    out: dict[str, Any] = {
        "pool": {
            "path": config.dataset_dir,
            "split": config.split,
            "n": len(rows),
            "n_without_representation": n_without,
            "n_used": len(pool),
            "duplicates": config.duplicates,
            "composition": describe_rows(rows),
            "representations": None if reps is None else reps.describe(),
        },
        "anchors": None if anchors is None else anchors.describe(),
        "notes": notes,
        "scores": {"scored": False},
        "run": run_record("select", {"selectors": list(config.selector), "folder": str(config.folder)}, n=len(rows)),
    }
    if pool.scores is not None:
        out["scores"] = {
            "scored": True,
            "rule": "mean of the avg_n largest cosines to the anchors, float32",
            "avg_n": len(anchors) if config.merge == "mean" and anchors is not None else config.avg_n,
            "ties": ranking.tie_report(pool.scores, config.select_n),
            **score_correlations(pool.scores, pool.rows),
        }
    return out
