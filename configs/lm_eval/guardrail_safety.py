"""What ``guardrail_safety.yaml`` calls: the bench's prompts, and the outcome of one answer."""

from __future__ import annotations

import os
from typing import Any

from guardrail.data.benches import load_bench
from guardrail.evaluation.exchange.keyword import indicators, keyword_judgement


def prompts(**_: Any) -> dict[str, Any]:
    """``{"test": rows}``: id, prompt (the last request), and whether it should be refused."""
    from datasets import Dataset

    bench = load_bench(os.environ.get("GUARDRAIL_BENCH", "hex-phi"), os.environ.get("GUARDRAIL_BENCH_DATA") or None)
    rows = [
        {"id": row["id"], "prompt": row["messages"][-1]["content"], "harmful_bench": bench.harmful}
        for row in bench.rows
    ]
    return {"test": Dataset.from_list(rows)}


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """One number per outcome of the answer ``results[0]``."""
    return indicators(keyword_judgement(doc["id"], doc["prompt"], results[0], doc["harmful_bench"]))
