"""What a clustering can be: its algorithms and options. Light to import, no numpy or torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from guardrail.core.cli import positive_int
from guardrail.core.errors import UserError, unknown
from guardrail.core.options import option

ALGORITHMS = ("kmeans", "minibatch_kmeans", "agglomerative", "hdbscan")
SEEDED = ("kmeans", "minibatch_kmeans")
DEFAULT_CLUSTERS = 20


@dataclass(frozen=True, kw_only=True)
class ClusteringConfig:
    """Options of a clustering. Of files that are read, the content decides (by hash), not the path."""

    dataset_folder: str = option(help="results go to <dataset_folder>/clusters/<model_id>/", decides=False)
    model_id: str = option(help="name of the model that gave the representations", decides=False)
    clustering: str = option("kmeans", "algorithm; all work on unit rows (cosine)", choices=ALGORITHMS)
    stack_vector_tf: bool = option(False, "join reps-<number>.pt into --dataset_reps_dir first")
    n_clusters: int | None = option(
        None, f"number of clusters (default {DEFAULT_CLUSTERS}; not with hdbscan)", parse=positive_int
    )
    dataset_data: str = option(help="rows: a file, a data-set folder or a hub name", decides=False)
    split: str | None = option(None, "split of dataset_data, where it has several")
    dataset_reps_dir: str = option(
        help="representations: a store, .pt, .npy, .safetensors or reps-*.pt folder", decides=False
    )
    restarts: int = option(10, "k-means starts per seed; the best is kept", parse=positive_int)
    seed: int = option(42, "first seed")
    stability_seeds: int = option(3, "clusterings compared by adjusted Rand index", parse=positive_int)
    select: str = option("similarity", "similarity, list, or a cluster's number")
    min_group_size: int = option(20, "smallest group that a rule may choose", parse=positive_int)
    group_size: int | None = option(
        None, "keep this many rows of the group, nearest to its centre first", parse=positive_int
    )
    split_name: str = option("high_similarity_group", "name of the group's split")
    view: str | None = option(None, "layer and position of a store with several, e.g. layer16_eos")
    output_dir: str | None = option(None, "instead of <dataset_folder>/clusters/<model_id>", decides=False)

    @property
    def folder(self) -> Path:
        """Where the results go."""
        return Path(self.output_dir) if self.output_dir else Path(self.dataset_folder) / "clusters" / self.model_id

    def check(self) -> None:
        """Refuse unknown names and impossible combinations before anything is loaded (``UserError``)."""
        if self.clustering not in ALGORITHMS:
            raise unknown("--clustering", self.clustering, ALGORITHMS)
        if self.clustering == "hdbscan" and self.n_clusters is not None:
            raise UserError("hdbscan finds the number of clusters itself; leave --n_clusters out")
        if "/" in self.model_id:
            raise UserError(
                f"--model_id {self.model_id!r} names a folder under clusters/; give a plain name without '/'"
            )
        if not re.fullmatch(r"\w+", self.split_name):
            raise UserError(f"--split_name {self.split_name!r}: use letters, digits and underscores")
        if self.n_clusters == 1:
            raise UserError(f"--n_clusters {self.n_clusters} makes no groups; expected at least 2")
        if not self.select.lstrip("-").isdigit() and self.select not in ("similarity", "list"):
            raise unknown("--select", self.select, ("similarity", "list", "<cluster number>"))
