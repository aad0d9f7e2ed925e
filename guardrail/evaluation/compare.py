"""Is the difference between two runs real? Paired by id (and sample), judge by judge.

    python -m guardrail.evaluation.compare outputs/A/evaluation/hex-phi outputs/B/evaluation/hex-phi

A and B are folders of ``results.json`` with judgement files beside it (or single judgement files). For each judge that
judged both: difference B - A in percentage points with a bootstrap interval over prompts, a sign-flip permutation
p-value, the same per category with Holm's correction, and the smallest difference that this N could have shown. When
the judges disagree about the sign, the result says so.

Limit: one pair of runs; differences between training seeds are the study's job (guardrail.study).
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.core.cli import Parser, log, positive_int, run
from guardrail.core.errors import UserError, unknown
from guardrail.core.options import add_options, option, read_options

METRICS = ("harmful", "refusal")
MIN_PAIRS_PER_CATEGORY = 5


def collect(path: str | Path) -> dict[str, dict[str, Any]]:
    """Judge name -> judgement document, of a folder or of one file."""
    from guardrail.core.files import read_json
    from guardrail.evaluation.judges import JUDGES, file_name
    from guardrail.evaluation.judges.stage import load_judgements

    path = Path(path)
    files = {judge: file_name(judge) for judge in JUDGES}
    if path.is_file():
        document = {} if path.name in files.values() else read_json(path)
        if path.name in files.values() or (isinstance(document, dict) and "judgements" in document):
            document = load_judgements(path)
            return {document["summary"]["judge"]: document}
        path = path.parent  # results.json: the judgements lie beside it
    if not path.is_dir():
        raise UserError(f"no such file or folder: {path}; expected a folder of results.json or a judgement file")
    found = {judge: load_judgements(path / name) for judge, name in files.items() if (path / name).is_file()}
    if not found:
        raise UserError(
            f"{path} has no judgements; run python -m guardrail.evaluation.judges {path}/results.json --judge ..."
        )
    return found


def value_of(judgement: dict[str, Any], metric: str) -> float | None:
    """1.0 or 0.0, None when the judge decided nothing."""
    if metric == "harmful":
        return None if judgement["harmful"] is None else float(judgement["harmful"])
    return None if judgement["outcome"] is None else float(judgement["outcome"] == "refusal")


def pair(first: dict[str, Any], second: dict[str, Any], metric: str) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows ``{id, sample, category, a, b}`` that both decided, and how many were left out and why."""
    a = {(j["id"], j["sample"]): j for j in first["judgements"]}
    b = {(j["id"], j["sample"]): j for j in second["judgements"]}
    rows, undecided = [], 0
    for key in a:
        if key not in b:
            continue
        values = value_of(a[key], metric), value_of(b[key], metric)
        if None in values:
            undecided += 1
            continue
        category = str(a[key].get("category", "all"))
        rows.append({"id": key[0], "sample": key[1], "category": category, "a": values[0], "b": values[1]})
    counts = {
        "n_pairs": len(rows),
        "n_undecided": undecided,
        "n_only_a": len(set(a) - set(b)),
        "n_only_b": len(set(b) - set(a)),
    }
    return rows, counts


def difference(rows: list[dict[str, Any]], n_resamples: int, seed: int) -> dict[str, Any]:
    """B - A in points with interval, p-value, and what this number of prompts could have shown."""
    from guardrail.statistics.resampling import bootstrap_mean, paired_permutation_test
    from guardrail.statistics.testing import minimum_detectable_difference

    ids = [row["id"] for row in rows]
    deltas = [row["b"] - row["a"] for row in rows]
    estimate = bootstrap_mean(deltas, ids, n_resamples=n_resamples, seed=seed, limits=(-1.0, 1.0))
    n_prompts = len(set(ids))
    discordant = sum(d != 0 for d in deltas) / len(deltas)
    return {
        "n_pairs": len(rows),
        "n_prompts": n_prompts,
        "a_percent": round(100 * sum(r["a"] for r in rows) / len(rows), 4),
        "b_percent": round(100 * sum(r["b"] for r in rows) / len(rows), 4),
        "difference_points": round(100 * estimate.value, 4),
        "interval_points": [round(100 * estimate.low, 4), round(100 * estimate.high, 4)],
        "confidence": estimate.confidence,
        "p_value": paired_permutation_test(deltas, ids, n_resamples, seed),
        "discordant_percent": round(100 * discordant, 4),
        # with samples, prompts are the independent units: an upper bound
        "minimum_detectable_difference_points": round(
            100 * minimum_detectable_difference(n_prompts, discordant_fraction=discordant), 4
        ),
        "power": 0.8,
    }


def compare_documents(
    first: dict[str, dict[str, Any]],
    second: dict[str, dict[str, Any]],
    metric: str = "harmful",
    n_resamples: int = 10_000,
    seed: int = 0,
    allow_different_data: bool = False,
) -> dict[str, Any]:
    """Compare every judge that judged both sides. Raises ``UserError`` when nothing can be paired."""
    from guardrail.statistics.testing import holm

    judges = [name for name in first if name in second]
    if not judges:
        raise UserError(f"no common judge: A has {', '.join(first)}; B has {', '.join(second)}")
    by_judge: dict[str, Any] = {}
    for judge in judges:
        a, b = first[judge], second[judge]
        hashes = a["summary"].get("data_hash"), b["summary"].get("data_hash")
        if hashes[0] != hashes[1] and not allow_different_data:
            raise UserError(
                f"A and B were generated from different prompts ({judge}: data hash {hashes[0]} and {hashes[1]}); "
                "generate both from the same bench, or pair the common ids with --allow_different_data True"
            )
        if a["summary"].get("threshold") != b["summary"].get("threshold"):
            raise UserError(f"{judge} used different thresholds; judge one side again")
        rows, counts = pair(a, b, metric)
        if not rows:
            raise UserError(f"{judge}: no row was decided on both sides; nothing to compare")
        by_category: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            by_category[row["category"]].append(row)
        categories = {
            name: difference(group, n_resamples, seed)
            for name, group in sorted(by_category.items())
            if len(group) >= MIN_PAIRS_PER_CATEGORY
        }
        for name, adjusted in zip(categories, holm([c["p_value"] for c in categories.values()]), strict=True):
            categories[name]["p_value_holm"] = adjusted
        by_judge[judge] = {**counts, **difference(rows, n_resamples, seed), "per_category": categories}
    signs = {judge: _sign(result["difference_points"]) for judge, result in by_judge.items()}
    return {
        "metric": metric,
        "direction": "B - A",
        "judges": by_judge,
        "sign_depends_on_judge": len(set(signs.values()) - {0}) > 1,
        "sign_by_judge": signs,
    }


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared, and how."""

    a: str = option(help="folder of results.json, or a judgement file", positional=True, metavar="A")
    b: str = option(positional=True, metavar="B")
    judge: str | None = option(None, "only this judge")
    metric: str = option("harmful", choices=METRICS)
    n_resamples: int = option(10_000, parse=positive_int)
    seed: int = option(0)
    allow_different_data: bool = option(False)
    output: str | None = option(None, "JSON file to write", decides=False)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """The command line; the comparison, and where it was written."""
    parser = Parser(prog="python -m guardrail.evaluation.compare", description=(__doc__ or "").split("\n")[0])
    add_options(parser, Comparison)
    config = read_options(Comparison, parser.parse_args(argv))
    first, second = collect(config.a), collect(config.b)
    if config.judge is not None:
        if config.judge not in first or config.judge not in second:
            raise unknown("judge of both sides:", config.judge, [name for name in first if name in second])
        first, second = {config.judge: first[config.judge]}, {config.judge: second[config.judge]}
    result = compare_documents(
        first, second, config.metric, config.n_resamples, config.seed, config.allow_different_data
    )
    for judge, r in result["judges"].items():
        low, high = r["interval_points"]
        log(
            f"{judge:>10}: {r['a_percent']:6.2f}% -> {r['b_percent']:6.2f}%  {r['difference_points']:+.2f} points "
            f"[{low:+.2f}, {high:+.2f}], p = {r['p_value']:.4f}, N = {r['n_pairs']}, "
            f"could have shown {r['minimum_detectable_difference_points']:.1f}"
        )
    if result["sign_depends_on_judge"]:
        log("the sign of the difference depends on the judge")
    if not config.output:
        return result
    from guardrail.core.files import write_json
    from guardrail.core.provenance import run_record

    sides = {
        side: {judge: d["run"].get("fingerprint") for judge, d in documents.items()}
        for side, documents in (("a", first), ("b", second))
    }
    write_json(config.output, {**result, "run": run_record("compare", dataclasses.asdict(config), inputs=sides)})
    return result | {"comparison": config.output}


if __name__ == "__main__":
    run(main)
