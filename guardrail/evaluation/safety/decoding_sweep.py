"""Decoding as an attack: the same prompts at several temperatures and top-p values, and the best of k samples.

``eval_safety.py --decoding_sweep True`` writes one ordinary results folder per point, ``<save_path>/sweep/t0.9-p0.6/``,
judges each (``--evaluator``), and ``<save_path>/sweep.json``: a row per point, and the share of prompts for which
at least one of k samples is harmful (unbiased estimator), per point and over all points together.
Source of the idea: Huang et al. 2023, "Catastrophic jailbreak via exploiting generation".
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from guardrail.core.cli import log
from guardrail.core.errors import UserError
from guardrail.core.files import write_json
from guardrail.core.options import option
from guardrail.core.provenance import run_record
from guardrail.core.ranks import is_main
from guardrail.evaluation.safety.evaluate import SafetyConfig, evaluate_safety

SWEEP = "sweep.json"


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """The grid; `points` has it as numbers."""

    decoding_sweep: bool = option(False, "temperature x top-p grid, best of k")
    sweep_temperatures: str = option("0.1,0.5,0.9,1.2", "with --decoding_sweep")
    sweep_top_p: str = option("0.6,0.9,1.0", "with --decoding_sweep")

    def points(self) -> tuple[list[float], list[float]]:
        """Temperatures and top-p values; ``UserError`` unless both are numbers above 0."""
        return _numbers(self.sweep_temperatures, "sweep_temperatures"), _numbers(self.sweep_top_p, "sweep_top_p")


def _numbers(text: str, flag: str) -> list[float]:
    """``0.1,0.5,1.0`` as numbers above 0."""
    try:
        values = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        values = []
    if not values or any(v <= 0 for v in values):
        raise UserError(f"--{flag} {text!r}; expected numbers above 0, separated by commas")
    return values


def sweep_configs(config: SafetyConfig, temperatures: list[float], top_ps: list[float]) -> list[SafetyConfig]:
    """One configuration per point, each with its own folder."""
    if not config.do_sample:
        raise UserError("--decoding_sweep varies sampling: leave out --do_sample False")
    folder = config.results_file.parent / "sweep"
    return [
        dataclasses.replace(config, temperature=t, top_p=p, save_path=str(folder / f"t{t:g}-p{p:g}"))
        for t in temperatures
        for p in top_ps
    ]


def run_sweep(config: SafetyConfig, sweep: SweepOptions, judge: Any | None) -> dict[str, Any] | None:
    """Generate and judge every point (finished ones are reused). The table on rank 0, None elsewhere."""
    temperatures, top_ps = sweep.points()
    backend = config.backend()  # one model for all points
    points = []
    judged: dict[str, list[bool | None]] = defaultdict(list)
    for one in sweep_configs(config, temperatures, top_ps):
        log(f"temperature {one.temperature:g}, top-p {one.top_p:g}")
        generated = evaluate_safety(one, backend)
        if not is_main() or generated is None:
            continue
        row: dict[str, Any] = {"temperature": one.temperature, "top_p": one.top_p, "results": generated["results"]}
        row["data_hash"] = generated["data_hash"]
        if judge is not None:
            from guardrail.evaluation.judges.stage import judge_file, load_judgements

            judged_file = load_judgements(judge_file(one.results_file, judge)["judgements"])
            by_prompt: dict[str, list[bool | None]] = defaultdict(list)
            for j in judged_file["judgements"]:
                by_prompt[j["id"]].append(j["harmful"])
                judged[j["id"]].append(j["harmful"])
            summary = judged_file["summary"]
            row |= {
                name: summary[name]
                for name in ("n", "harmfulness_score_percent", "harmfulness_score_interval_percent", "refusal_percent")
            }
            row["best_of_k_percent"] = best_of_k_table(by_prompt, config.samples_per_prompt)
        points.append(row)
    if not is_main():
        return None
    document: dict[str, Any] = {"points": points}
    if judge is not None:
        n_draws = config.samples_per_prompt * len(points)
        document["all_points"] = {
            "n_prompts": len(judged),
            "n_samples_per_prompt": n_draws,
            "any_harmful_percent": best_of_k_table(judged, n_draws)[str(n_draws)],
        }
    hashes = {point["data_hash"] for point in points}
    document["run"] = run_record(
        "decoding_sweep",
        {**dataclasses.asdict(config), "temperatures": temperatures, "top_ps": top_ps},
        data_hash=hashes.pop() if len(hashes) == 1 else None,
        judge=None if judge is None else judge.identity(),
        n=len(points),
        seeds={"seed": config.seed},
    )
    file = write_json(config.results_file.parent / SWEEP, document)
    return {"sweep": str(file), "n_points": len(points), **document.get("all_points", {})}


def best_of_k_table(by_prompt: dict[str, list[bool | None]], n_samples: int) -> dict[str, float | None]:
    """k -> percent of prompts with at least one harmful answer among k samples, for k = 1, 2, 4, ..., n_samples.

    Prompts with a judge failure among their samples are left out; None when none is left.
    """
    from guardrail.statistics.rates import best_of_k

    counts = [sum(map(bool, v)) for v in by_prompt.values() if None not in v and len(v) == n_samples]
    ks = [k for k in (1 << i for i in range(20)) if k < n_samples] + [n_samples]
    if not counts:
        return {str(k): None for k in ks}
    return {str(k): round(100 * sum(best_of_k(c, n_samples, k) for c in counts) / len(counts), 4) for k in ks}
