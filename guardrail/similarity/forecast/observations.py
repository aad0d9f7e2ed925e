"""What a forecast learns from and what it is asked about: properties of subset, task and pair, beside durability.

One observation is one arm of a study: one alignment subset for one task, training seeds averaged. Its properties are
those that can be known before any training:

* of the pair: ``similarity`` (mean over the subset's rows of the largest cosine to a row of the task);
* of the subset: ``diversity`` (Vendi score), ``response_chars``, ``list_share_percent``, ``log_rows``;
* of the task: ``task_response_chars``, ``task_list_share_percent``, ``task_diversity``;
* of the aligned checkpoint: ``initial_percent``, its harmfulness before fine-tuning.

Outcomes, all "larger is worse" but the life:

* ``delta_points``: change of harmfulness in points;
* ``life_percent``: restricted mean life in percent of the training (studies with probes: docs/survival.md);
* ``log_hazard``: natural logarithm of falls per prompt at risk and whole training, the exponential model's estimate
  (falls / time at risk); the difference of two arms is their log hazard ratio.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guardrail.core.errors import UserError
from guardrail.core.files import hash_file, read_json

PROPERTIES = (
    "similarity",
    "diversity",
    "response_chars",
    "list_share_percent",
    "log_rows",
    "task_response_chars",
    "task_list_share_percent",
    "task_diversity",
    "initial_percent",
)
OUTCOMES = ("delta_points", "life_percent", "log_hazard")
UNITS = {
    "delta_points": "points of harmfulness",
    "life_percent": "% of the training",
    "log_hazard": "log falls per prompt and training",
}
WORDS = {
    "delta_points": "change of harmfulness",
    "life_percent": "mean life of a refusal",
    "log_hazard": "log hazard",
}
REPRESENTED_BY = "similarity/safety_pool/reps/extraction/manifest.json"


@dataclass(frozen=True)
class Observation:
    """One arm: where it is from, what was known before, what was measured."""

    study: str
    pool: str
    task: str
    subset: str
    properties: dict[str, float]
    outcomes: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.study}/{self.task}/{self.subset}"


@dataclass(frozen=True)
class StudyFile:
    """A study as a forecast reads it; ``extraction``: which model represents its rows, and how."""

    path: str
    sha256: str
    name: str
    extraction: dict[str, Any]
    observations: tuple[Observation, ...]

    def digest(self) -> dict[str, Any]:
        """What a model file records of it."""
        return {"path": self.path, "hash": self.sha256, "study": self.name, "n_arms": len(self.observations)}


def read_study(path: str | Path) -> StudyFile:
    """The arms of a `study.json` that have properties and numbers. ``UserError``: not such a file."""
    path = Path(path)
    document = read_json(path)
    try:
        config = document["run"]["config"]
        pool = config["safety_pool"]
        name = str(document["study"])
        rows = document["statistics"].get("observations", [])
        lives = {_place(arm): arm for arm in (document.get("survival") or {}).get("arms", [])}
        observations = [
            Observation(
                name,
                f"{pool['source']}::{pool.get('split')}",
                str(row["task"]),
                str(row["subset"]),
                subset_properties(row),
                {"delta_points": float(row["delta_points"]), **_lasting(lives.get(_place(row)))},
            )
            for row in rows
        ]
        extraction = _extraction(path.parent, config)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} is no study.json ({what}); expected what scripts/study.sh writes") from error
    return StudyFile(str(path), hash_file(path), name, extraction, tuple(observations))


def _place(row: dict[str, Any]) -> tuple[str, str, Any]:
    return row["task"], row["subset"], row["subset_size"]


def subset_properties(row: dict[str, Any]) -> dict[str, float]:
    """The properties of a row of `study.json`'s ``observations``; those that it does not hold are left out."""
    values = {**row, "log_rows": math.log(row["n"]) if row.get("n") else None}
    return {name: float(values[name]) for name in PROPERTIES if values.get(name) is not None}


def _lasting(arm: dict[str, Any] | None) -> dict[str, float]:
    """``life_percent`` and ``log_hazard`` of a row of `study.json`'s ``survival.arms``."""
    if arm is None or arm.get("life_steps") is None:
        return {}
    life = float(arm["life_steps"]) / float(arm["training_steps"])
    at_risk = arm["n_units"] - arm["n_harmful_before"]
    out = {"life_percent": 100 * life}
    if at_risk > 0 and life > 0:  # half a fall where none was seen: its logarithm would be infinite
        out["log_hazard"] = math.log(max(arm["n_fallen"], 0.5) / (at_risk * life))
    return out


def _extraction(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What represents the rows: the model's name always, its hash and the view where the study's folder is there."""
    out: dict[str, Any] = {"model": str(config["models"]["extraction"]), "model_hash": None, "view": None}
    manifest = folder / REPRESENTED_BY
    if manifest.is_file():
        document = read_json(manifest)
        out |= {"model_hash": document["model"]["hash"], "view": next(iter(document["views"]))}
    return out


def check_one_extraction(studies: Iterable[StudyFile]) -> dict[str, Any]:
    """The extraction model that all studies share. ``UserError`` when they do not: cosines cannot be compared then."""
    studies = list(studies)
    first = studies[0]
    for other in studies[1:]:
        if not same_extraction(first.extraction, other.extraction):
            raise UserError(
                f"{first.path} and {other.path} represent rows by different models ({first.extraction['model']}, "
                f"{other.extraction['model']}), whose cosines cannot be compared; fit one forecast per model"
            )
    return next((one.extraction for one in studies if one.extraction["model_hash"]), first.extraction)


def same_extraction(one: dict[str, Any], two: dict[str, Any]) -> bool:
    """The model by content where both are known, else by name (the last two parts of a path); the view where known."""
    if one.get("view") and two.get("view") and one["view"] != two["view"]:
        return False
    if one.get("model_hash") and two.get("model_hash"):
        return bool(one["model_hash"] == two["model_hash"])
    return Path(str(one["model"])).parts[-2:] == Path(str(two["model"])).parts[-2:]


def audit_properties(
    variant: dict[str, Any], customer: dict[str, Any], initial_percent: float | None
) -> dict[str, float]:
    """The properties of one variant of an `audit.json` and its customer, as far as they are known."""
    out = {"similarity": float(variant["similarity"])}
    for prefix, one in (("", variant["set"]), ("task_", customer)):
        out[f"{prefix}diversity"] = float(one["diversity"]["vendi_score"])
        if one["composition"] is not None:
            out[f"{prefix}response_chars"] = float(one["composition"]["length_chars"]["mean"])
            out[f"{prefix}list_share_percent"] = 100 * float(one["composition"]["list_fraction"])
    out["log_rows"] = math.log(variant["set"]["n"])
    if initial_percent is not None:
        out["initial_percent"] = initial_percent
    return out
