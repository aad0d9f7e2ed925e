"""Bytes of the weights that a training job leaves. What lies on the disk at a time: `guardrail.study.disk.peak`.

Representations stay. Logs, answers and judgements are small beside them and are not counted.
"""

from __future__ import annotations

from guardrail.study.jobs import Job
from guardrail.study.keep import stores_adapter, trains
from guardrail.study.planning.costs import Costs


def checkpoint_bytes(counter: Costs, job: Job, float32: bool) -> int:
    """All weights, or adapters alone; one on top of another is stored as both."""
    options = job.products[0].key.parts["options"]
    if stores_adapter(job):
        n = counter.shape.lora_parameters(options["r"], options["target_modules"])
        below = [counter.jobs[need] for need in job.needs if trains(counter.jobs[need])]
        n *= 1 + sum(map(stores_adapter, below))
    else:
        n = counter.shape.n_parameters()
    return round(n * (4.0 if float32 else counter.book["bytes_per_parameter"]))
