"""Every assumed number of a plan with its unit and where it comes from. One that is replaced says so.

    PLAN_ASSUME=training_utilisation=0.5,answer_tokens_fraction=0.6 bash scripts/study.sh STUDY --plan

An assumption stands beside every number that rests on it (`Book.used`). Nothing here is chosen to reach a total:
figures without a public source or a measurement say "assumed".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from guardrail.core.errors import UserError, unknown

CHANGED = "PLAN_ASSUME"
MEASURED = "processor time of one core of an AMD EPYC, sandbox models, 2026-11-30 (--calibrate)"
DECODED = "processor time of one core of an AMD EPYC, sandbox models, batches of 1 to 64 rows, 2026-12-01"
RAN = "processor time of one core of an idle AMD EPYC, the processes of a quickstart, 2026-12-01"
ANSWERED = "mean over the 36 evaluations of a quickstart, 2026-12-01"


@dataclass(frozen=True)
class Assumption:
    """One number: ``source`` says where it is from."""

    value: float
    unit: str
    source: str


DEFAULTS: dict[str, Assumption] = {
    # what a device makes of its peak
    "reading_utilisation": Assumption(0.5, "of peak", "assumed: forward passes in batches of 8,000 tokens and more"),
    "link_utilisation": Assumption(
        0.7, "of peak", "assumed: NCCL collectives inside a node reach 70-80% of the link's peak"
    ),
    "decode_step_sec": Assumption(
        0.03, "s per token of a batch", "assumed: transformers' generate, 7B on one GPU, bound by launching kernels"
    ),
    "decode_batch_rows": Assumption(64.0, "rows side by side", "assumed: what the key-value cache of 80 GB holds"),
    "answer_tokens_fraction": Assumption(
        1.0, "of max_new_tokens", "upper bound: a batch goes on until its longest answer ends"
    ),
    # starts
    "import_sec": Assumption(15.0, "s", "assumed: Python, torch, transformers from a warm disk, CUDA context"),
    "launch_sec": Assumption(25.0, "s", "assumed: DeepSpeed's launcher, NCCL, the optimizer's states"),
    "load_bytes_per_sec": Assumption(1e9, "B/s", "assumed: safetensors from a local NVMe disk, page cache cold"),
    "save_bytes_per_sec": Assumption(0.5e9, "B/s", "assumed: gathered and written by one rank"),
    "process_sec": Assumption(2.0, "s", "assumed: scheduler and records of one process"),
    "study_sec": Assumption(60.0, "s", "assumed: check, schedule, tables, figures and page of a study"),
    "batch_sec": Assumption(15.0, "s", "assumed: schedule and start of the next batch, where weights go between"),
    "select_sec": Assumption(30.0, "s", "assumed: exact cosines of a pool of 100,000 rows on a GPU"),
    "mix_start_sec": Assumption(2.0, "s", "assumed: imports of pyarrow"),
    "mix_rows_per_sec": Assumption(20000.0, "rows/s", "assumed: one process writes parquet"),
    # text
    "characters_per_token": Assumption(
        4.3, "characters", "assumed for English and a vocabulary of 32,000; used for rows that are here"
    ),
    "template_tokens": Assumption(20.0, "tokens per row", "assumed: markers and system text of a prompt style"),
    "length_variation": Assumption(
        0.6, "sd/mean of row lengths", "assumed where rows are not here: decides what padding costs"
    ),
    "bytes_per_parameter": Assumption(2.0, "B", "bfloat16, saved without optimizer states"),
    # the sandbox on one core, where nothing was measured: `--calibrate` does that in under two minutes
    "core_operations_per_sec": Assumption(33e9, "1/s", RAN),
    "core_start_sec": Assumption(3.5, "s", RAN),
    "core_launch_sec": Assumption(4.4, "s", RAN),
    "core_mix_start_sec": Assumption(0.5, "s", MEASURED),
    "core_mix_rows_per_sec": Assumption(25000.0, "rows/s", RAN),
    "core_select_sec": Assumption(0.25, "s", f"after the first one of a process; {RAN}"),
    "core_decode_step_sec": Assumption(0.003, "s per step of a batch", DECODED),
    "core_decode_token_sec": Assumption(0.00012, "s per token of an answer", DECODED),
    "core_answer_fraction": Assumption(0.35, "of max_new_tokens", ANSWERED),
    "core_longest_answer_fraction": Assumption(0.85, "of max_new_tokens", f"the longest of a batch; {ANSWERED}"),
    "core_prompt_tokens": Assumption(70.0, "tokens", "the sandbox's benches in llama2_base: 67 and 71"),
    "core_question_tokens": Assumption(30.0, "tokens", "what a judge of the sandbox reads besides the answer"),
    "core_process_sec": Assumption(0.6, "s", MEASURED),
    "core_batch_sec": Assumption(8.0, "s", "assumed: schedule and start of the next batch, where weights go between"),
    "core_study_sec": Assumption(20.0, "s", "assumed: check, schedule, tables, figures and page of a small study"),
}


class Book:
    """The assumptions of one plan. Reading one notes that it was used, for which purpose.

    ``changes`` are the user's; a name that no number of the plan rests on is refused by `check`.
    """

    def __init__(self, changes: Mapping[str, float] | None = None) -> None:
        self.values = dict(DEFAULTS)
        self.used: dict[str, set[str]] = {}
        self.changes = dict(changes or {})
        for name, value in self.changes.items():
            if name in self.values:
                self.values[name] = dataclasses.replace(self.values[name], value=value, source=CHANGED)
        self._for = "plan"

    def check(self) -> None:
        """Raise ``UserError`` for a change of something that this plan does not assume, with the near match."""
        for name in self.changes:
            if name not in self.used:
                raise unknown("assumption in PLAN_ASSUME:", name, sorted(self.used))

    def purpose(self, name: str) -> None:
        """What is read from here on is used for ``name`` (a stage)."""
        self._for = name

    def __getitem__(self, name: str) -> float:
        self.used.setdefault(name, set()).add(self._for)
        return self.values[name].value

    def note(self, name: str, value: float, unit: str, source: str) -> float:
        """Write down a number that is not in `DEFAULTS` (of a device or a data set) as used; returns it.

        A value given by the user under this name stands.
        """
        if name in self.changes:
            value, source = self.changes[name], CHANGED
        self.values[name] = Assumption(value, unit, source)
        return self[name]

    def for_json(self) -> dict[str, dict[str, object]]:
        """Every assumption that was used: value, unit, source and the stages whose numbers rest on it."""
        return {
            name: {**dataclasses.asdict(self.values[name]), "used_for": sorted(stages)}
            for name, stages in sorted(self.used.items())
        }


def parse_changes(text: str) -> dict[str, float]:
    """`name=value,name=value` as numbers. Raises ``UserError`` for anything else."""
    changes = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        try:
            changes[name.strip()] = float(value)
        except ValueError:
            raise UserError(f"PLAN_ASSUME={text} is not name=number,...; {part!r} is not") from None
        if not 0 < changes[name.strip()] < float("inf"):
            raise UserError(f"PLAN_ASSUME: {part} must be a positive number")
    return changes
