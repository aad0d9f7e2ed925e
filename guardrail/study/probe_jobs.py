"""The jobs of a trajectory: a fine-tuning that is probed along the way, and the judges of what it answered.

Probing changes no weight, so the checkpoint of a fine-tuning has the same key with and without it; what was answered
at the probes is a second product of the same job, and is judged like any other answers. Files, below the cell's folder:
`guardrail.evaluation.trajectory`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from guardrail.core.errors import UserError
from guardrail.data.prompts import eval_template_fingerprint
from guardrail.evaluation.completions import source_name
from guardrail.evaluation.judges.beaver_dam import BeaverDam
from guardrail.evaluation.probes import OVER_REFUSAL, SAFETY, TASK, ProbeConfig
from guardrail.study import keys
from guardrail.study.config import Source
from guardrail.study.defence_jobs import eval_template_of
from guardrail.study.evaluation_jobs import EVAL_TEMPLATE, deciding_judge
from guardrail.study.grid import PROBE_REFUSALS_FILE, PROBE_SAFETY_FILE, Cell
from guardrail.study.jobs import JobMaker, flags
from guardrail.study.keys import Key, deciding, make_key
from guardrail.training.trainers import OUR_TRAINER

MODULE = "guardrail.evaluation.trajectory"
PRODUCT = "probes"


def check_trainer(trainer: str) -> None:
    """Refuse a study that would look into a training of somebody else's."""
    if trainer != OUR_TRAINER:
        raise UserError(
            f"fine_tuning.probes looks into the training, which {trainer} does not allow; set probes to 0, or train "
            f"with SFT_MODULE={OUR_TRAINER}"
        )


def probe_config(maker: JobMaker, cell: Cell) -> ProbeConfig:
    """What a study asks at the probes: its safety prompts, its look-alikes and the held-out rows of the task."""
    study, evaluation = maker.study, maker.study.evaluation
    utility = study.tasks[cell.task].utility
    return ProbeConfig(
        probes=study.fine_tuning.probes,
        probe_bench=evaluation.safety_bench,
        probe_bench_data=evaluation.safety_bench_data,
        probe_over_refusal_bench=evaluation.over_refusal_bench,
        probe_over_refusal_bench_data=evaluation.over_refusal_bench_data,
        probe_task=utility.source,
        probe_task_split=utility.split,
        probe_limit=evaluation.limit,
        probe_eval_template=eval_template_of(study, cell, EVAL_TEMPLATE),
        probe_max_new_tokens=evaluation.max_new_tokens,
    )


def probes(maker: JobMaker, cell: Cell, folder: str, checkpoint: Key) -> tuple[list[str], tuple[Key, tuple[str, ...]]]:
    """Flags of the trajectory, and its product: key and files. ``checkpoint``: the key of the training."""
    config = probe_config(maker, cell)
    evaluation = maker.study.evaluation
    options = deciding(config, "probe_task_split")
    inputs = {
        "style": maker.style,
        "eval_template": eval_template_fingerprint(config.probe_eval_template),
        "bench": keys.bench_hash(evaluation.safety_bench, evaluation.safety_bench_data),
        "task": maker.source(Source(config.probe_task or "", config.probe_task_split)),
    }
    options["probe_bench"] = source_name(evaluation.safety_bench)
    files = [SAFETY, TASK]
    if evaluation.over_refusal_bench:
        options["probe_over_refusal_bench"] = source_name(evaluation.over_refusal_bench)
        inputs["over_refusal_bench"] = keys.bench_hash(
            evaluation.over_refusal_bench, evaluation.over_refusal_bench_data
        )
        files.append(OVER_REFUSAL)
    key = make_key("trajectory", options, inputs, {"training": checkpoint})
    return flags(**dataclasses.asdict(config)), (key, tuple(f"{folder}/{file}" for file in files))


def judge_probes(maker: JobMaker, cell: Cell, trained: str) -> None:
    """Beaver-Dam on the answers to the safety prompts, and the keyword rule on those to the look-alikes."""
    study, evaluation = maker.study, maker.study.evaluation
    folder = f"cells/{cell.name}/seed{cell.seed}"
    short = folder.replace("/", ".")
    needs = {"answers": maker.key_of(trained, PRODUCT)}
    moderation = BeaverDam(max_length=evaluation.moderation_max_length, threshold=evaluation.threshold)
    key = make_key(
        "probe_harmfulness",
        deciding_judge(moderation, "moderation_model"),
        {"model": maker.model(study.models.moderation)},
        needs,
    )
    asked: dict[str, Any] = {
        "data_path": maker.path(folder, SAFETY.rsplit("/", 1)[0]),
        "model_path": study.models.moderation,
        "max_length": evaluation.moderation_max_length,
        "threshold": evaluation.threshold,
        "figure": False,
    }
    maker.add(
        f"probe_harmfulness.{short}",
        "probe_harmfulness",
        f"harmfulness along the training: {folder}",
        ["guardrail.evaluation.judges.beavertails", *flags(**asked)],
        {},
        {"judgements": (key, (f"{folder}/{PROBE_SAFETY_FILE}",))},
        [trained],
        f"{folder}/probes/safety/moderate.log",
        process="harmfulness",
        one_process=True,
    )
    if not evaluation.over_refusal_bench:
        return
    from guardrail.evaluation.judges.key_word import KeyWord

    key = make_key("probe_refusals", deciding_judge(KeyWord()), {}, needs)
    maker.add(
        f"probe_refusals.{short}",
        "probe_refusals",
        f"refused look-alikes along the training: {folder}",
        [
            "guardrail.evaluation.judges.__main__",
            maker.path(folder, OVER_REFUSAL),
            *flags(judge="key_word", figure=False),
        ],
        {},
        {"judgements": (key, (f"{folder}/{PROBE_REFUSALS_FILE}",))},
        [trained],
        f"{folder}/probes/over_refusal/key_word.log",
        gpus="none",
        process="harmfulness",
        one_process=True,
    )
