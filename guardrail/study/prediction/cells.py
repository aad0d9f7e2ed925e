"""One cell: an aligned checkpoint is fine-tuned on the rows of one bin, probed along the way, and its answers judged.

The stages are the study's own (`guardrail.evaluation.trajectory`, the moderation model), called in this process, so
that libraries are loaded once for hundreds of short trainings. A cell that is done is kept under a key over everything
that decides it; what a kill leaves of one is made again. Weights go as soon as the answers are there.
"""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from guardrail.core.errors import UserError
from guardrail.core.files import hash_json, read_json, write_json, write_jsonl
from guardrail.data.rows import Row, hash_rows
from guardrail.evaluation.judges.beaver_dam import BeaverDam
from guardrail.evaluation.probes import SAFETY, ProbeConfig
from guardrail.models.checkpoints import hash_checkpoint
from guardrail.study.evaluation_jobs import EVAL_TEMPLATE
from guardrail.study.grid import Alignment, Grid, sizeless
from guardrail.study.training_jobs import training_config
from guardrail.training.config import SFTConfig

VERSION = 1  # raise when the same settings give other numbers
CELL = "cell.json"


@dataclass(frozen=True)
class Place:
    """A cell: the ``scorer``, how its bins are made (``plain`` or ``matched``), the bin (0: lowest) and the seed."""

    scorer: str
    kind: str
    bin: int
    seed: int

    @property
    def folder(self) -> str:
        return f"cells/{self.scorer}_{self.kind}/bin{self.bin + 1}/seed{self.seed}"

    @property
    def rows(self) -> str:
        """The file of the bin's rows, which its seeds share."""
        return f"bins/{self.scorer}_{self.kind}/bin{self.bin + 1}.jsonl"


class Cells:
    """Makes cells of one study below ``folder``."""

    def __init__(self, grid: Grid, folder: Path) -> None:
        self.grid, self.study, self.folder = grid, grid.study, folder
        if self.study.fine_tuning.method != "full":
            raise UserError("prediction fine-tunes all weights; set fine_tuning.method to full")
        if not self.study.fine_tuning.probes:
            raise UserError("prediction measures survival; set fine_tuning.probes, e.g. to 6")

    def aligned(self, seed: int) -> Path:
        """The checkpoint that all bins of a seed start from: the study's first subset that no task selects."""
        subset, size = self.study.subsets[0], self.study.subset_sizes[0]
        alignment = Alignment(None, subset, size, seed, self.study.all_designs[0].alignment)
        folder = self.grid.aligned_folder(alignment)
        if not (folder / "slice_end").is_dir():
            hint = "" if sizeless(subset) or subset == "random" else f" ({subset} depends on a task: use random)"
            raise UserError(f"{folder} is not there{hint}; run the study first: bash scripts/study.sh STUDY.yaml")
        return folder

    @cached_property
    def models(self) -> dict[str, str]:
        """Content hashes of the aligned checkpoints and the judge."""
        out = {str(seed): hash_checkpoint(str(self.aligned(seed))) for seed in self.study.seeds}
        return out | {"judge": hash_checkpoint(self.study.models.moderation)}

    @property
    def judge(self) -> BeaverDam:
        evaluation = self.study.evaluation
        return BeaverDam(
            moderation_model=self.study.models.moderation,
            max_length=evaluation.moderation_max_length,
            threshold=evaluation.threshold,
            figure=False,
        )

    @property
    def probes(self) -> ProbeConfig:
        evaluation = self.study.evaluation
        return ProbeConfig(
            probes=self.study.fine_tuning.probes,
            probe_bench=evaluation.safety_bench,
            probe_bench_data=evaluation.safety_bench_data,
            probe_limit=evaluation.limit,
            probe_eval_template=EVAL_TEMPLATE,
            probe_max_new_tokens=evaluation.max_new_tokens,
        )

    def training(self, place: Place) -> SFTConfig:
        """Every bin of a study is trained for the same number of steps, whatever a row more or less it has."""
        tuning = self.study.fine_tuning
        rows_per_step = tuning.per_device_train_batch_size * tuning.gradient_accumulation_steps
        assert self.study.prediction is not None
        steps = max(1, self.study.prediction.rows_per_bin // rows_per_step) * tuning.epochs
        out = self.folder / place.folder
        return dataclasses.replace(
            training_config(self.study, tuning, place.seed),
            model_name_or_path=str(self.aligned(place.seed)),
            train_datasets=str(self.folder / place.rows),
            output_dir=str(out),
            epochs=tuning.epochs + 1,
            max_steps=steps,
            log_type="none",
        )

    def key(self, place: Place, rows: list[Row]) -> str:
        study = self.study
        return hash_json(
            {
                "version": VERSION,
                "rows": hash_rows(rows),
                "model": self.models[str(place.seed)],
                "judge": self.models["judge"],
                "training": dataclasses.asdict(study.fine_tuning),
                "rows_per_bin": study.prediction.rows_per_bin if study.prediction else None,
                "evaluation": dataclasses.asdict(study.evaluation),
                "style": study.prompt_style,
                "seed": place.seed,
            }
        )

    def is_done(self, place: Place, rows: list[Row]) -> bool:
        file = self.folder / place.folder / CELL
        return file.is_file() and read_json(file).get("key") == self.key(place, rows)

    def make(self, place: Place, rows: list[Row]) -> None:
        """Train, probe, judge; ``cell.json`` last."""
        from guardrail.evaluation.judges.stage import judge_file
        from guardrail.evaluation.trajectory import Trajectory
        from guardrail.training import sft

        out = self.folder / place.folder
        shutil.rmtree(out, ignore_errors=True)
        write_jsonl(self.folder / place.rows, rows)
        config = self.training(place)
        summary = sft.run_training(config, Trajectory(self.probes, config))
        if summary["n_steps"] != config.max_steps:
            raise UserError(f"{out}: {summary['n_steps']} steps were trained, expected {config.max_steps}")
        judged = judge_file(out / SAFETY, self.judge)
        flags: dict[str, dict[int, bool | None]] = {}
        for row in read_json(judged["judgements"])["judgements"]:
            flags.setdefault(row["prompt_id"], {})[row["step"]] = row["harmful"]
        steps = sorted(next(iter(flags.values())))
        shutil.rmtree(out / "slice_end", ignore_errors=True)
        write_json(
            out / CELL,
            {
                "key": self.key(place, rows),
                "steps": steps,
                "harmful": {prompt: [by_step[step] for step in steps] for prompt, by_step in flags.items()},
                "final_loss": summary["final_loss"],
            },
            indent=None,
        )

    def read(self, place: Place) -> dict[str, Any]:
        return dict(read_json(self.folder / place.folder / CELL))


def stack_cells(documents: list[list[dict[str, Any]]]) -> tuple[list[int], list[str], np.ndarray]:
    """Steps, prompts that every cell decided at every step, and flags (B, R, P, J + 1) of bins x seeds of cells."""
    cells = [document for row in documents for document in row]
    steps = cells[0]["steps"]
    if any(document["steps"] != steps for document in cells):
        raise UserError("the cells were probed at different steps; delete them and start again")
    decided = [{p for p, flags in document["harmful"].items() if None not in flags} for document in cells]
    prompts = sorted(set.intersection(*decided))
    if len(prompts) < 2:
        raise UserError(f"the cells share {len(prompts)} judged prompts; expected at least 2")
    values = [[[document["harmful"][prompt] for prompt in prompts] for document in row] for row in documents]
    return steps, prompts, np.array(values, dtype=bool)
