"""A 2-D picture of a clustering: the first two principal components of the unit rows, the chosen group on top."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from guardrail.core.files import atomic_path

MAX_POINTS = 10_000
Array = np.ndarray[Any, Any]


def principal_components(unit: Array) -> tuple[Array, Array]:
    """Coordinates (N, 2) and the shares of variance (2,) of the first two principal components."""
    mean = unit.mean(axis=0, dtype=np.float64)
    covariance = (unit.T @ unit).astype(np.float64) / len(unit) - np.outer(mean, mean)
    values, vectors = np.linalg.eigh(covariance)
    axes = vectors[:, ::-1][:, :2]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), range(axes.shape[1])])  # a fixed sign: reproducible
    return (unit - mean) @ axes, np.clip(values[::-1][:2], 0, None) / max(float(values.sum()), 1e-30)


def draw_clusters(unit: Array, labels: Array, chosen: int, path: Path, seed: int) -> None:
    """Write a PNG: every row a point, other clusters in greys, the chosen one coloured and outlined."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points, share = principal_components(unit)
    shown = np.arange(len(unit))
    if len(shown) > MAX_POINTS:
        shown = np.sort(np.random.default_rng(seed).choice(len(unit), MAX_POINTS, replace=False))
    figure, axes = pyplot.subplots(figsize=(6.4, 4.8), layout="constrained")
    others = shown[labels[shown] != chosen]
    axes.scatter(*points[others].T, c=labels[others] % 10, cmap="Greys", vmin=-6, vmax=12, s=9, linewidths=0)
    members = shown[labels[shown] == chosen]
    count = int((labels == chosen).sum())
    axes.scatter(*points[members].T, s=16, color="#d55e00", edgecolors="black", linewidths=0.3)
    axes.set_title(f"{len(np.unique(labels[labels >= 0]))} clusters; coloured: cluster {chosen} ({count} rows)")
    axes.set_xlabel(f"principal component 1 ({100 * share[0]:.0f}% of variance)")
    axes.set_ylabel(f"principal component 2 ({100 * share[1]:.0f}% of variance)")
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    pyplot.close(figure)
