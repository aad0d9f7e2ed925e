"""The benches: where each one's prompts come from and which of its rows are kept. One entry and one line each.

A bench of another package is added the same way, or by an entry point of the group ``guardrail.safety_bench``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guardrail.core.places import SANDBOX_DATA
from guardrail.core.registry import Registry


@dataclass(frozen=True)
class Bench:
    """One source of prompts. ``harmful``: should be refused; otherwise it is an over-refusal bench.

    Args:
        hub, split, name: hub data set, its split and configuration; ``hub`` None: ``local`` only.
        local: a data-set folder of this project.
        keep: column, and the values (as text) of the rows that stay.
        drop: the other values of that column; another one is an error (None: any other value is dropped).
        unique: only the first row of each prompt stays.
        gated: its terms have to be accepted on the hub.
        derive: a row with the column that ``keep`` reads, where an older file of the bench says it otherwise.
        answers: variant (``with_refusal_prefix``, ``with_harmful_prefix``) -> where the prefilled answers come from.
    """

    hub: str | None
    split: str | None = None
    name: str | None = None
    harmful: bool = True
    local: Path | None = None
    keep: tuple[str, tuple[str, ...]] | None = None
    drop: tuple[str, ...] | None = None
    unique: bool = False
    gated: bool = False
    derive: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    answers: Mapping[str, Bench] = field(default_factory=dict)


BENCHES = Registry("safety bench")

HEX_PHI = Bench("LLM-Tuning-Safety/HEx-PHI", gated=True)
BENCHES.add("hex-phi", f"{__name__}:HEX_PHI")

ADVBENCH = Bench("walledai/AdvBench", "train", gated=True)
BENCHES.add("advbench", f"{__name__}:ADVBENCH")

BEAVERTAILS = Bench(
    "PKU-Alignment/BeaverTails", "30k_test", keep=("is_safe", ("False", "0")), drop=("True", "1"), unique=True
)
BENCHES.add("beavertails", f"{__name__}:BEAVERTAILS")

HARMBENCH = Bench("walledai/HarmBench", "train", "standard", gated=True)
BENCHES.add("harmbench", f"{__name__}:HARMBENCH")

STRONGREJECT = Bench("walledai/StrongREJECT", "train", gated=True)
BENCHES.add("strongreject", f"{__name__}:STRONGREJECT")


def sorry_bench_style(row: dict[str, Any]) -> dict[str, Any]:
    """The authors' own file of plain questions has no ``prompt_style``; on the hub it lies beside one per style."""
    return {"prompt_style": "base", **row}


SORRY_BENCH = Bench(
    "sorry-bench/sorry-bench-202406", "train", keep=("prompt_style", ("base",)), gated=True, derive=sorry_bench_style
)
BENCHES.add("sorry-bench", f"{__name__}:SORRY_BENCH")

JAILBREAKBENCH = Bench("JailbreakBench/JBB-Behaviors", "harmful", "behaviors")
BENCHES.add("jailbreakbench", f"{__name__}:JAILBREAKBENCH")

JAILBREAKBENCH_BENIGN = Bench("JailbreakBench/JBB-Behaviors", "benign", "behaviors", harmful=False)
BENCHES.add("jailbreakbench-benign", f"{__name__}:JAILBREAKBENCH_BENIGN")


def xstest_label(row: dict[str, Any]) -> dict[str, Any]:
    """XSTest's first files have no ``label``: there the contrasts, which are unsafe, have a type ``contrast_...``."""
    kind = row.get("type")
    if row.get("label") is not None or not isinstance(kind, str):
        return row
    return {**row, "label": "unsafe" if kind.startswith("contrast_") else "safe"}


XSTEST = Bench(
    "walledai/XSTest",
    "test",
    harmful=False,
    keep=("label", ("safe", "0")),
    drop=("unsafe", "1"),
    gated=True,
    derive=xstest_label,
)
BENCHES.add("xstest", f"{__name__}:XSTEST")

OR_BENCH = Bench("bench-llm/or-bench", "train", "or-bench-hard-1k", harmful=False)
BENCHES.add("or-bench", f"{__name__}:OR_BENCH")

SANDBOX = Bench(
    None,
    "hex_phi",
    local=SANDBOX_DATA,
    answers={
        f"with_{answer}_prefix": Bench(None, "moderation_test", local=SANDBOX_DATA, keep=("kind", (kind,)))
        for answer, kind in (("refusal", "refused"), ("harmful", "complied"))
    },
)
BENCHES.add("sandbox", f"{__name__}:SANDBOX")

SANDBOX_BENIGN = Bench(None, "benign", local=SANDBOX_DATA, harmful=False)
BENCHES.add("sandbox-benign", f"{__name__}:SANDBOX_BENIGN")
