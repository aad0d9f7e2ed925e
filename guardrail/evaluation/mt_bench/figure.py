"""Radar of MT-Bench categories, one line per run, told apart by dash and marker as well as by colour.

    python -m guardrail.evaluation.mt_bench.figure high/results.json low/results.json --out radar.png

Runs of different measures (another question set, protocol or judge) are refused: their scores do not compare.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guardrail.core.cli import Parser, run
from guardrail.core.errors import UserError
from guardrail.core.files import atomic_path, read_json

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")  # Okabe and Ito
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
TOP_SCORE = 10


def draw_radar(series: dict[str, dict[str, float | None]], title: str, paths: Sequence[Path]) -> list[Path]:
    """Draw ``series`` (run -> category -> score of 0..10 or None) into every path; the suffix decides the format.

    A category without a score leaves a gap in its line. Raises ``UserError`` when runs have other categories.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    categories = list(next(iter(series.values())))
    if any(set(scores) != set(categories) for scores in series.values()):
        raise UserError("the runs have different categories; a radar compares runs on the same questions")
    angles = [2 * math.pi * i / len(categories) for i in range(len(categories))]
    axes: Any  # polar: its methods are not those of the plain kind
    figure, axes = plt.subplots(figsize=(5.2, 5.2), subplot_kw={"projection": "polar"}, layout="constrained")
    axes.set_theta_offset(math.pi / 2)
    axes.set_theta_direction(-1)
    for i, (name, scores) in enumerate(series.items()):
        values = [math.nan if scores[c] is None else scores[c] for c in categories]
        axes.plot(
            [*angles, angles[0]],
            [*values, values[0]],
            color=COLOURS[i % len(COLOURS)],
            linestyle=DASHES[i % len(DASHES)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=5,
            label=name,
        )
    axes.set_xticks(angles, categories)
    axes.tick_params(axis="x", pad=6)
    for label, angle in zip(axes.get_xticklabels(), angles, strict=True):  # labels stand outside the circle
        side = math.sin(angle)
        label.set_horizontalalignment("center" if abs(side) < 0.1 else "left" if side > 0 else "right")
    axes.set_ylim(0, TOP_SCORE)
    axes.set_yticks(range(2, TOP_SCORE + 1, 2))
    axes.set_rlabel_position(180 / max(1, len(categories)))
    axes.tick_params(axis="y", labelsize=8)
    axes.set_title(title, fontsize=11, pad=16)
    if len(series) > 1:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    for path in paths:
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=Path(path).suffix.lstrip("."), dpi=150)
    plt.close(figure)
    return list(paths)


def radar_of_results(results: Sequence[dict[str, Any]], paths: Sequence[Path]) -> list[Path]:
    """The radar of one or several results files of the same measure and judge."""
    measures = {(r["metrics"]["measure"], r["metrics"]["judge"], r["run"]["data"]["data_hash"]) for r in results}
    if len(measures) != 1:
        raise UserError(f"these runs do not compare: {sorted(measures)}")
    if any(r["metrics"]["judge"] is None for r in results):
        raise UserError("these answers have not been judged yet; give --judge_model to python __main__.py")
    series: dict[str, dict[str, float | None]] = {}
    for result in results:
        name = result["run"]["config"]["model_id"]
        if name in series:
            raise UserError(f"model_id {name!r} occurs twice; give the runs different --model_id")
        series[name] = {c: part["score"] for c, part in result["metrics"]["scores"]["categories"].items()}
    measure, judge, _ = next(iter(measures))
    title = f"{measure}, judge {judge}"
    if len(series) == 1:
        title = f"{next(iter(series))}: {title}"
    return draw_radar(series, title, paths)


def main() -> dict[str, Any]:
    parser = Parser(prog="guardrail.evaluation.mt_bench.figure", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("results", nargs="+", help="results.json files of python __main__.py --benchmark mt_bench")
    parser.add_argument("--out", required=True, help="figure file: .png, .pdf or .svg")
    args = parser.parse_args()
    if Path(args.out).suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"--out {args.out}: expected .png, .pdf or .svg")
    paths = radar_of_results([read_json(path) for path in args.results], [Path(args.out)])
    return {"figure": str(paths[0]), "n_runs": len(args.results)}


if __name__ == "__main__":
    run(main)
