"""forecast.json: fitted models of every outcome with everything that decides an answer, and the studies behind them.

Properties that are not known for a question leave a model out; therefore each outcome has one with all properties and
one without the checkpoint's harmfulness before fine-tuning, which is known only once the checkpoint was asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guardrail.core.errors import UserError
from guardrail.core.files import hash_file, read_json, write_json
from guardrail.core.provenance import run_record
from guardrail.similarity.forecast.model import LEVEL, ask, fit_outcome, skill_reason
from guardrail.similarity.forecast.observations import (
    OUTCOMES,
    PROPERTIES,
    UNITS,
    StudyFile,
    check_one_extraction,
    same_extraction,
)

FORMAT, VERSION = "guardrail forecast", 1
BEFORE = "initial_percent"
DIGITS = 4


def fit_studies(studies: Sequence[StudyFile], level: float = LEVEL) -> dict[str, Any]:
    """The content of forecast.json. Raises ``UserError``: no arms, or rows represented by different models."""
    twice = [one for one in studies if [other.sha256 for other in studies].count(one.sha256) > 1]
    if twice:
        raise UserError(f"{twice[0].path} and {twice[1].path} hold the same study; name it once")
    observations = [one for study in studies for one in study.observations]
    if not observations:
        raise UserError(
            f"{len(studies)} study files hold no finished arm with properties; run studies with scripts/study.sh first"
        )
    extraction = check_one_extraction(studies)
    sets = (PROPERTIES, tuple(name for name in PROPERTIES if name != BEFORE))
    models = [fit_outcome(observations, outcome, names) for outcome in OUTCOMES for names in sets]
    return {
        "format": FORMAT,
        "version": VERSION,
        "level": level,
        "extraction": extraction,
        "studies": [study.digest() for study in studies],
        "models": models,
        "run": run_record("forecast", {"level": level}, n=len(observations)),
    }


def write_forecast(path: str | Path, document: dict[str, Any]) -> Path:
    return write_json(path, document)


def read_forecast(path: str | Path) -> dict[str, Any]:
    """Raises ``UserError``: no such file, no forecast, or one of another version."""
    document = read_json(path)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise UserError(f"{path} is no forecast; expected what `guardrail forecast fit` writes")
    if document.get("version") != VERSION:
        raise UserError(
            f"{path} is a forecast of version {document.get('version')}, this code reads version {VERSION}; fit it "
            "again with `guardrail forecast fit`"
        )
    return {**document, "hash": hash_file(path)}


def models_of(forecast: dict[str, Any], outcome: str) -> list[dict[str, Any]]:
    """The models of an outcome, the one with most properties first."""
    return [model for model in forecast["models"] if model["outcome"] == outcome]


def choose(forecast: dict[str, Any], outcome: str, values: dict[str, float]) -> dict[str, Any]:
    """The model with most properties, all of which are known; the last where none is."""
    models = models_of(forecast, outcome)
    known = (m for m in models if "reason" in m or set(m["properties"]) | set(m["constant"]) <= set(values))
    return next(known, models[-1])


def answer(
    forecast: dict[str, Any], values: dict[str, float], extraction: dict[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Every outcome's forecast for one arm with these property ``values``, or why there is none.

    ``extraction``: what represented the rows; another model's cosines give no forecast.
    """
    out = {}
    for outcome in OUTCOMES:
        model = choose(forecast, outcome, values)
        if extraction is not None and not same_extraction(forecast["extraction"], extraction):
            found: dict[str, Any] = {
                "abstains": f"the forecast was fitted on representations of {_shown(forecast['extraction'])}, these "
                f"are of {_shown(extraction)}"
            }
        else:
            found = ask(model, values, forecast["level"])
        out[outcome] = {**_rounded(found), "unit": UNITS[outcome], **_facts(model)}
    return out


def _shown(extraction: dict[str, Any]) -> str:
    view = extraction.get("view")
    return f"{extraction['model']}{f' ({view})' if view else ''}"


def _facts(model: dict[str, Any]) -> dict[str, Any]:
    if "reason" in model:
        return {"skill": {}, "n_arms": model["n_arms"], "n_tasks": len(model["tasks"])}
    order = model["order_right_fraction"]
    return {
        "skill": {scheme: _rounded(found) for scheme, found in model["skill"].items()},
        "n_arms": model["n_arms"],
        "n_tasks": len(model["tasks"]),
        "order_right_fraction": None if order is None else round(order, DIGITS),
        "n_pairs": model["n_pairs"],
    }


def _rounded(found: dict[str, Any]) -> dict[str, Any]:
    out = dict(found)
    for key, value in found.items():
        if isinstance(value, float):
            out[key] = round(value, DIGITS)
        elif isinstance(value, list):
            out[key] = [round(edge, DIGITS) for edge in value]
    return out


def describe(document: dict[str, Any]) -> list[str]:
    """One line per model: how many arms, which skill, whether it answers at all."""
    lines = []
    for model in document["models"]:
        head = f"{model['outcome']}, {model['n_arms']} arms of {len(model['tasks'])} tasks"
        if "reason" in model:
            lines.append(f"{head}: no forecast: {model['reason']}")
            continue
        head += " with" if BEFORE in model["properties"] else " without"
        reason = skill_reason(model)
        parts = [
            f"skill {found['value']:.2f} ({found['interval'][0]:.2f} to {found['interval'][1]:.2f}) leaving out "
            f"{scheme} by {scheme}"
            for scheme, found in model["skill"].items()
        ]
        lines.append(f"{head} the harmfulness before: {'; '.join(parts)}{': it abstains' if reason else ''}")
    return lines
