"""The jobs that make checkpoints: representations, selection, mixing, alignment, fine-tuning."""

from __future__ import annotations

import dataclasses
from typing import Any

from guardrail.data.dose import DoseConfig, split_name
from guardrail.data.mix import MixConfig
from guardrail.similarity.representations.options import ExtractionConfig
from guardrail.similarity.selection.options import SelectionConfig, file_stem
from guardrail.similarity.selection.options import needs as selector_needs
from guardrail.study import probe_jobs, score_jobs
from guardrail.study.config import Lora, Source, Study, Training
from guardrail.study.defence_jobs import NOTHING, Prepared, prepare_defence
from guardrail.study.designs import REPLACED, alignment_method, lora_block, tuning_lora
from guardrail.study.grid import Alignment, Cell, sizeless
from guardrail.study.jobs import JobMaker, flags
from guardrail.study.keys import Key, deciding, make_key
from guardrail.study.processes import MIX, SUBSETS
from guardrail.study.tasks import set_name
from guardrail.training.config import SFTConfig
from guardrail.training.trainers import OUR_TRAINER, as_trained

TRAINER_FLAGS = tuple(item.name for item in dataclasses.fields(Training))
TRAIN_TEMPLATE = "UltraChat"  # the formatter of scripts/sft*.sh


def training_variables(training: Training) -> dict[str, Any]:
    """A `Training` block as the variables of scripts/sft.sh."""
    return {
        "EPOCHS": training.epochs,
        "LEARNING_RATE": training.learning_rate,
        "BATCH_SIZE": training.per_device_train_batch_size,
        "ACCUMULATION": training.gradient_accumulation_steps,
        "MAX_LENGTH": training.model_max_length,
        "DS_CONFIG": training.ds_cfgs,
        "BF16": training.bf16,
        "GRADIENT_CHECKPOINTING": training.gradient_checkpointing,
        "BATCHING": training.batching,
    }


def training_config(study: Study, training: Training, seed: int, **more: Any) -> SFTConfig:
    """A `Training` block, and ``more`` options (of adapters), as the configuration of the trainer, without paths."""
    return SFTConfig(
        model_name_or_path="",
        train_datasets="",
        train_template=TRAIN_TEMPLATE,
        output_dir="",
        seed=seed,
        data_seed=seed,
        prompt_style=study.prompt_style,
        **{name: value for name, value in dataclasses.asdict(training).items() if name in TRAINER_FLAGS},
        **more,
    )


def representations(maker: JobMaker, name: str) -> None:
    study = maker.study
    rows = study.safety_pool if name == "safety_pool" else study.anchors[name]
    store = f"similarity/{name}/reps/extraction"
    key = make_key(
        "representations",
        deciding(
            ExtractionConfig(
                dataset_folder="",
                model_id="extraction",
                model_name_or_path="",
                prompt_style=study.prompt_style,
                torch_dtype=study.dtype,
            )
        ),
        {"rows": maker.source(rows), "model": maker.model(study.models.extraction), "style": maker.style},
        {},
    )
    maker.add(
        f"representations.{name}",
        "representations",
        f"representations: {name}",
        [
            "guardrail.similarity.representations.extract",
            *flags(
                dataset_folder=maker.path("similarity", name),
                dataset_data=rows.source,
                split=rows.split,
                model_id="extraction",
                model_name_or_path=study.models.extraction,
                prompt_style=study.prompt_style,
                torch_dtype=study.dtype,
            ),
        ],
        {},
        {"store": (key, (store,))},
        [],
        f"logs/representations_{name}.log",
        process=SUBSETS,
    )


def select(maker: JobMaker, task: str, size: int) -> None:
    study, name = maker.study, f"select.{task}_{size}"
    pool, anchors = "representations.safety_pool", f"representations.{task}"
    train = study.anchors[task]
    folder = f"similarity/{task}/selection_{size}"
    products, anchor_rows = {}, {}
    for subset in maker.selected:
        inputs = {"pool": maker.source(study.safety_pool)}
        if "anchor_data" in selector_needs(subset):
            inputs["task"] = maker.source(train)
            anchor_rows = {"anchoring_dataset_dir": train.source, "anchoring_split": train.split}
        config = SelectionConfig(
            dataset_folder="", dataset_dir="", selector=(subset,), select_n=size, avg_n=1, merge="score"
        )
        options = deciding(config, "split", "anchoring_split")
        needs = {"pool": maker.key_of(pool), "anchors": maker.key_of(anchors)}
        stem = f"{folder}/{file_stem(subset, size)}"
        files = (f"{stem}.jsonl", f"{stem}_scores.npy", f"{stem}_indices.npy")
        products[subset] = (make_key("select", options, inputs, needs), files)
    maker.add(
        name,
        "select",
        f"select subsets of {size} rows: {task}",
        [
            "guardrail.similarity.selection.pipeline",
            *flags(
                dataset_folder=maker.path("similarity", task),
                save_folder=f"selection_{size}",
                select_n=size,
                dataset_dir=study.safety_pool.source,
                split=study.safety_pool.split,
                dataset_reps_dir=maker.path("similarity/safety_pool/reps/extraction"),
                anchoring_reps_dir=maker.path("similarity", task, "reps/extraction"),
                selector=",".join(maker.selected),
                avg_n=1,
                merge="score",
                **anchor_rows,
            ),
        ],
        {},
        products,
        [pool, anchors],
        f"logs/select_{task}_{size}.log",
        process=SUBSETS,
        one_process=True,
    )


def mix(maker: JobMaker, alignment: Alignment) -> None:
    """Instructions and the subset; a selected file holds exactly the subset, other subsets are drawn here."""
    study, name = maker.study, mixed_name(alignment)
    split, out = alignment.split, f"data/seed{alignment.seed}"
    sim = "high" if alignment.task else alignment.subset
    size = None if sizeless(alignment.subset) else alignment.size
    chosen: dict[str, Any] = {"sim": sim, "size": size, "seed": alignment.seed, "instruct_size": study.instruct_size}
    chosen |= {"task": alignment.task or "any", "instruct_split": study.instruct.split, "split": split}
    if alignment.replays:
        chosen |= {"replay_fraction": study.replay_fraction}
        if alignment.subset == "none":  # a control of as many steps as the smallest arm
            chosen["size"] = study.subset_sizes[0]
    options = deciding(MixConfig(instruct="", safety="", out="", **chosen), "instruct_split", "safety_split")
    chosen |= {"instruct": study.instruct.source, "out": maker.path(out)}
    inputs, needs, upstream = {"instruct": maker.source(study.instruct)}, {}, []
    if alignment.task is None:
        chosen |= {"safety": study.safety_pool.source, "safety_split": study.safety_pool.split}
        if alignment.subset != "none":  # which takes no row of it
            inputs["safety"] = maker.source(study.safety_pool)
    else:
        upstream = [f"select.{alignment.task}_{alignment.size}"]
        needs["safety"] = maker.key_of(upstream[0], alignment.subset)
        stem = file_stem(alignment.subset, alignment.size)
        chosen["safety"] = maker.path("similarity", alignment.task, f"selection_{alignment.size}", f"{stem}.jsonl")
        # whose content is in the selection's key
        chosen |= {"pool": study.safety_pool.source, "pool_split": study.safety_pool.split}
    files = (f"{out}/data/{split}-00000-of-00001.parquet", f"{out}/manifests/{split}.json")
    maker.add(
        name,
        "mix",
        f"mix: {split.removeprefix('train_')}, seed {alignment.seed}",
        ["guardrail.data.mix", *flags(**chosen)],
        {},
        {"split": (make_key("mix", options, inputs, needs), files)},
        upstream,
        f"logs/mix_{split.removeprefix('train_')}_seed{alignment.seed}.log",
        gpus="none",
        process=MIX,
        one_process=True,
    )


def training(
    maker: JobMaker,
    name: str,
    stage: str,
    title: str,
    folder: str,
    script: str,
    training: Training,
    seed: int,
    variables: dict[str, Any],
    inputs: dict[str, str],
    upstream: dict[str, str],
    log: str,
    method: str = "full",
    probed: Cell | None = None,
    defence: Prepared = NOTHING,
    lora: Lora | None = None,
    max_steps: int | None = None,
) -> None:
    """A job of the SFT trainer. The ranks count: with them the rows of an optimizer step grow.

    ``lora``: the adapters, where they are not the study's. ``max_steps``: where a training stops, if not at its end.

    A ``probed`` cell is trained by the same trainer, which is looked at (`guardrail.study.probe_jobs`).

    Adapters (``method`` lora) are always trained by this project's trainer, which alone stores them as later stages
    read them.
    """
    more: dict[str, Any] = {}
    trainer = maker.trainer
    if method == "lora":
        training, more = lora_training(training, lora or maker.study.lora)
        trainer = OUR_TRAINER
    if max_steps is not None:
        more["max_steps"] = max_steps
    settings = training_variables(training)
    chosen = {"defence": defence.method, "defence_options": defence.options}
    config = as_trained(trainer, training_config(maker.study, training, seed, **more, **chosen))
    options = deciding(config, "train_split") | {"trainer": trainer, "ranks": maker.ranks}
    if trainer != OUR_TRAINER:  # another project's code counts by its content, ours by its version
        inputs = {**inputs, "trainer": maker.trainer_content}
    needs = {role: maker.key_of(job) for role, job in upstream.items()} | defence.needs
    settings |= {
        "SEED": seed,
        "DATA_SEED": seed,
        "TRAIN_TEMPLATE": TRAIN_TEMPLATE,
        "PROMPT_STYLE": maker.study.prompt_style,
        "LOG_TYPE": maker.study.log_type,
    }
    settings |= {"SFT_MODULE": trainer, "OUTPUT_DIR": maker.path(folder)}
    files = (f"{folder}/slice_end", f"{folder}/losses.jsonl", f"{folder}/run.json")
    key = make_key(stage, options, {**inputs, **defence.inputs, "style": maker.style}, needs)
    products: dict[str, tuple[Key, tuple[str, ...]]] = {"checkpoint": (key, files)}
    settings |= variables
    flags = [f"--{flag}={as_flag(value)}" for flag, value in more.items()] + defence.flags
    if probed is not None:
        probe_jobs.check_trainer(trainer)
        probing, products[probe_jobs.PRODUCT] = probe_jobs.probes(maker, probed, folder, key)
        flags += probing
        settings["SFT_MODULE"] = probe_jobs.MODULE
    behind = [*upstream.values(), *defence.jobs]
    maker.add(name, stage, title, [script, *flags], settings, products, behind, log, gpus="all")


def lora_training(training: Training, lora: Lora) -> tuple[Training, dict[str, Any]]:
    """``training`` with what adapters change, and the trainer's options for them: the adapters alone are stored."""
    options = {name: value for name, value in dataclasses.asdict(lora).items() if name not in REPLACED}
    return lora_block(training, lora), {"use_lora": True, "save_full_model": False, **options}


def as_flag(value: Any) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


def align(maker: JobMaker, alignment: Alignment) -> None:
    """`mixed` starts from the base model, the other designs from the chat model that features come from."""
    seed = alignment.seed
    start = maker.study.models.extraction if alignment.replays else maker.study.models.base
    training(
        maker,
        aligned_name(alignment),
        "align",
        f"align: {alignment.name}, seed {seed}",
        f"aligned/{alignment.name}/seed{seed}",
        "scripts/sft_subset.sh",
        maker.study.alignment,
        seed,
        {
            "BASE_MODEL": start,
            "DATASET": maker.path(f"data/seed{seed}"),
            "SPLIT": alignment.split,
        },
        {"model": maker.model(start)},
        {"rows": mixed_name(alignment)},
        f"logs/align_{alignment.name}_seed{seed}.log",
        alignment_method(alignment),
        defence=prepare_defence(maker, alignment.defence, alignment.task, alignment.size, start),
    )


def dose(maker: JobMaker, cell: Cell) -> None:
    """The fine-tuning set of one dose, or of a backdoor: every arm of a seed is trained on the same rows."""
    study, name = maker.study, dosed_name(maker.study, cell)
    task, rung = study.tasks[cell.task], study.tasks[cell.task].rung
    assert rung is not None
    out, split = dose_folder(study, cell), split_name(rung.percent)
    chosen: dict[str, Any] = {"percents": (rung.percent,), "rows": rung.rows, "seed": dose_seed(study, cell)}
    if rung.trigger:
        chosen["trigger"] = rung.trigger
    options = deciding(DoseConfig(benign="", harmful="", out="", **chosen), "benign_split", "harmful_split")
    inputs = {"benign": maker.source(task.train), "harmful": maker.source(rung.harmful)}
    maker.add(
        name,
        "dose",
        f"{rung.percent:g}% harmful rows: {rung.ladder}, seed {chosen['seed']}",
        [
            "guardrail.data.dose",
            *flags(
                benign=task.train.source,
                benign_split=task.train.split,
                harmful=rung.harmful.source,
                harmful_split=rung.harmful.split,
                out=maker.path(out),
                **{**chosen, "percents": f"{rung.percent:g}"},
            ),
        ],
        {},
        {
            "split": (
                make_key("dose", options, inputs, {}),
                (f"{out}/data/{split}-00000-of-00001.parquet", f"{out}/manifests/{split}.json"),
            )
        },
        [],
        f"logs/{name}.log",
        gpus="none",
        process=MIX,
        one_process=True,
    )


def fine_tune(maker: JobMaker, cell: Cell) -> None:
    study = maker.study
    task = study.tasks[cell.task]
    variables = {"DATASET": task.train.source, "SPLIT": task.train.split or "train"}
    inputs, upstream, rows = {}, {"model": aligned_name(cell.alignment)}, task.train
    if task.rung:
        variables = {"DATASET": maker.path(dose_folder(study, cell)), "SPLIT": split_name(task.rung.percent)}
        upstream["rows"] = dosed_name(study, cell)
        rows = Source(variables["DATASET"], variables["SPLIT"])
    else:
        inputs = {"rows": maker.source(task.train)}
    start = study.models.extraction if cell.alignment.replays else study.models.base
    scored = score_jobs.scores(maker, cell, rows, inputs, upstream)
    training(
        maker,
        tuned_name(cell),
        "fine_tune",
        f"fine-tune: {cell.name}, seed {cell.seed}",
        f"cells/{cell.name}/seed{cell.seed}",
        "scripts/sft_downstream.sh",
        study.tuning(cell.task),
        cell.seed,
        {"MODEL": str(maker.grid.aligned_folder(cell.alignment)), "TASK": cell.task, **variables},
        inputs,
        upstream,
        f"logs/fine_tune_{cell.name}_seed{cell.seed}.log",
        cell.trained.method,
        cell if study.fine_tuning.probes else None,
        prepare_defence(maker, cell.defence, cell.anchor, cell.size, start, scored),
        tuning_lora(study, cell.task),
        task.max_steps,
    )


def dose_seed(study: Study, cell: Cell) -> int:
    rung = study.tasks[cell.task].rung
    assert rung is not None
    return cell.seed if rung.seed is None else rung.seed


def dose_folder(study: Study, cell: Cell) -> str:
    rung = study.tasks[cell.task].rung
    assert rung is not None
    return f"doses/{rung.ladder}/seed{dose_seed(study, cell)}"


def dosed_name(study: Study, cell: Cell) -> str:
    """One set serves all arms of a seed; of all seeds where the ladder has a seed of its own."""
    return f"dose.{set_name(cell.task, study.tasks[cell.task])}.seed{dose_seed(study, cell)}"


def mixed_name(alignment: Alignment) -> str:
    """One split serves all designs that replay."""
    return f"mix.{alignment.split.removeprefix('train_')}.seed{alignment.seed}"


def aligned_name(alignment: Alignment) -> str:
    return f"align.{alignment.name}.seed{alignment.seed}"


def tuned_name(cell: Cell) -> str:
    return f"fine_tune.{cell.name}.seed{cell.seed}"
