"""What generating answers took, counted from the answers: steps of its batches, and tokens.

A plan assumes how long answers are. Where they are there (a calibration), they are counted, so that what is measured is
the speed of a step and not the length of the answers of a checkpoint that was hardly trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guardrail.core.files import read_json
from guardrail.core.units import consecutive
from guardrail.study.jobs import Job

STAGES = ("safety_answers", "over_refusal", "utility")
BATCH_ROWS = 64  # of a batch on a CPU (guardrail.generation.hf)


def count(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """(steps of all batches, tokens of all answers) of result rows; the token that ends an answer is one as well."""
    made = [row["n_completion_tokens"] + (row["finish_reason"] != "length") for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (-rows[i]["n_prompt_tokens"], rows[i]["id"], rows[i]["sample"]))
    steps = sum(max(made[i] for i in batch) for batch in consecutive(order, BATCH_ROWS))
    return float(steps), float(sum(made))


def answered(root: Path, jobs: Mapping[str, Job]) -> dict[str, tuple[float, float]]:
    """Job -> `count` of its answers, for the jobs of a finished study that made some."""
    return {
        name: count(read_json(root / job.products[0].files[0])["results"])
        for name, job in jobs.items()
        if job.stage in STAGES
    }
