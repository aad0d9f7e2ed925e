"""The smallest difference that a design can detect, and the seeds that a primary comparison needs, before running.

What is compared is the change of harmfulness under fine-tuning, high minus low similarity, tasks averaged: paired over
training seeds and prompts. An earlier study tells how much such a difference varies between seeds, between prompts and
beyond (`guardrail.statistics.crossed.components`); more seeds and prompts shrink each in its own way. Variances of
another model, task or bench are an assumption, and the text says whose they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.core.errors import UserError
from guardrail.core.files import read_json
from guardrail.statistics.crossed import MOST_SEEDS, Components
from guardrail.study.config import Study
from guardrail.study.declaration import Primary, digest_of, in_words

POWER = 0.8
OUTCOME = "change"


@dataclass(frozen=True)
class Variances:
    """Components in squared points of one task's difference, and how far the tasks' errors correlate (0 to 1 each).

    Tasks count alike, each with the mean of the earlier study's tasks: a task whose rates lie at the floor varies least
    and shows least, and would otherwise be chosen for that.
    """

    task: Components
    correlation: Components
    source: str

    def of_mean(self, n_tasks: int) -> Components:
        """Components of a mean over so many tasks: of variance v and correlation r, v (1 + (K - 1) r) / K."""

        def one(variance: float, r: float) -> float:
            return variance * (1 + (n_tasks - 1) * r) / n_tasks

        v, r = self.task, self.correlation
        return Components(one(v.seeds, r.seeds), one(v.prompts, r.prompts), one(v.answers, r.answers))

    def detectable(self, n_tasks: int, n_seeds: int, n_prompts: int) -> float:
        """Points of a true difference that are found with 80% power at the two-sided 5% level."""
        return self.of_mean(n_tasks).spread(n_seeds, n_prompts).detectable(power=POWER)


def from_tasks(tasks: Sequence[Components], together: Components | None, source: str) -> Variances:
    """Variances of tasks one by one, and of their mean, where there is one over at least two of them."""
    K = len(tasks)
    mean = Components(
        sum(part.seeds for part in tasks) / K,
        sum(part.prompts for part in tasks) / K,
        sum(part.answers for part in tasks) / K,
    )

    def correlation(whole: float, part: float) -> float:
        return min(1.0, max(0.0, (K * whole / part - 1) / (K - 1))) if part > 0 else 0.0

    if together is None or K < 2:
        return Variances(mean, Components(0.0, 0.0, 0.0), source)
    pairs = ((together.seeds, mean.seeds), (together.prompts, mean.prompts), (together.answers, mean.answers))
    return Variances(mean, Components(*(correlation(*pair) for pair in pairs)), source)


# Squared points, for one task. Solved from docs/findings.md: prompts alone (140, three seeds) give a difference of 4.8
# points p = 0.018, so their standard error is 2.0 points = sqrt((175 + 1200 / 3) / 140); it is split as the variance of
# an answer at rates of 5 to 10% suggests. Both tasks over seeds and prompts detected 13.7 points (by the critical
# values of that time), which leaves 37 between seeds.
ASSUMED = Variances(
    Components(seeds=37.0, prompts=175.0, answers=1200.0),
    Components(0.0, 0.0, 0.0),
    "assumed, from the sandbox's list and pure_bad (docs/findings.md: 3 seeds, 140 prompts, 13.7 points detectable); "
    "--earlier outputs/STUDY/study.json takes those of a study of yours",
)


def read_variances(file: Path) -> Variances:
    """The variances that an earlier study's `study.json` holds. Raises ``UserError`` where it holds none."""
    document = read_json(file)
    try:
        statistics = document["statistics"]
        rows = [row for row in statistics["comparisons"] if _is_primary(row)]
        overall = [row for row in statistics["overall"] if _is_primary(row)]
    except (KeyError, TypeError):
        raise UserError(f"{file} is no study.json with statistics; give that of a finished study") from None
    per_task = {row["task"]: Components(**row["variances_points2"]) for row in rows if row.get("variances_points2")}
    if not per_task:
        raise UserError(
            f"{file} compares no high with low similarity over at least two seeds, so it shows no variance between "
            "seeds; leave --earlier out for the stated assumption, or run two seeds first"
        )
    mean = next((row["variances_points2"] for row in overall if row.get("variances_points2")), None)
    sizes = {row["task"]: (row["n_seeds"], row["n_prompts"]) for row in rows}
    R, P = max(sizes.values())
    name = document.get("study", {}).get("name") if isinstance(document.get("study"), dict) else document.get("study")
    source = f"study {name or file.parent.name} ({file}): {', '.join(per_task)}, {R} seeds, {P} prompts"
    return from_tasks(list(per_task.values()), Components(**mean) if mean else None, source)


def _is_primary(row: Any) -> bool:
    return (row["first"], row["second"], row["outcome"]) == ("high", "low", OUTCOME)


@dataclass(frozen=True)
class Earlier:
    """Variance components of one difference, in its unit squared, and whose they are."""

    components: Components
    source: str

    def detectable(self, n_seeds: int, n_prompts: int, alpha: float) -> float:
        """The true difference that so many seeds and prompts find with 80% power."""
        return self.components.spread(n_seeds, n_prompts).detectable(1 - alpha, POWER)


def primary_variances(file: Path, primary: Primary) -> Earlier | None:
    """How much the declared difference varied in an earlier study; None where it did not measure it over two seeds.

    The same comparison and outcome count, whatever its sizes; its tasks averaged where they are the same, else the
    mean of its tasks, as `Variances.of_mean` scales it.
    """
    document = read_json(file)
    if not isinstance(document, dict) or "cells" not in document:
        raise UserError(f"{file} is no study.json; give that of a finished study")
    name = f"study {document.get('study')} ({file})"
    block = document.get("primary") or {}
    declared = block.get("declared") or {}
    alike = (declared.get("outcome"), tuple(declared.get("comparison", ())), sorted(declared.get("tasks", ())))
    if alike == (primary.outcome, primary.comparison, sorted(primary.tasks)) and block.get("variances"):
        return Earlier(Components(**block["variances"]), f"{name}: its primary, {block['n_seeds']} seeds")
    lasting = primary.outcome == "restricted_mean_life"
    part = document.get("survival" if lasting else "statistics") or {}
    key = "variances_percent2" if lasting else "variances_points2"
    outcome = None if lasting else {"change": "change", "harmful_after": "final"}[primary.outcome]

    def rows(where: str) -> list[dict[str, Any]]:
        return [
            row
            for row in part.get(where, ())
            if (row["first"], row["second"], row.get("outcome")) == (*primary.comparison, outcome) and row.get(key)
        ]

    overall = rows("overall")
    same = next((row for row in overall if sorted(row["tasks"]) == sorted(primary.tasks)), None)
    if same is not None:
        return Earlier(Components(**same[key]), f"{name}: {', '.join(same['tasks'])}, {same['n_seeds']} seeds")
    single = {row["task"]: row for row in reversed(rows("comparisons"))}  # the first design
    if not single:
        return None
    together = Components(**overall[0][key]) if overall else None
    found = from_tasks([Components(**row[key]) for row in single.values()], together, name)
    n_seeds = max(row["n_seeds"] for row in single.values())
    return Earlier(found.of_mean(len(primary.tasks)), f"{name}: other tasks ({', '.join(single)}), {n_seeds} seeds")


def earlier_studies(outputs: Path, study: Study) -> list[Path]:
    """`study.json` files that may tell: this study's own first, then those of the same base model and safety prompts,
    the newest first."""
    own = outputs / study.name / "study.json"
    others = [file for file in outputs.glob("*/study.json") if file != own]
    found = [own] if own.is_file() else []
    for file in sorted(others, key=lambda file: -file.stat().st_mtime):
        config = (read_json(file).get("run") or {}).get("config") or {}
        models, evaluation = config.get("models") or {}, config.get("evaluation") or {}
        if (models.get("base"), evaluation.get("safety_bench")) == (study.models.base, study.evaluation.safety_bench):
            found.append(file)
    return found


def primary_power(study: Study, n_prompts: int, outputs: Path, given: Path | None = None) -> dict[str, Any] | None:
    """Seeds that the primary comparison needs, and what those that are planned find; None without a declaration.

    Raises ``UserError`` where the study.json that was ``given`` does not tell.
    """
    primary = study.primary
    if primary is None:
        return None
    out: dict[str, Any] = {
        "digest": digest_of(primary),
        "words": in_words(primary),
        "unit": primary.unit,
        "smallest_difference": primary.smallest_difference,
        "n_seeds_planned": len(study.seeds),
        "n_prompts": n_prompts,
        "seeds_needed": None,
        "detectable": None,
    }
    found = None
    for file in [given] if given else earlier_studies(outputs, study):
        found = found or primary_variances(file, primary)
    if found is None and given:
        raise UserError(
            f"{given} does not compare {' with '.join(primary.comparison)} in {primary.outcome} over two seeds; "
            "name another study.json, or leave --earlier out"
        )
    if found is None:
        return {**out, "source": "unknown: no earlier study"}
    planned = found.detectable(max(2, len(study.seeds)), n_prompts, primary.alpha)
    counts = range(2, MOST_SEEDS + 1)
    aim = primary.smallest_difference
    needed = next((n for n in counts if found.detectable(n, n_prompts, primary.alpha) <= aim), None)
    return {**out, "seeds_needed": needed, "detectable": round(planned, 2), "source": found.source}


def power_text(power: dict[str, Any] | None) -> list[str]:
    """The power of the primary comparison for people."""
    if power is None:
        return ["", "primary: none declared; everything this study finds will be exploratory (docs/primary.md)"]
    lines = ["", f"primary ({power['digest']}): {power['words']}"]
    if power["detectable"] is None:
        return [*lines, f"  seeds needed: {power['source']} (--earlier outputs/STUDY/study.json names one)"]
    planned, unit = power["n_seeds_planned"], power["unit"]
    lines.append(
        f"  {max(2, planned)} seeds find a true difference of {power['detectable']:.1f} {unit} with 80% power"
        + (f" ({planned} is planned: one seed decides nothing)" if planned < 2 else "")
    )
    aim = f"{power['smallest_difference']:g} {unit}"
    needed = power["seeds_needed"]
    if needed is None:
        text = f"no number of seeds up to {MOST_SEEDS} finds {aim} with {power['n_prompts']} prompts: more are needed"
    else:
        text = f"seeds needed for {aim}: {needed}" + ("" if planned >= needed else f", {planned} are planned")
    return [*lines, f"  {text}", f"  spread: {power['source']}"]
