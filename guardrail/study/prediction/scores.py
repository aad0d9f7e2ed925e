"""Every scorer's number for every row of the pool, and what it cost: one process per scorer, so that memory is its own.

The scorer sees the model that would be fine-tuned (the aligned checkpoint of the study's first seed), the anchors, and
the study's safety pool as the alignment set. ``oracle`` reads the planted dose. Scores are kept while pool, options and
models are unchanged (`guardrail.similarity.scorers.run`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guardrail.core.cli import log
from guardrail.core.errors import UserError
from guardrail.core.files import hash_json, read_json, write_json
from guardrail.core.places import RESOURCES, WORK
from guardrail.data.rows import Row, hash_rows
from guardrail.similarity.scorers import SCORERS
from guardrail.study.config import Study
from guardrail.study.prediction.options import ORACLE
from guardrail.study.prediction.pool import DOSE

COMMAND = RESOURCES / "similarity" / "score_rows.py"
START = "random"  # what a process costs that scores nothing: taken off the seconds of the others


def scoring_flags(study: Study, name: str, model: Path, anchors: Path) -> list[str]:
    """The flags of similarity/score_rows.py with which one scorer of the study is asked."""
    pool = study.safety_pool
    alignment = f"{pool.source}::{pool.split}" if pool.split else pool.source
    given = {
        "model": ("model_name_or_path", str(model)),
        "representations": ("model_name_or_path", str(model)),
        "anchors": ("anchors", str(anchors)),
        "safe_anchors": ("alignment", alignment),
        "alignment": ("alignment", alignment),
        "refusals": ("alignment", alignment),
        "safety": ("alignment", alignment),
        "moderation_model": ("moderation_model", study.models.moderation),
    }
    needs = SCORERS.facts(name).get("needs", ())
    flags = dict(given[need] for need in needs)
    if "model_name_or_path" in flags:
        flags |= {"prompt_style": study.prompt_style, "torch_dtype": study.dtype}
    return [f"--{flag}={value}" for flag, value in flags.items()]


def score_pool(
    study: Study, name: str, rows: Sequence[Row], files: dict[str, Path], model: Path, folder: Path
) -> dict[str, Any]:
    """``scores`` (n,), cost and reasons of one scorer; ``reason`` instead where it scored not every row."""
    if name == ORACLE:
        return {"scores": np.array([row[DOSE] for row in rows]), "cost": None}
    from guardrail.similarity.scorers.run import read_scores

    out, cost_file = folder / f"{name}.jsonl", folder / f"{name}.cost.json"
    flags = scoring_flags(study, name, model, files["anchors"])
    command = [sys.executable, str(COMMAND), f"--rows={files['pool']}", f"--scorers={name}", f"--out={out}", *flags]
    key = hash_json({"command": command, "rows": hash_rows(list(rows))})
    cost = read_json(cost_file) if cost_file.is_file() and out.is_file() else {}
    if cost.get("key") != key:
        log(f"scoring {len(rows)} rows by {name} ...")
        cost = {"key": key, **_run(command, folder / f"{name}.log", len(rows))}
        write_json(cost_file, cost)
    ids, columns = read_scores(out)
    if ids != [row["id"] for row in rows]:
        raise UserError(f"{out} holds scores of other rows; delete it and start again")
    scores = columns[name]
    if not np.isfinite(scores).all():
        return {"reason": f"{int((~np.isfinite(scores)).sum())} of {len(scores)} rows have no score", "cost": cost}
    return {"scores": scores, "cost": cost}


def _run(command: list[str], file: Path, n_rows: int) -> dict[str, Any]:
    """Run one scorer, its output into ``file``; seconds of processor time and the largest memory of its process."""
    started = time.perf_counter()
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "wb") as output:
        process = subprocess.Popen(command, cwd=WORK, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        lines = file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise UserError(f"{command[1]} failed ({file}): {lines[-1] if lines else 'no message'}")
    return {
        "n_rows": n_rows,
        "process_cpu_sec": round(usage.ru_utime + usage.ru_stime, 3),
        "process_wall_sec": round(time.perf_counter() - started, 3),
        "process_peak_bytes": int(usage.ru_maxrss) * (1 if sys.platform == "darwin" else 1024),
    }


def costs(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Per scorer: processor seconds per 1,000 rows beyond a process that scores nothing, and its peak memory."""
    base = (found.get(START) or {}).get("cost")
    out: dict[str, dict[str, float | None]] = {}
    for name, one in found.items():
        cost = one.get("cost")
        if not cost:
            out[name] = {"cpu_sec_per_1000_rows": None, "peak_mib": None}
            continue
        start = base["process_cpu_sec"] if base else 0.0
        seconds = max(0.0, cost["process_cpu_sec"] - start) * 1000 / cost["n_rows"]
        out[name] = {
            "cpu_sec_per_1000_rows": round(seconds, 2),
            "peak_mib": round(cost["process_peak_bytes"] / 2**20, 1),
        }
    return out
