"""The jobs that score the rows of a fine-tuning, for a row filter; and what their anchors must not be.

    scores.<task>.<defence>.<alignment>.seed<k>     by the aligned model that is fine-tuned
    scores.<task>.<defence>                         by the extraction model, or by a scorer that looks at no model
    scores.<task>.<defence>.seed<k>                 the same, of rows that are drawn per seed (a dose)

Defences that score in the same way (a sweep over shares) read the scores of the first of them. Neither a job's name nor
where rows lie is in a key: the contents are, with the scorer, its options and its version.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from guardrail.core.cli import log
from guardrail.core.errors import UserError
from guardrail.data.bench_table import BENCHES
from guardrail.data.benches import load_bench, split_name
from guardrail.data.rows import load_rows
from guardrail.similarity.scorers import SCORERS
from guardrail.similarity.scorers.options import VERSION
from guardrail.study.config import Source, Study
from guardrail.study.defence_settings import NONE
from guardrail.study.grid import Cell
from guardrail.study.jobs import JobMaker, flags
from guardrail.study.keys import deciding, make_key
from guardrail.study.score_settings import ALIGNED, EXTRACTION, OPTIONS, Scoring
from guardrail.study.sources import count_rows

STAGE, PRODUCT = "scores", "scores"
FILE = "scores.jsonl"


def set_name(source: Source) -> str:
    """PATH or PATH::SPLIT, as similarity/score_rows.py names a set."""
    return f"{source.source}::{source.split}" if source.split else source.source


def scoring_of(study: Study, cell: Cell) -> tuple[str, Scoring] | None:
    """How the rows of a cell are scored, under the name of the first defence that does it so; None: they are not."""
    if cell.defence == NONE:
        return None
    settings = study.defence_settings
    own = settings[cell.defence].scoring
    if own is None:
        return None
    return next((name, own) for name, setting in settings.items() if setting.scoring == own)


def scores(maker: JobMaker, cell: Cell, rows: Source, inputs: dict[str, str], upstream: dict[str, str]) -> str | None:
    """The job that scores the ``rows`` of a fine-tuning, made where it is not there yet; None where none is needed.

    ``inputs`` and ``upstream`` are those of the fine-tuning: the content of its rows, or the job that makes them; and
    the job of its aligned model.
    """
    found = scoring_of(maker.study, cell)
    if found is None:
        return None
    defence, scoring = found
    own = scoring.model == ALIGNED
    drawn = upstream.get("rows", "").rpartition(".")[2]
    place = [cell.alignment.name, f"seed{cell.alignment.seed}"] if own else [drawn] if drawn else []
    name = ".".join((STAGE, cell.task, defence, *place))
    if name in maker.jobs:
        return name
    needed = {role: job for role, job in upstream.items() if role == "rows" or own}
    given, content = _given(maker, cell, scoring)
    if "rows" in inputs:
        content["rows"] = inputs["rows"]
    read = {key: value for key, value in given.items() if key in OPTIONS}  # rows as the fine-tuning reads them
    loaded = {key: given[key] for key in ("prompt_style", "torch_dtype") if key in given}
    options = deciding(dataclasses.replace(scoring.config(**read), **loaded)) | {
        "scoring_version": VERSION,
        "scorer_version": SCORERS.facts(scoring.scorer).get("version", 1),
    }
    folder = "/".join((STAGE, cell.task, defence, *place))
    files = (f"{folder}/{FILE}", f"{folder}/scores.json")
    loads = scoring.model is not None or scoring.reads_moderation
    maker.add(
        name,
        STAGE,
        f"scores by {scoring.scorer}: {cell.task}{', ' + ', '.join(place) if place else ''}",
        [
            "guardrail.similarity.scorers.command",
            *flags(
                rows=set_name(rows),
                scorers=scoring.scorer,
                out=maker.path(folder, FILE),
                **{**given, **dict(scoring.options)},
            ),
        ],
        {},
        {PRODUCT: (make_key(STAGE, options, content, {r: maker.key_of(j) for r, j in needed.items()}), files)},
        list(needed.values()),
        f"{folder}/scores.log",
        gpus="one" if loads else "none",
        process=".".join((STAGE, *place)) if own else STAGE,
        one_process=not loads,
    )
    return name


def _given(maker: JobMaker, cell: Cell, scoring: Scoring) -> tuple[dict[str, Any], dict[str, str]]:
    """What the study gives to a scoring run: its flags, and the content of what they name but for the aligned model's,
    which has a key."""
    study = maker.study
    given: dict[str, Any] = {}
    content: dict[str, str] = {}
    if scoring.model is not None:
        aligned = str(maker.grid.aligned_folder(cell.alignment))
        given["model_name_or_path"] = aligned if scoring.model == ALIGNED else study.models.extraction
        given |= {"prompt_style": study.prompt_style, "torch_dtype": study.dtype}
        given["max_length"] = study.tuning(cell.task).model_max_length
        content["style"] = maker.style
    if scoring.model == EXTRACTION:
        content["model"] = maker.model(study.models.extraction)
    if scoring.anchors is not None:
        source = Source(*scoring.anchors)
        given["anchors"], content["anchors"] = set_name(source), maker.source(source)
    if scoring.reads_pool:
        given["alignment"], content["alignment"] = set_name(study.safety_pool), maker.source(study.safety_pool)
    if scoring.reads_moderation:
        moderation = study.models.moderation
        given["moderation_model"], content["moderation_model"] = moderation, maker.model(moderation)
    return given, content


def check_anchors(study: Study) -> None:
    """Refuse anchors that are not there or hold prompts of the safety bench; say where rows are their own anchors.

    A bench that is not here yet (a hub name) is compared by its name alone.
    """
    for name, setting in study.defence_settings.items():
        if setting.scoring is None or setting.scoring.anchors is None:
            continue
        source, where = Source(*setting.scoring.anchors), f"defences.{name}.anchors"
        count_rows(source)
        bench = study.evaluation.safety_bench
        asked = bench_prompts(study, source)
        own = prompts_of(source)
        if shared := own & asked:
            raise UserError(
                f"{where}: {len(shared)} of its prompts are asked by the safety bench {bench}; a filter that has seen "
                "the test prompts shows nothing, give other harmful rows"
            )
        for task_name, task in study.tasks.items():
            if both := own & prompts_of(task.train):
                log(f"{where}: {len(both)} of its prompts are rows of tasks.{task_name}, which are near themselves")


def prompts_of(source: Source) -> set[str]:
    """The last question of every row of a source that is here; none of a hub name."""
    if not Path(source.source).exists():
        return set()
    return {last_question(row) for row in load_rows(source.source, split=source.split)}


def bench_prompts(study: Study, anchors: Source) -> set[str]:
    """The questions of the safety bench where it is here; those of the ``anchors`` where these are the bench."""
    name, data = study.evaluation.safety_bench, study.evaluation.safety_bench_data
    base, _ = split_name(name)
    bench = BENCHES.load(base) if base in BENCHES else None
    if bench is not None and data is None and bench.local is None:
        if anchors.source == bench.hub:
            raise UserError(f"defences: anchors {anchors.source} are the safety bench; give other harmful rows")
        return set()
    if not Path(data or (str(bench.local) if bench else base)).exists():
        return set()
    return {last_question(row) for row in load_bench(base, data).rows}


def last_question(row: dict[str, Any]) -> str:
    """The last thing that the user says, without blanks around it."""
    asked = [message["content"] for message in row["messages"] if message["role"] == "user"]
    return asked[-1].strip() if asked else ""
