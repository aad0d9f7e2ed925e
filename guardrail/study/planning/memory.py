"""Does every stage fit on the GPUs? If a usual batch does not, the plan is refused, with what would fit.

Peaks are those of `guardrail.bench.estimate`. Refused is what cannot run: a batch of average length on the given GPUs.
Where only the longest rows (mean and three standard deviations) are too much, the plan says so and goes on. A probe
that fits with one prompt runs: it halves its batches of answers until they fit, too.
"""

from __future__ import annotations

from typing import Any

from guardrail.bench.estimate import Fit, estimate, fits, settings_of_training
from guardrail.bench.settings import PROBE_ROWS, PROMPT_TOKENS
from guardrail.core.errors import UserError
from guardrail.core.files import read_json
from guardrail.core.places import DEEPSPEED_FOLDER
from guardrail.study.jobs import Job
from guardrail.study.plan import Parts
from guardrail.study.planning.costs import TRAINING_STAGES
from guardrail.study.planning.volumes import Volume, padding_of

LONGEST = 3.0  # standard deviations above the mean


def check_memory(parts: Parts) -> list[dict[str, Any]]:
    """One entry per kind of work: what it needs on one GPU, whether it fits, and what would. Empty without GPUs."""
    gpu = parts.node.gpu
    if gpu is None:
        return []
    out: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name in parts.waiting:
        job = parts.jobs[name]
        for key, usual, longest in _needs(parts, job):
            if key not in out:
                found, worst = fits(usual, int(gpu.memory_bytes)), fits(longest, int(gpu.memory_bytes))
                out[key] = {"stage": job.stage, **_entry(found), "longest": _entry(worst)}
    return list(out.values())


def require_memory(parts: Parts) -> list[dict[str, Any]]:
    """`check_memory`; raises ``UserError`` in one line where a usual batch cannot fit."""
    entries = check_memory(parts)
    for entry in entries:
        if not entry["fits"]:
            raise UserError(f"{entry['stage']} does not fit on {parts.node.name}: {entry['message']}")
    return entries


def memory_text(entries: list[dict[str, Any]]) -> list[str]:
    """For the plan: the peak of each stage, and a warning where the longest rows are too much."""
    peaks: dict[str, float] = {}
    for entry in entries:
        peaks[entry["stage"]] = max(peaks.get(entry["stage"], 0.0), entry["longest"]["needed_bytes"])
    if not peaks:
        return []
    lines = ["GPU memory: " + ", ".join(f"{stage} {size / 2**30:.1f} GiB" for stage, size in peaks.items())]
    tight = {entry["stage"]: entry["longest"] for entry in entries if not entry["longest"]["fits"]}
    for stage, worst in tight.items():
        what = "a whole batch of answers at the probes" if worst["phase"] == "probe" else "the longest rows"
        lines.append(f"warning: {what} of {stage} may not fit: {worst['message']}")
    return lines


def _entry(found: Fit) -> dict[str, Any]:
    return {
        "fits": found.fits,
        "phase": max(found.found.phases, key=found.found.phases.__getitem__),
        "needed_bytes": found.needed_bytes,
        "usable_bytes": found.usable_bytes,
        "message": found.message(),
    }


def _tokens(rows: Volume, pad: float, limit: int) -> tuple[int, int]:
    """Tokens of a row in a usual batch and in the longest."""
    usual = min(rows.tokens * pad, limit)
    longest = min(rows.tokens * (1 + LONGEST * rows.variation), limit)
    return max(1, round(usual)), max(1, round(longest), round(usual))


def _probes(job: Job, rows: int) -> dict[str, int]:
    """Settings of an estimate for the probes of a training; nothing where it has none."""
    for product in job.products:
        if product.key.parts["stage"] == "trajectory":
            return {"probe_rows": rows, "new_tokens": product.key.parts["options"]["probe_max_new_tokens"]}
    return {}


def _needs(parts: Parts, job: Job) -> list[tuple[tuple[Any, ...], Any, Any]]:
    """(what distinguishes it, estimate of a usual batch, of the longest) of every product of a job."""
    out = []
    study, counter = parts.grid.study, parts.counter
    for product in job.products[:1]:
        options = product.key.parts["options"]
        if job.stage in TRAINING_STAGES:
            plain = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
            content = read_json(DEEPSPEED_FOLDER / options["ds_cfgs"])
            settings = settings_of_training(content, **{**plain, "n_gpus": counter.ranks})
            rows = counter.rows_of(job)
            pad = padding_of(options, rows)
            tokens = _tokens(rows, pad, options["model_max_length"])
            few, many = _probes(job, 1), _probes(job, PROBE_ROWS)  # too large a batch of answers is halved
            usual = estimate(counter.shape, "sft", settings, row_tokens=tokens[0], **few)
            longest = estimate(counter.shape, "sft", settings, row_tokens=tokens[1], **many)
        elif job.stage == "representations":
            tokens = _tokens(counter.rows_of(job), 1.0, counter.shape.max_tokens)
            usual, longest = (estimate(counter.shape, "extract", dtype=study.dtype, row_tokens=n) for n in tokens)
        elif job.stage == "harmfulness":
            limit = study.evaluation.moderation_max_length
            usual = longest = estimate(counter.moderation, "moderate", row_tokens=limit)
        elif "max_new_tokens" in options:
            new, prompt = options["max_new_tokens"], PROMPT_TOKENS
            usual = longest = estimate(
                counter.shape,
                "generate",
                dtype=study.dtype,
                row_tokens=prompt,
                new_tokens=new,
                n_gpus=parts.node.per_job,
            )
        else:
            continue
        out.append(((job.stage, usual.settings, longest.settings), usual, longest))
    return out
