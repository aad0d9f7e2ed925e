"""What tests ask a worker (tests/hub_worker.py) for, with results that JSON can hold."""

from __future__ import annotations

import os
from typing import Any


def use_token(token: str) -> None:
    os.environ["HF_TOKEN"] = token


def bench(name: str, data: str | None = None) -> dict[str, Any]:
    from guardrail.data.benches import load_bench

    loaded = load_bench(name, data)
    return {**loaded.facts, "prompts": [row["messages"][-1]["content"] for row in loaded.rows]}


def mt_bench() -> dict[str, Any]:
    from guardrail.evaluation.mt_bench.data import load_question_set

    return load_question_set().describe()


def utility(task: str) -> dict[str, Any]:
    from guardrail.evaluation.utility.tasks import describe, load_task

    return describe(load_task(task))


def model(name: str, kind: str = "causal_lm") -> dict[str, Any]:
    """A model and its tokenizer, in numbers that differ when anything of them does."""
    import hashlib

    import torch

    from guardrail.models import loading

    tokenizer = loading.load_tokenizer(name)
    loaded = getattr(loading, f"load_{kind}")(name)
    weights = hashlib.sha256()
    for key, tensor in sorted(loaded.state_dict().items()):
        weights.update(key.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    ids = tokenizer("Name three rivers, and say how long each one is.")["input_ids"]
    facts = {"class": type(loaded).__name__, "weights": weights.hexdigest(), "ids": ids}
    return {**facts, "pad": tokenizer.pad_token, "pad_id": tokenizer.pad_token_id, "n_tokens": len(tokenizer)}


def study_keys(study_file: str, outputs: str, refresh: bool = True) -> dict[str, str]:
    """Product -> key of a study, as its schedule (``refresh``) or its tables see them."""
    from guardrail.study.config import load_study
    from guardrail.study.dag import make_jobs
    from guardrail.study.grid import Grid
    from guardrail.study.hub_names import refresh_hub_names
    from guardrail.study.schedule import OUR_TRAINER

    study = load_study(study_file)
    if refresh:
        refresh_hub_names(study)
    jobs = make_jobs(Grid(study, outputs), OUR_TRAINER)
    return {f"{job.name}/{product.name}": product.key.value for job in jobs.values() for product in job.products}
