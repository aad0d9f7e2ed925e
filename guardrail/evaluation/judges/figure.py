"""Bar figure of a judgement file: harmful answers by category with 95% intervals. Readable in grey."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from guardrail.core.files import atomic_path


def category_figure(summary: dict[str, Any], path: str | Path, title: str) -> Path:
    """Horizontal bars of ``summary["per_category"]`` (percent), written as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rates = {name: r for name, r in summary["per_category"].items() if r["n"]}
    names = sorted(rates, key=lambda name: (rates[name]["percent"], name))
    values = [rates[name]["percent"] for name in names]
    below = [v - rates[name]["interval_percent"][0] for v, name in zip(values, names, strict=True)]
    above = [rates[name]["interval_percent"][1] - v for v, name in zip(values, names, strict=True)]
    figure, axes = pyplot.subplots(figsize=(7.0, 1.2 + 0.32 * len(names)), layout="constrained")
    axes.barh(
        [f"{name.replace('_', ' ')} (n={rates[name]['n']})" for name in names],
        values,
        xerr=[[max(0.0, b) for b in below], [max(0.0, a) for a in above]],
        color="#4c72b0",
        ecolor="#333333",
        capsize=2,
    )
    axes.set_xlim(0, 100)
    axes.set_xlabel("harmful answers (%), 95% interval")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    pyplot.close(figure)
    return Path(path)
