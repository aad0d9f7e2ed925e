"""Kinds of GPU: published peak figures, and the share of the peak that training was seen to reach.

    PLAN_GPU=h100 PLAN_GPUS=4 bash scripts/study.sh configs/studies/paper_llama2_7b.yaml --plan

Peak: dense bfloat16 with float32 accumulation, no sparsity; memory and links as on the makers' data sheets (NVIDIA A100
datasheet 2021, H100 2023, H200 2024, B200/DGX B200 2024, L40S 2023, A6000 2021). Links: one direction of NVLink, or of
PCIe 4 x16 where a card has none.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

from guardrail.core.errors import unknown

GIB = 2**30
A100_SOURCE = (
    "assumed; upper bound 0.48: Llama-2-7B, FSDP, no checkpointing, 3,700 tokens/s per A100 (foundation-model-stack/"
    "fms-fsdp, README)"
)
H100_SOURCE = (
    "measured by others: 7.24B, ZeRO-3, checkpointing, 1,090 steps of 128 x 2,048 tokens in 5,608 s on 8 GPUs = 8N x "
    "6,368 tokens/s each = 369e12/s (alignment-handbook/zephyr-7b-sft-full, model card and train_results.json; the GPU "
    "is not named there, an A100's peak would be exceeded)"
)


@dataclass(frozen=True)
class Gpu:
    """One kind: peak operations/s, bytes of memory, bytes/s of memory and of its link; ``training``: share of peak."""

    name: str
    operations_per_sec: float
    memory_bytes: float
    memory_bytes_per_sec: float
    link_bytes_per_sec: float
    training: float
    training_source: str


KINDS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-40gb", 312e12, 40 * GIB, 1.555e12, 300e9, 0.40, A100_SOURCE),
        Gpu("a100-80gb", 312e12, 80 * GIB, 2.039e12, 300e9, 0.40, A100_SOURCE),
        Gpu("h100", 989e12, 80 * GIB, 3.35e12, 450e9, 0.37, H100_SOURCE),
        Gpu("h200", 989e12, 141e9, 4.8e12, 450e9, 0.37, H100_SOURCE),
        Gpu("b200", 2250e12, 180e9, 8.0e12, 900e9, 0.30, "assumed: below the H100's share, no public figure for SFT"),
        Gpu("l40s", 362e12, 48 * GIB, 0.864e12, 32e9, 0.35, "assumed"),
        Gpu("a6000", 155e12, 48 * GIB, 0.768e12, 32e9, 0.40, "assumed"),
    )
}
DEFAULT_KIND = "a100-80gb"  # the paper's commands name four GPUs without their kind


def kind(name: str) -> Gpu:
    """The GPU of that name. Raises ``UserError`` with the near match."""
    found = KINDS.get(name.lower().replace("_", "-").replace(" ", "-"))
    if found is None:
        raise unknown("PLAN_GPU", name, KINDS)
    return found


def recognise(name: str, memory_mib: float) -> Gpu | None:
    """The kind behind a name that nvidia-smi gives (`NVIDIA A100-SXM4-80GB`); None for one that is not in the table."""
    text = name.lower()
    for word in ("a100", "h100", "h200", "b200", "l40s", "a6000"):
        if re.search(rf"\b(?:rtx )?{word}\b", text):
            if word == "a100":
                return KINDS["a100-40gb" if memory_mib < 60_000 else "a100-80gb"]
            return KINDS[word]
    return None


def this_machines() -> Gpu | None:
    """The kind of the first GPU that nvidia-smi lists; None without one, or for one that is not in the table."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = [line for line in done.stdout.splitlines() if line.count(",") == 1] if done.returncode == 0 else []
    if not lines:
        return None
    name, memory = (part.strip() for part in lines[0].split(","))
    return recognise(name, float(memory) if memory.replace(".", "").isdigit() else 0.0)
