"""The jobs that evaluate one checkpoint: safety answers, their judges, over-refusal, utility."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guardrail.core.files import hash_json
from guardrail.data.prompts import eval_template_fingerprint
from guardrail.evaluation.attacks import make_attack
from guardrail.evaluation.completions import source_name
from guardrail.evaluation.judges.beaver_dam import BeaverDam
from guardrail.evaluation.judges.guard import Guard
from guardrail.evaluation.judges.judge import Judge
from guardrail.evaluation.judges.rubric import Rubric
from guardrail.evaluation.safety.evaluate import SafetyConfig
from guardrail.evaluation.utility.evaluate import UtilityConfig
from guardrail.study import keys
from guardrail.study.attack_settings import attack_options
from guardrail.study.config import Source
from guardrail.study.grid import OVER_REFUSAL_FILE, SAFETY_FILE, attack_file, judge_file, utility_file
from guardrail.study.jobs import JobMaker, flags
from guardrail.study.keys import Key, deciding, make_key
from guardrail.study.processes import EVALUATE

EVAL_TEMPLATE = "plain"
GENERATION_SEED = 0


def evaluate(
    maker: JobMaker,
    folder: str,
    trained: str | None,
    tasks: list[str],
    below: Sequence[str] = (),
    eval_template: str = EVAL_TEMPLATE,
) -> None:
    """Every evaluation of one checkpoint; ``trained`` is the job that makes it, None for the base model.

    ``below``: jobs whose weights are read as well, because the checkpoint is an adapter of theirs.
    ``eval_template``: how the safety prompts and the harmless requests are put.
    """
    study, evaluation = maker.study, maker.study.evaluation
    short = folder.replace("/", ".")
    model = study.models.base if trained is None else maker.path(folder)
    inputs = {"model": maker.model(study.models.base)} if trained is None else {}
    needs = {} if trained is None else {"model": maker.key_of(trained)}
    upstream = [] if trained is None else [trained, *below]
    decoding: dict[str, Any] = {
        "max_new_tokens": evaluation.max_new_tokens,
        "do_sample": evaluation.do_sample,
        "samples_per_prompt": evaluation.samples_per_prompt,
        "seed": GENERATION_SEED,
        "torch_dtype": study.dtype,
        "prompt_style": study.prompt_style,
        "eval_template": eval_template,
    }
    texts = {"style": maker.style, "eval_template": eval_template_fingerprint(eval_template)}

    def answers(
        stage: str, bench: str, data: str | None, results: str, evaluator: str, files: tuple, attack: str = ""
    ) -> None:
        config = SafetyConfig(
            model_family=study.prompt_style,
            model_name_or_path="",
            save_path="",
            safety_bench=bench,
            limit=evaluation.limit,
            **decoding,
        )
        options = {**deciding(config), "evaluator": evaluator}
        options["safety_bench"] = source_name(bench)  # a file counts by its content, wherever it lies
        attacked, title = [], stage.replace("_", " ").replace("over refusal", "over-refusal")
        if attack:
            raw, title = study.attacks[attack], f"answers under the attack {attack}"
            made = make_attack(raw["method"], attack_options(raw))
            options |= made.identity()
            attacked = flags(attack=made.name, attack_options=";".join(attack_options(raw)) or None)
        found = {**inputs, **texts, "bench": keys.bench_hash(bench, data)}
        maker.add(
            f"attack_{attack}.{short}" if attack else f"{stage}.{short}",
            stage,
            f"{title}: {folder}",
            [
                "guardrail.evaluation.safety.command",
                *flags(
                    model_name_or_path=model,
                    model_family=study.prompt_style,
                    safety_bench=bench,
                    bench_data=data,
                    limit=evaluation.limit,
                    evaluator=evaluator,
                    save_path=maker.path(folder, results),
                    **decoding,
                ),
                *attacked,
            ],
            {},
            {"answers": (make_key(stage, options, found, needs), files)},
            upstream,
            f"{folder}/{results}/generate.log",
            process=f"{EVALUATE}.{short}",
        )

    safety = f"{folder}/evaluation/safety"
    answers(
        "safety_answers",
        evaluation.safety_bench,
        evaluation.safety_bench_data,
        "evaluation/safety",
        "none",
        (f"{safety}/results.json",),
    )
    judges(maker, folder, short, safety)
    for name in study.asked if trained is not None else ():
        place = attack_file(name).rsplit("/", 1)[0]
        asked = (evaluation.safety_bench, evaluation.safety_bench_data)
        answers("safety_answers", *asked, place, "none", (f"{folder}/{place}/results.json",), name)
        moderate(maker, folder, short, f"{folder}/{place}", name)
    if evaluation.over_refusal_bench:
        file = Path(OVER_REFUSAL_FILE)
        answers(
            "over_refusal",
            evaluation.over_refusal_bench,
            evaluation.over_refusal_bench_data,
            str(file.parent),
            "key_word",
            (f"{folder}/{file.parent}/results.json", f"{folder}/{file}"),
        )
    for task in tasks:
        utility(maker, folder, short, task, model, inputs, needs, upstream)


def deciding_judge(judge: Judge, *covered: str) -> dict[str, Any]:
    """The options of a judge with its texts and version, which decide its verdicts as well."""
    texts = {"prompts_hash": hash_json(judge.prompts)} if judge.prompts else {}
    return {**deciding(judge, *covered), "version": judge.version, **texts}


def moderate(maker: JobMaker, folder: str, short: str, safety: str, attack: str = "") -> None:
    """The moderation model's judgement of the answers in ``safety``: those as asked, or those under ``attack``."""
    study, evaluation = maker.study, maker.study.evaluation
    answers = f"attack_{attack}.{short}" if attack else f"safety_answers.{short}"
    needs = {"answers": maker.key_of(answers)}
    moderation = BeaverDam(max_length=evaluation.moderation_max_length, threshold=evaluation.threshold)
    options = deciding_judge(moderation, "moderation_model")
    key = make_key("harmfulness", options, {"model": maker.model(study.models.moderation)}, needs)
    maker.add(
        f"harmfulness_{attack}.{short}" if attack else f"harmfulness.{short}",
        "harmfulness",
        f"harmfulness under {attack}: {folder}" if attack else f"harmfulness: {folder}",
        [
            "guardrail.evaluation.judges.beavertails",
            *flags(
                data_path=maker.path(safety),
                model_path=study.models.moderation,
                max_length=evaluation.moderation_max_length,
                threshold=evaluation.threshold,
                figure=False,
            ),
        ],
        {},
        {"judgements": (key, (f"{safety}/{Path(SAFETY_FILE).name}",))},
        [answers],
        f"{safety}/moderate.log",
        process="harmfulness",
        one_process=True,
    )


def judges(maker: JobMaker, folder: str, short: str, safety: str) -> None:
    evaluation = maker.study.evaluation
    moderate(maker, folder, short, safety)
    answers = f"safety_answers.{short}"
    needs = {"answers": maker.key_of(answers)}
    for name, judge in evaluation.judges.items():
        local = name == "guard" and judge.backend != "openai"
        if name == "guard":
            asked: dict[str, Any] = {"guard_model": judge.model, "guard_backend": judge.backend}
            options = deciding_judge(Guard(**asked), "guard_model")
        else:
            asked = {"rubric_model": judge.model}
            options = deciding_judge(Rubric(**asked))
        options |= {} if local else {"served_model": judge.model, "server": judge.base_url}
        inputs = {"model": maker.model(judge.model)} if local else {}
        key = make_key(f"judge_{name}", options, inputs, needs)
        maker.add(
            f"judge_{name}.{short}",
            f"judge_{name}",
            f"judge {name}: {folder}",
            [
                "guardrail.evaluation.judges.__main__",
                maker.path(safety, "results.json"),
                *flags(judge=name, figure=False, **asked, judge_base_url=judge.base_url),
            ],
            {},
            {"judgements": (key, (f"{folder}/{judge_file(name)}",))},
            [answers],
            f"{safety}/{name}.log",
            gpus="one" if local else "none",
            process=f"judge_{name}",
            one_process=True,
        )


def utility(
    maker: JobMaker,
    folder: str,
    short: str,
    task: str,
    model: str,
    inputs: dict[str, str],
    needs: dict[str, Key],
    upstream: list[str],
) -> None:
    study, utility = maker.study, maker.study.utilities[task]
    settings: dict[str, Any] = {
        "evaluator": utility.evaluator,
        "max_new_tokens": utility.max_new_tokens,
        "heldout_loss": True,
        "torch_dtype": study.dtype,
        "prompt_style": study.prompt_style,
    }
    config = UtilityConfig(
        model_family=study.prompt_style,
        model_name_or_path="",
        save_path="utility.json",
        dataset=utility.source,
        **settings,
    )
    options = deciding(config, "dataset", "split")
    found = {**inputs, "rows": maker.source(Source(utility.source, utility.split)), "style": maker.style}
    file = f"{folder}/{utility_file(task)}"
    maker.add(
        f"utility.{short}.{task}",
        "utility",
        f"utility on {task}: {folder}",
        [
            "guardrail.evaluation.utility.evaluate",
            *flags(
                model_name_or_path=model,
                model_family=study.prompt_style,
                dataset=utility.source,
                split=utility.split,
                save_path=maker.path(file),
                **settings,
            ),
        ],
        {},
        {"utility": (make_key("utility", options, found, needs), (file,))},
        upstream,
        f"{folder}/evaluation/utility/{task}.log",
        process=f"{EVALUATE}.{short}",
    )
