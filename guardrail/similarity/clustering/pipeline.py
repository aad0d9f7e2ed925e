"""The group of a data set that is most alike inside: cluster over several seeds, describe, choose, draw, write.

<folder>/
  cluster-00.jsonl ...                     rows of every cluster, nearest to its centre first (noise.jsonl: hdbscan)
  data/<split>-00000-of-00001.parquet      the chosen group as a split: load_rows(folder, split=...)
  group.jsonl                              the same rows as JSON lines
  labels.npy                               cluster number of every row, in data order
  clusters.png                             two principal components
  clusters.json                            written last
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from guardrail.core.cli import Parser, log
from guardrail.core.errors import UserError
from guardrail.core.files import atomic_path, read_json, write_json, write_jsonl
from guardrail.core.options import add_options, decisive, read_options
from guardrail.core.provenance import fingerprint, run_record
from guardrail.data.rows import Row, hash_rows, load_rows
from guardrail.similarity.clustering.options import DEFAULT_CLUSTERS, SEEDED, ClusteringConfig
from guardrail.similarity.representations.read import identify

RESULT = "clusters.json"


def build_parser() -> Parser:
    parser = Parser(description="Cluster a data set by its representations and take out the group most alike inside.")
    add_options(parser, ClusteringConfig)
    return parser


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return find_group(read_options(ClusteringConfig, build_parser().parse_args(argv)))


def find_group(config: ClusteringConfig) -> dict[str, Any]:
    """Run the clustering; returns paths and headline numbers."""
    config.check()
    folder = config.folder
    rows = load_rows(config.dataset_data, split=config.split)
    inputs = {"data": hash_rows(rows), "reps": identify(config.dataset_reps_dir, config.stack_vector_tf)}
    options = decisive(config) | {"n_clusters": config.n_clusters or DEFAULT_CLUSTERS}
    print_ = fingerprint(options, inputs)
    old = read_json(folder / RESULT) if (folder / RESULT).is_file() else None
    if old is not None and old["fingerprint"] == print_ and all((folder / f).is_file() for f in old["files"].values()):
        log(f"{folder} is up to date: cluster {old['chosen']['cluster']}, {old['chosen']['n']} rows")
        return _summary(folder, old, reused=True)
    result = _compute(config, rows, folder, inputs, options, print_)
    return _summary(folder, result, reused=False)


def _compute(
    config: ClusteringConfig,
    rows: list[Row],
    folder: Path,
    inputs: dict[str, str],
    options: dict[str, Any],
    print_: str,
) -> dict[str, Any]:
    import numpy as np

    from guardrail.similarity.clustering import clusters as cl
    from guardrail.similarity.figures import draw_clusters, write_png
    from guardrail.similarity.representations.read import align_rows, read_representations
    from guardrail.similarity.selection.output import save_array

    reps = read_representations(config.dataset_reps_dir, config.view)
    rows, n_without = align_rows(rows, reps, config.dataset_data)
    unit = cl.unit_array(reps.matrix)
    seeds = [config.seed + i for i in range(config.stability_seeds if config.clustering in SEEDED else 1)]
    labelings = [
        cl.fit_labels(unit, config.clustering, options["n_clusters"], seed, config.restarts, config.min_group_size)
        for seed in seeds
    ]
    labels = labelings[0]
    if (labels < 0).all():
        raise UserError(
            f"hdbscan found no cluster of {config.min_group_size} rows; lower --min_group_size or use kmeans"
        )
    clusters = cl.describe_clusters(unit, labels, rows, config.seed)
    chosen, why = cl.choose_cluster(clusters, config.select, config.min_group_size)
    (folder / RESULT).unlink(missing_ok=True)
    for stale in folder.glob("cluster-*.jsonl"):
        stale.unlink()
    files: dict[str, str] = {}
    group: list[Row] = []
    for entry in clusters:
        members = np.flatnonzero(labels == entry["cluster"])
        centre = unit[members].mean(axis=0)
        ordered = [rows[i] for i in members[np.argsort(-(unit[members] @ centre), kind="stable")]]
        name = "noise.jsonl" if entry["cluster"] < 0 else f"cluster-{entry['cluster']:02d}.jsonl"
        files[f"cluster {entry['cluster']}"] = write_jsonl(folder / name, ordered).name
        entry["file"] = name
        if entry["cluster"] == chosen:
            group = ordered[: config.group_size]
    files["group"] = write_jsonl(folder / "group.jsonl", group).name
    files["split"] = str(write_split(folder, config.split_name, group).relative_to(folder))
    files["labels"] = save_array(folder / "labels.npy", labels).name
    write_png(folder / "clusters.png", draw_clusters(unit, labels, chosen, config.seed))
    files["figure"] = "clusters.png"
    result = {
        "chosen": {"cluster": chosen, "rule": why, "n": len(group), "split": config.split_name},
        "clusters": clusters,
        "n_clusters": sum(entry["cluster"] >= 0 for entry in clusters),
        "n_noise": int((labels < 0).sum()),
        "n_rows": len(rows),
        "n_without_representation": n_without,
        "stability": {"seeds": seeds, **cl.stability(labelings)},
        "representations": reps.describe(),
        "files": files,
        "fingerprint": print_,
        "run": run_record("get_high_similarity_group", options, n=len(rows), seeds=seeds, inputs=inputs),
    }
    write_json(folder / RESULT, result)
    return result


def write_split(folder: Path, split: str, rows: list[Row]) -> Path:
    """Rows as a split in the hub's own layout, ``data/<split>-00000-of-00001.parquet``."""
    import pyarrow
    import pyarrow.parquet

    path = folder / "data" / f"{split}-00000-of-00001.parquet"
    table = pyarrow.Table.from_pylist(rows)
    with atomic_path(path) as temporary:
        pyarrow.parquet.write_table(table, temporary)
    return path


def _summary(folder: Path, result: dict[str, Any], reused: bool) -> dict[str, Any]:
    chosen = result["chosen"]
    entry = next(c for c in result["clusters"] if c["cluster"] == chosen["cluster"])
    return {
        "folder": str(folder),
        "clusters": str(folder / RESULT),
        "group": str(folder / "group.jsonl"),
        "split": chosen["split"],
        "cluster": chosen["cluster"],
        "n": chosen["n"],
        "mean_pairwise_cosine": entry["mean_pairwise_cosine"],
        "list_fraction": entry["list_fraction"],
        "stability": result["stability"]["adjusted_rand_index"],
        "reused": reused,
    }
