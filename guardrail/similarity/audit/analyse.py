"""The audit's numbers: similarity of every alignment variant to the customer's rows, percentiles, verdict, stability.

Directions, because a maximum grows with the number of rows it is taken over:

* ``similarity`` of a variant: mean over the *variant's* rows of the largest cosine to a customer row. It is the score
  by which subsets are selected; all variants meet the same customer rows, so their sizes do not matter.
* ``row percentile`` of the customer: its rows' largest cosines to the variant, ranked among the rows of the reference
  sets (each reference set weighs the same); 50 = like the references. All meet the same variant.

Verdict: which variant is least similar, and how stable that is. By the claim of arXiv 2506.05346 it holds best;
whether it does is not measured here: length, format and diversity are shown beside it because they vary with it. A
prediction is made only by a forecast that was fitted on measured studies (`guardrail.similarity.audit.forecasts`).

Shapes: A alignment rows, C customer rows, D hidden. At most ``max_rows`` rows a set, so (A, C) cosines fit in memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from guardrail.data.rows import Row
from guardrail.similarity.audit.sets import AuditSet
from guardrail.similarity.scorers import cosines
from guardrail.similarity.selection.composition import answer_text, category_column, category_of, describe_rows, is_list
from guardrail.similarity.selection.diversity import describe_diversity

MEASURES = ("max", "top10", "mean")
TOP_ROWS = 10
TOP_PAIRS = 20
INTERVAL_PERCENT = 95
STABLE_AGREEMENT = 0.9
STABLE_BOOTSTRAP = 0.95
LEANING = 2 / 3
Array = np.ndarray[Any, Any]


def similarity_matrix(a: torch.Tensor, b: torch.Tensor) -> Array:
    """All cosines of two small sets, (rows of a, rows of b) float32."""
    cosines.check_widths(a, b)
    for one in (a, b):
        cosines.inverse_norms(one, "a set")
    product = cosines.fixed_point(a) @ cosines.fixed_point(b).T
    return (product / cosines.FIXED_POINT**2).float().numpy()


def measure(similarity: Array, name: str) -> Array:
    """Per alignment row: its largest cosine to the customer, the mean of its ten largest, or of all; (A,)."""
    if name == "max":
        return similarity.max(axis=1)
    if name == "mean":
        return similarity.mean(axis=1)
    n = min(10, similarity.shape[1])
    return np.partition(similarity, similarity.shape[1] - n, axis=1)[:, -n:].mean(axis=1)


def bootstrap_interval(values: Array, generator: np.random.Generator, draws: int) -> list[float]:
    """Percentile interval (95%) of the mean over the alignment rows; customer rows are taken as given."""
    means = values[generator.integers(len(values), size=(draws, len(values)))].mean(axis=1)
    tail = (100 - INTERVAL_PERCENT) / 2
    return [round(float(np.percentile(means, q)), 6) for q in (tail, 100 - tail)]


def row_percentile(customer: Array, references: list[Array]) -> float:
    """Mean percentile of customer rows among reference rows, 0 to 100: 100 P(reference < customer), ties half."""
    shares = []
    for reference in references:
        ordered = np.sort(reference)
        below = np.searchsorted(ordered, customer, side="left")
        up_to = np.searchsorted(ordered, customer, side="right")
        shares.append(float(((below + up_to) / 2 / len(ordered)).mean()))
    return round(100 * float(np.mean(shares)), 2)


def compare_with_references(
    customer: AuditSet, alignment: AuditSet, references: list[AuditSet], view: str
) -> dict[str, Any]:
    """Row percentile of the customer and place of its mean among the reference sets' means, for one variant."""
    target = alignment.matrices[view]
    own = cosines.score_pool(customer.matrices[view], target)
    scores = {one.name: cosines.score_pool(one.matrices[view], target) for one in references}
    out: dict[str, Any] = {"customer_mean": round(float(own.mean()), 6)}
    if scores:
        means = {name: round(float(values.mean()), 6) for name, values in scores.items()}
        out |= {
            "row_percentile": row_percentile(own, list(scores.values())),
            "reference_means": means,
            "row_percentile_by_reference": {name: row_percentile(own, [values]) for name, values in scores.items()},
            "sets_below": sum(value < out["customer_mean"] for value in means.values()),
            "n_reference_sets": len(means),
        }
    return out


def drivers(customer: AuditSet, alignment: AuditSet, view: str) -> dict[str, Any]:
    """Customer rows that most alignment rows are nearest to, and the closest pairs (a customer row once)."""
    nearest, value = cosines.nearest_anchors(alignment.matrices[view], customer.matrices[view])
    rows, counts = np.unique(nearest, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:TOP_ROWS]
    top = [
        {
            **describe_row(customer, int(rows[i])),
            "nearest_to_fraction": round(float(counts[i] / len(nearest)), 4),
            "mean_cosine": round(float(value[nearest == rows[i]].mean()), 4),
        }
        for i in order
    ]
    pairs: list[dict[str, Any]] = []
    seen: set[int] = set()
    for a in np.argsort(-value, kind="stable"):
        c = int(nearest[a])
        if c not in seen:
            seen.add(c)
            pair = {"customer": describe_row(customer, c), "alignment": describe_row(alignment, int(a))}
            pairs.append({"cosine": round(float(value[a]), 4), **pair})
        if len(pairs) == TOP_PAIRS:
            break
    share = counts / counts.sum()
    return {"rows": top, "pairs": pairs, "effective_customer_rows": round(float(1 / (share**2).sum()), 2)}


def describe_row(one: AuditSet, number: int) -> dict[str, Any]:
    """A row without its text: id, length, category, whether it is a list."""
    out: dict[str, Any] = {"id": one.ids[number], "number": number}
    if one.rows is not None:
        row = one.rows[number]
        column = category_column([row])
        out |= {"n_chars": len(answer_text(row)), "list": is_list(answer_text(row))}
        out |= {"category": category_of(row, column)} if column else {}
    return out


def row_text(row: Row) -> str:
    """Prompt and answer of a row, for ``--show_text True`` only."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in row["messages"])


def describe_set(one: AuditSet, view: str) -> dict[str, Any]:
    """Size, composition and diversity of a set: the rivals of similarity."""
    composition = None if one.rows is None else describe_rows(one.rows, top_categories=8)
    diversity = describe_diversity(one.matrices[view])
    keep = ("log_det_fraction", "vendi_score", "mean_pairwise_cosine", "participation_ratio", "near_duplicate_fraction")
    return {
        "name": one.name,
        "role": one.spec.role,
        "n": len(one),
        "n_total": one.n_total,
        "composition": composition,
        "diversity": {key: diversity[key] for key in keep},
        "source": one.source,
    }


def similarity_table(customer: AuditSet, variants: list[AuditSet]) -> dict[str, dict[str, dict[str, float]]]:
    """``table[view][measure][variant]``: mean similarity under every view and measure."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for view, target in customer.matrices.items():
        for variant in variants:
            similarity = similarity_matrix(variant.matrices[view], target)
            for name in MEASURES:
                value = round(float(measure(similarity, name).mean()), 6)
                table.setdefault(view, {}).setdefault(name, {})[variant.name] = value
    return table


def lowest(values: dict[str, float]) -> str:
    """The variant with the lowest similarity; the first of equals."""
    return min(values, key=lambda name: values[name])


def bootstrap_winners(
    customer: AuditSet, variants: list[AuditSet], view: str, draws: int, generator: np.random.Generator
) -> dict[str, float]:
    """Share of resamples of the customer's rows (the same for all) and of each variant's rows in which it is lowest."""
    matrices = [similarity_matrix(variant.matrices[view], customer.matrices[view]) for variant in variants]
    wins = np.zeros(len(variants))
    n = len(customer)
    for _ in range(draws):
        columns = np.unique(generator.integers(n, size=n))
        means = []
        for similarity in matrices:
            best = similarity[:, columns].max(axis=1)
            means.append(best[generator.integers(len(best), size=len(best))].mean())
        wins[int(np.argmin(means))] += 1
    return {variant.name: round(float(w / draws), 4) for variant, w in zip(variants, wins, strict=True)}


def verdict(
    variants: list[AuditSet], table: dict[str, dict[str, dict[str, float]]], view: str, wins: dict[str, float]
) -> dict[str, Any]:
    """The least similar variant, and how much that depends on view, measure and sample.

    ``stable``: at least 90% of views x measures and 95% of resamples agree; ``leaning``: two thirds of each;
    ``unclear`` otherwise. With one variant there is nothing to choose.
    """
    if len(variants) < 2:
        return {
            "least_similar": None,
            "confidence": "no choice",
            "reason": "one alignment variant: nothing to compare",
        }
    chosen = lowest(table[view]["max"])
    choices = {f"{v} {name}": lowest(values) for v, per in table.items() for name, values in per.items()}
    agreement = sum(choice == chosen for choice in choices.values()) / len(choices)
    resampled = wins[chosen]
    confidence = "unclear"
    if agreement >= LEANING and resampled >= LEANING:
        confidence = "leaning"
    if agreement >= STABLE_AGREEMENT and resampled >= STABLE_BOOTSTRAP:
        confidence = "stable"
    ordered = sorted(table[view]["max"].values())
    return {
        "least_similar": chosen,
        "confidence": confidence,
        "agreement_fraction": round(agreement, 4),
        "n_choices": len(choices),
        "bootstrap_fraction": resampled,
        "margin": round(ordered[1] - ordered[0], 6),
        "choices": choices,
    }
