"""What a defence of a study adds to a training job: options of the trainer, what it reads, the keys of that.

Options that decide go into the key as they are; places of files do not: their contents do, by hash where they come from
outside, by key where an earlier job makes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from guardrail.core.errors import UserError
from guardrail.similarity.selection.options import file_stem
from guardrail.study.config import Source, Study
from guardrail.study.defence_settings import PROMPT_SPLIT, SAFETY_POOL, DefenceSetting, reads
from guardrail.study.grid import Cell
from guardrail.study.jobs import JobMaker
from guardrail.study.keys import Key
from guardrail.training.trainers import OUR_TRAINER

SAFE_TEMPLATE = "safe"  # the system text that `prompt_split` asks with, in configs/template.py


@dataclass(frozen=True)
class Prepared:
    """``method`` with ``options`` that decide, ``places`` of what it reads; ``inputs``, ``needs`` (role -> key) and the
    jobs behind them."""

    method: str = "none"
    options: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    inputs: dict[str, str] = field(default_factory=dict)
    needs: dict[str, Key] = field(default_factory=dict)
    jobs: tuple[str, ...] = ()

    @property
    def flags(self) -> list[str]:
        """For the trainer's command; none without a defence."""
        if self.method == "none":
            return []
        options = ",".join((*self.options, *self.places))
        return [f"--defence={self.method}", *([f"--defence_options={options}"] if options else [])]


NOTHING = Prepared()


def prepare_defence(
    maker: JobMaker, name: str, task: str | None, size: int, start: str, scores: str | None = None
) -> Prepared:
    """The defence ``name`` of a training that starts, in the end, from the model ``start``.

    ``task`` and ``size`` say which selection is meant where rows of a subset are read; ``scores`` is the job that
    scores the training's rows, where there is one (`guardrail.study.score_jobs`).
    """
    if name == "none":
        return NOTHING
    setting = maker.study.defence_settings[name]
    if not setting.in_trainer:
        return NOTHING
    if maker.trainer != OUR_TRAINER:
        raise UserError(f"defences are of this project's trainer, not {maker.trainer}; set SFT_MODULE={OUR_TRAINER}")
    kind = reads(setting.method)
    if kind == "base":
        return Prepared(setting.method, setting.options, (f"base={start}",), {"defence_base": maker.model(start)})
    if kind in ("safety_rows", "harmful_rows"):
        return _with_rows(maker, setting, task, size)
    if scores is not None:
        made = maker.jobs[scores].product()
        places = (f"scores={maker.path(made.files[0])}",)
        return Prepared(setting.method, setting.options, places, {}, {"scores": made.key}, (scores,))
    return Prepared(setting.method, setting.options)


def _with_rows(maker: JobMaker, setting: DefenceSetting, task: str | None, size: int) -> Prepared:
    source = Source(*setting.source) if setting.source else maker.study.safety_pool
    if setting.rows in (None, SAFETY_POOL):
        places = (f"source={source.source}", *([f"split={source.split}"] if source.split else []))
        return Prepared(setting.method, setting.options, places, {"defence_rows": maker.source(source)})
    if task is None:
        raise UserError(f"defences.{setting.name}.rows: {setting.rows} is selected for a task; this alignment has none")
    subset = str(setting.rows)
    job, stem = f"select.{task}_{size}", file_stem(subset, size)
    place = maker.path("similarity", task, f"selection_{size}", f"{stem}.jsonl")
    needs = {"defence_rows": maker.key_of(job, subset)}
    return Prepared(setting.method, setting.options, (f"source={place}",), {}, needs, (job,))


def eval_template_of(study: Study, cell: Cell, plain: str) -> str:
    """How a cell's model is asked: with the safety prompt where it was fine-tuned without one."""
    setting = study.defence_settings.get(cell.design.defence)
    return SAFE_TEMPLATE if setting is not None and setting.method == PROMPT_SPLIT else plain
