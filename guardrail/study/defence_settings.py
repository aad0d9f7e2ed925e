"""The ``defences`` of a study file: which methods protect the guardrails, as arms beside the one without.

    defences:
      soup_30: {method: model_soup, share: 0.3}
      similar_3: {method: safety_rows, share: 0.03, rows: high, unequal_budget: true}
      prompt: {method: prompt_split}

A setting names a method of the trainer (`guardrail.training.defences`) with its options, or one of `STUDY_METHODS`.
What a method reads is the study's business: ``rows`` says which rows (a subset of the safety pool for this task, the
whole ``safety_pool``, or ``{source, split}``); the base model of `safe_lora` is the one that was aligned; the rows of
`row_filter` are scored by a job of the study (`guardrail.study.score_settings`).

Budgets are equal or said to differ: a method that trains on more rows, or for another number of steps, than the arm
without defence is refused unless ``unequal_budget`` says that this is the question.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from guardrail.core.errors import UserError, unknown
from guardrail.study import score_settings
from guardrail.study.score_settings import Scoring, read_scoring
from guardrail.training.defences import DEFENCES, NoDefence, make_defence

NONE = "none"
SAFETY_POOL = "safety_pool"
PROMPT_SPLIT, EARLY_STOPPING = "prompt_split", "early_stopping"
STUDY_METHODS = {PROMPT_SPLIT: "fine_tuning", EARLY_STOPPING: "fine_tuning"}
OWN_KEYS = ("method", "rows", "unequal_budget", "largest_harmful_percent")
GIVEN_BY_STUDY = ("source", "split", "base", "scores")


@dataclass(frozen=True)
class DefenceSetting:
    """One entry, read and checked. ``options`` are texts for the trainer, without places of files.

    ``rows``: a subset's name, `safety_pool`, or None where ``source`` (place and split) is given or nothing is read.
    ``scoring``: how the rows are scored that a filter leaves out; None where no score is read, as at strength 0.
    ``largest_harmful_percent``: of `early_stopping`, where a training is stopped at the latest.
    """

    name: str
    method: str
    side: str
    options: tuple[str, ...] = ()
    rows: str | None = None
    source: tuple[str, str | None] | None = None
    unequal_budget: bool = False
    largest_harmful_percent: float = 20.0
    scoring: Scoring | None = None

    @property
    def trains(self) -> bool:
        """Is there a training of its own? Early stopping looks at the probes of the arm without defence."""
        return self.method != EARLY_STOPPING

    @property
    def in_trainer(self) -> bool:
        return self.method not in STUDY_METHODS


def read_setting(name: str, raw: Mapping[str, Any], subsets: tuple[str, ...]) -> DefenceSetting:
    """The entry ``name`` of ``defences``. Raises ``UserError`` with the entry's name."""
    methods = (*(method for method in DEFENCES if method != NONE), *STUDY_METHODS)
    method = raw.get("method")
    if method not in methods:
        raise unknown(f"method of defences.{name}:", method, methods)
    side = STUDY_METHODS.get(method) or DEFENCES.facts(method)["side"]
    own_keys = (*OWN_KEYS, *(score_settings.KEYS if reads(method) == "scores" else ()))
    given = {key: value for key, value in raw.items() if key not in own_keys}
    for key in given:
        if key in GIVEN_BY_STUDY:
            instead = (
                "the study scores the rows; say how with scorer: NAME"
                if key == "scores"
                else ("a study finds it itself; say which rows with rows: NAME")
            )
            raise UserError(f"defences.{name}.{key}: {instead}")
    if method in STUDY_METHODS and given:
        raise unknown(f"key in defences.{name}:", next(iter(given)), OWN_KEYS)
    options = tuple(f"{key}={value}" for key, value in given.items())
    idle = False
    if method not in STUDY_METHODS:
        try:
            idle = isinstance(make_defence(method, options), NoDefence)
        except UserError as error:
            raise UserError(f"defences.{name}: {error}") from error
    scoring = read_scoring(name, raw) if reads(method) == "scores" else None
    rows, source = _rows(name, method, raw.get("rows"), subsets)
    if rows not in (None, SAFETY_POOL) and not any(option.startswith("choose=") for option in options):
        options = (*options, *_order(method, str(rows)))
    setting = DefenceSetting(
        name,
        method,
        side,
        options,
        rows,
        source,
        bool(raw.get("unequal_budget", False)),
        float(raw.get("largest_harmful_percent", DefenceSetting.largest_harmful_percent)),
        None if idle else scoring,
    )
    if not 0 <= setting.largest_harmful_percent <= 100:
        raise UserError(f"defences.{name}.largest_harmful_percent must be from 0 to 100")
    if (why := unequal(setting)) and not setting.unequal_budget:
        raise UserError(
            f"defences.{name} {why} than the arm without defence: budgets differ; add unequal_budget: true if that is "
            "the question, or choose another setting"
        )
    return setting


def reads(method: str) -> str | None:
    """What a method reads beside the task's rows: `safety_rows`, `harmful_rows`, `base`, `scores` or nothing."""
    return None if method in STUDY_METHODS else DEFENCES.facts(method).get("reads")


def _rows(name: str, method: str, given: Any, subsets: tuple[str, ...]) -> tuple[str | None, tuple | None]:
    kind = reads(method)
    if kind not in ("safety_rows", "harmful_rows"):
        if given is not None:
            raise UserError(f"defences.{name}.rows: {method} reads no further rows; leave it out")
        return None, None
    if isinstance(given, Mapping):
        if not given.get("source") or set(given) - {"source", "split"}:
            raise UserError(f"defences.{name}.rows: expected {{source: FILE OR FOLDER, split: NAME}}")
        return None, (str(given["source"]), given.get("split"))
    if kind == "harmful_rows":
        raise UserError(
            f"defences.{name}.rows: {method} reads harmful rows; give {{source: FILE OR FOLDER, split: NAME}}"
        )
    chosen = given or SAFETY_POOL
    if chosen not in (SAFETY_POOL, *subsets):
        raise unknown(f"rows of defences.{name}:", chosen, (SAFETY_POOL, *subsets))
    return chosen, None


def _order(method: str, subset: str) -> tuple[str, ...]:
    """The extreme rows of a selection first: files of low subsets end with theirs."""
    if method != "safety_rows":
        return ()
    return ("choose=last",) if subset.startswith("low") or subset.endswith("_low") else ("choose=first",)


def unequal(setting: DefenceSetting) -> str | None:
    """What a setting uses more or less of than the arm without defence, in words; None where budgets are equal."""
    found = []
    if reads(setting.method) in ("safety_rows", "harmful_rows"):
        found.append("reads more rows")
    if "budget=add" in setting.options or "budget=fewer" in setting.options:
        found.append("trains for another number of steps")
    return " and ".join(found) or None
