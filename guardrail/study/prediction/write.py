"""prediction.json, its tables (Markdown, CSV, LaTeX) and its figure, from the cells that are done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from guardrail.core.files import atomic_path, write_json, write_text
from guardrail.study.report.table import Column, Table, plain

RESULT = "prediction.json"
COLUMNS_OF_FIGURE = 4
CAPTION = (
    "Bins of one pool by each score, lowest to highest; every bin is fine-tuned from the same aligned checkpoints. "
    "Gap: top minus bottom bin, in points of final harmfulness and in percent of the training by which refusals "
    "live shorter; positive: rows with higher scores erode more. Tau: Kendall's, over the bins. At equal length: the "
    "gap of bins that are cut within strata of length and format. 95% intervals over seeds and prompts."
)


def tables(result: dict[str, Any]) -> list[Table]:
    """What each scorer predicted, and what each of its bins is made of."""
    rows = []
    for one in result["scorers"]:
        row = {
            "scorer": plain(one["scorer"]),
            **one.get("cost", {}),
            "length": one.get("length_correlation"),
            "auc": one.get("planted_auc"),
        }
        if "plain" not in one:
            rows.append({**row, "note": one.get("reason")})
            continue
        harmful, life = one["plain"]["harmful"], one["plain"]["life"]
        row |= {
            "n_seeds": one["plain"]["n_seeds"],
            "tau": harmful["tau"],
            "tau_interval": harmful["tau_interval"],
            "gap": harmful["gap"],
            "gap_interval": harmful["gap_interval"],
            "gap_p_value": harmful["gap_p_value"],
            "life_tau": life["tau"],
            "life_tau_interval": life["tau_interval"],
            "life_gap": life["gap"],
            "life_gap_interval": life["gap_interval"],
            "monotone": "yes" if harmful["monotone"] else "no",
            "isotonic_percent": None if harmful["isotonic_share"] is None else 100 * harmful["isotonic_share"],
            "trend_p_value": harmful["trend_p_value"],
        }
        if "matched" in one:
            matched = one["matched"]
            row |= {"matched_gap": matched["harmful"]["gap"], "matched_interval": matched["harmful"]["gap_interval"]}
            row |= {
                "matched_life_gap": matched["life"]["gap"],
                "matched_life_interval": matched["life"]["gap_interval"],
            }
        rows.append(row)
    columns = (
        Column("scorer", "scorer"),
        Column("n_seeds", "seeds", 0, label=True),
        Column("tau", "tau", 2, "tau_interval"),
        Column("gap", "gap (points)", 1, "gap_interval", signed=True),
        Column("gap_p_value", "p", 3),
        Column("life_tau", "tau of life", 2, "life_tau_interval"),
        Column("life_gap", "gap of life (%)", 1, "life_gap_interval", signed=True),
        Column("monotone", "monotone"),
        Column("isotonic_percent", "isotonic %", 0),
        Column("trend_p_value", "trend p", 3),
        Column("matched_gap", "gap at equal length (points)", 1, "matched_interval", signed=True),
        Column("matched_life_gap", "gap of life at equal length (%)", 1, "matched_life_interval", signed=True),
        Column("auc", "AUC of planted rows", 2),
        Column("length", "rank correlation with length", 2, signed=True),
        Column("cpu_sec_per_1000_rows", "s / 1,000 rows", 1),
        Column("peak_mib", "MiB", 0),
        Column("note", "note"),
    )
    return [Table("scorers", CAPTION, columns, rows), bins_table(result)]


def bins_table(result: dict[str, Any]) -> Table:
    columns = (
        Column("scorer", "scorer"),
        Column("kind", "bins"),
        Column("bin", "bin", 0, label=True),
        Column("n", "rows", 0, label=True),
        Column("harmful_percent", "planted harmful %", 1),
        Column("response_chars", "mean length", 0),
        Column("list_share_percent", "lists %", 0),
        Column("final_percent", "harmful after %", 1),
        Column("life_percent", "mean life %", 1),
    )
    rows = []
    for one in result["scorers"]:
        for kind in ("plain", "matched"):
            for place, part in enumerate(one.get(kind, {}).get("bins", [])):
                rows.append({"scorer": plain(one["scorer"]), "kind": kind, "bin": part.get("bin", place + 1), **part})
    caption = "What the bins are made of, and what came of them. Bin 1 has the lowest scores."
    return Table("scorer_bins", caption, columns, rows)


def draw(result: dict[str, Any], folder: Path) -> list[str]:
    """Final harmfulness by bin, one panel per scorer; the matched bins' ends beside it. PNG and PDF."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [one for one in result["scorers"] if "plain" in one]
    if not shown:
        return []
    columns = min(COLUMNS_OF_FIGURE, len(shown))
    lines = -(-len(shown) // columns)
    size = (2.4 * columns + 0.6, 2.1 * lines + 0.5)
    figure, panels = pyplot.subplots(
        lines, columns, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axes in panels.flat[len(shown) :]:
        axes.set_visible(False)
    for axes, one in zip(panels.flat, shown, strict=False):
        for seed, values in zip(one["plain"]["seeds"], one["plain"]["final_percent_by_seed"], strict=True):
            axes.plot(range(1, len(values) + 1), values, color="0.7", linewidth=0.8, label=f"seed {seed}")
        means = [part["final_percent"] for part in one["plain"]["bins"]]
        axes.plot(range(1, len(means) + 1), means, "o-", color="#0072b2", markersize=4)
        if "matched" in one:
            ends = one["matched"]["bins"]
            axes.plot([part["bin"] for part in ends], [part["final_percent"] for part in ends], "s", color="#d55e00")
        axes.set_title(f"{plain(one['scorer'])}, tau {one['plain']['harmful']['tau']:.2f}", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("bin (1: lowest scores); grey: seeds, squares: bins of equal length and format", fontsize=9)
    figure.supylabel("harmful answers after (%)", fontsize=9)
    written = []
    for suffix in ("png", "pdf"):
        file = folder / f"scorers.{suffix}"
        with atomic_path(file) as temporary:
            figure.savefig(temporary, dpi=150, format=suffix)
        written.append(str(file))
    pyplot.close(figure)
    return written


def write(result: dict[str, Any], folder: Path) -> dict[str, str]:
    """Everything, `prediction.json` last."""
    for table in tables(result):
        for suffix, text in ((".md", table.markdown()), (".csv", table.csv()), (".tex", table.latex())):
            write_text(folder / "tables" / f"{table.name}{suffix}", text)
    figures = draw(result, folder / "figures")
    write_json(folder / RESULT, result)
    return {
        "prediction": str(folder / RESULT),
        "table": str(folder / "tables" / "scorers.md"),
        **({"figure": figures[0]} if figures else {}),
    }
