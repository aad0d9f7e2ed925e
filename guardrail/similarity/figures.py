"""Figures of clustering, selection sweeps and audits, as PNG bytes. Readable in grey."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from guardrail.core.files import atomic_path
from guardrail.similarity.scorers import cosines

if TYPE_CHECKING:
    from guardrail.similarity.audit.sets import AuditSet

# Okabe and Ito's colours, distinguishable by colour-blind readers; markers and dashes carry the same information
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MARKERS = ("o", "s", "^", "D", "v", "P")
MAP_POINTS = 600
MAX_POINTS = 10_000
BLOCK_ROWS = 2048  # rows that become float64 at a time: a pool is never copied
Array = np.ndarray[Any, Any]


def _new(width: float, height: float, columns: int = 1) -> Any:
    """A figure and its axes (an array of them for several columns)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, columns, figsize=(width, height), squeeze=False, layout="constrained")
    for axes in panels[0]:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels[0] if columns > 1 else panels[0][0]


def _png(figure: Any) -> bytes:
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    pyplot.close(figure)
    return buffer.getvalue()


def write_png(path: Path, png: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(png)


def principal_components(unit: Array) -> tuple[Array, Array]:
    """Coordinates (N, 2) and the shares of variance (2,) of the first two principal components."""
    mean = unit.mean(axis=0, dtype=np.float64)
    covariance = (unit.T @ unit).astype(np.float64) / len(unit) - np.outer(mean, mean)
    values, vectors = np.linalg.eigh(covariance)
    axes = vectors[:, ::-1][:, :2]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), range(axes.shape[1])])  # a fixed sign: reproducible
    parts = [(unit[part] - mean) @ axes for part in cosines.blocks(len(unit), BLOCK_ROWS)]  # float64: never all at once
    return np.concatenate(parts), np.clip(values[::-1][:2], 0, None) / max(float(values.sum()), 1e-30)


def _label_components(axes: Any, share: Array) -> None:
    for number, name in enumerate("xy"):
        text = f"principal component {number + 1} ({100 * share[number]:.0f}% of variance)"
        axes.set(**{f"{name}label": text})


def draw_clusters(unit: Array, labels: Array, chosen: int, seed: int) -> bytes:
    """Every row a point in the first two components; other clusters in greys, the chosen one coloured and outlined."""
    points, share = principal_components(unit)
    shown = np.arange(len(unit))
    if len(shown) > MAX_POINTS:
        shown = np.sort(np.random.default_rng(seed).choice(len(unit), MAX_POINTS, replace=False))
    figure, axes = _new(6.4, 4.8)
    others, members = shown[labels[shown] != chosen], shown[labels[shown] == chosen]
    x, y = points.T
    axes.scatter(x[others], y[others], c=labels[others] % 10, cmap="Greys", vmin=-6, vmax=12, s=9, linewidths=0)
    axes.scatter(x[members], y[members], s=16, color=COLOURS[1], edgecolors="black", linewidths=0.3)
    count = int((labels == chosen).sum())
    axes.set_title(f"{len(np.unique(labels[labels >= 0]))} clusters; coloured: cluster {chosen} ({count} rows)")
    _label_components(axes, share)
    return _png(figure)


def draw_sweep(result: dict[str, Any]) -> bytes:
    """A heat map of the Jaccard index between views per selector, numbers in the cells."""
    views, selectors = result["views"], result["selectors"]
    size = max(3.0, 0.55 * len(views) + 1.6)
    figure, panels = _new(size * len(selectors), size, len(selectors))
    for axes, (name, entry) in zip(np.atleast_1d(panels), selectors.items(), strict=True):
        matrix = np.asarray(entry["jaccard"])
        axes.imshow(matrix, vmin=0, vmax=1, cmap="cividis")
        axes.set_xticks(range(len(views)), views, rotation=90, fontsize=7)
        axes.set_yticks(range(len(views)), views, fontsize=7)
        axes.set_title(f"{name}: Jaccard (chance {entry['jaccard_by_chance']:.2f})", fontsize=9)
        if len(views) <= 16:
            for (i, j), value in np.ndenumerate(matrix):
                colour = "white" if value < 0.5 else "black"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour)
    return _png(figure)


def draw_variants(variants: list[dict[str, Any]], chosen: str | None) -> bytes:
    """Similarity of every variant with its 95% interval, most similar on top; the predicted one is filled."""
    ordered = sorted(variants, key=lambda v: v["similarity"])
    figure, axes = _new(6.4, 1.3 + 0.45 * len(ordered))
    for place, variant in enumerate(ordered):
        low, high = variant["interval"]
        best = variant["name"] == chosen
        axes.plot([low, high], [place, place], color="black", linewidth=1.4)
        face = COLOURS[0] if best else "white"
        axes.plot(variant["similarity"], place, "o", markersize=8, markerfacecolor=face, markeredgecolor="black")
    axes.set_yticks(range(len(ordered)), [v["name"] + (" *" if v["name"] == chosen else "") for v in ordered])
    axes.set_ylim(-0.6, len(ordered) - 0.4)
    axes.set_xlabel("mean largest cosine of the variant's rows to the customer's rows (95% interval)")
    axes.grid(axis="x", linewidth=0.4, alpha=0.5)
    return _png(figure)


def draw_references(customer: AuditSet, alignment: AuditSet, references: list[AuditSet], view: str) -> bytes:
    """Cumulative distributions of the rows' largest cosine to one variant: the customer against reference sets."""
    figure, axes = _new(6.4, 3.8)
    for number, one in enumerate([customer, *references]):
        values = np.sort(cosines.score_pool(one.matrices[view], alignment.matrices[view]))
        share = np.arange(1, len(values) + 1) / len(values)
        style = {"color": "black", "linewidth": 2.4} if number == 0 else {}
        if number:
            dashes = ("--", ":", "-.")[(number - 1) % 3]
            style = {"color": COLOURS[(number - 1) % len(COLOURS)], "linewidth": 1.4, "linestyle": dashes}
        axes.step(values, 100 * share, where="post", label=f"{one.name} ({len(one)} rows)", **style)
    axes.set_xlabel(f"largest cosine of a row to the alignment set {alignment.name}")
    axes.set_ylabel("rows at or below (%)")
    axes.set_ylim(0, 100)
    axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def draw_stability(table: dict[str, dict[str, dict[str, float]]]) -> bytes:
    """Rows: layer, position and measure; columns: variants; cells: rank by similarity (1 = lowest, predicted best)."""
    labels = [(view, measure) for view, per in table.items() for measure in per]
    names = list(next(iter(next(iter(table.values())).values())))
    ranks = np.asarray([np.argsort(np.argsort([table[v][m][n] for n in names])) + 1 for v, m in labels])
    figure, axes = _new(max(6.4, 2.6 + 0.9 * len(names)), 0.7 + 0.2 * len(labels))
    axes.imshow(ranks, cmap="Blues_r", aspect="auto", vmin=1 - len(names), vmax=len(names))
    for i, (view, measure) in enumerate(labels):
        for j, name in enumerate(names):
            text = f"{ranks[i, j]}  ({table[view][measure][name]:.3f})"
            axes.text(j, i, text, ha="center", va="center", fontsize=7, weight="bold" if ranks[i, j] == 1 else "normal")
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_yticks(range(len(labels)), [f"{view}, {measure}" for view, measure in labels], fontsize=7)
    axes.spines[:].set_visible(False)
    return _png(figure)


def draw_map(customer: AuditSet, variants: list[AuditSet], view: str, seed: int) -> bytes:
    """First two principal components of the customer's and the variants' unit rows, at most 600 points a set."""
    generator = np.random.default_rng(seed)
    parts = []
    for one in [*variants, customer]:
        unit = cosines.unit_rows(one.matrices[view]).numpy()
        if len(unit) > MAP_POINTS:
            unit = unit[generator.choice(len(unit), MAP_POINTS, replace=False)]
        parts.append(unit)
    points, share = principal_components(np.concatenate(parts))
    figure, axes = _new(6.4, 4.6)
    start = 0
    for number, (one, part) in enumerate(zip([*variants, customer], parts, strict=True)):
        xy = points[start : start + len(part)].T
        start += len(part)
        if one is customer:
            axes.scatter(*xy, s=22, marker="x", color="black", linewidths=0.9, label=f"{one.name} (customer)")
        else:
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            axes.scatter(*xy, s=11, marker=marker, color=colour, alpha=0.55, linewidths=0, label=one.name)
    _label_components(axes, share)
    axes.legend(frameon=False, fontsize=8, markerscale=2, loc="upper left", bbox_to_anchor=(0, 1.12), ncols=4)
    return _png(figure)
