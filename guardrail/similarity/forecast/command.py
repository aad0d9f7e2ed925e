"""Fit a forecast of durability on studies that were run, and ask it.

    python -m guardrail.similarity.forecast.command fit outputs/*/study.json --out forecast.json
    python -m guardrail.similarity.forecast.command predict --forecast forecast.json outputs/audit/audit.json
    python -m guardrail.similarity.forecast.command predict --forecast forecast.json outputs/new/study.json

``predict`` reads an audit (one forecast per alignment set), a study that was run since (forecast beside what was
measured), or a JSON file with the properties of one arm. It writes nothing without ``--out``. Known limits: linear
associations over the arms of the studies given, for the extraction model that these used; docs/forecast.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.core.cli import Parser, fraction, log, run
from guardrail.core.errors import UserError, unknown
from guardrail.core.files import keep_inputs, read_json, write_json
from guardrail.core.options import add_options, option, read_options
from guardrail.similarity.forecast.observations import PROPERTIES, audit_properties, read_study

DEFAULT_LEVEL = 0.9


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Fit a forecast on study files and validate it, leaving whole tasks, pools and studies out."""

    out: str = option("forecast.json", "file to write", decides=False)
    level: float = option(DEFAULT_LEVEL, "coverage of its intervals", parse=fraction)


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Forecast the durability of the arms of an audit, of a study, or of one set of properties."""

    forecast: str = option(help="what `fit` wrote")
    before: tuple[str, ...] = option(
        (), "NAME=PERCENT: harmfulness of the checkpoint of an audited set; several times", parse=str, repeat=True
    )
    out: str | None = option(None, "file to write the forecasts to", decides=False)


def build_parser(kind: type[Fit] | type[Predict]) -> Parser:
    name = kind.__name__.lower()
    parser = Parser(prog=f"guardrail forecast {name}", description=kind.__doc__)
    many = kind is Fit
    files = "study.json files" if many else "an audit.json, a study.json, or a JSON file of properties"
    parser.add_argument("files", nargs="+" if many else 1, metavar="FILE", help=files)
    add_options(parser, kind)
    return parser


def main(argv: Sequence[str] | None = None) -> dict[str, Any] | None:
    given = list(sys.argv[1:] if argv is None else argv)
    kinds: dict[str, type[Fit] | type[Predict]] = {"fit": Fit, "predict": Predict}
    if not given or given[0] in ("-h", "--help"):
        print("usage: guardrail forecast fit|predict [--help]\n")
        print("\n".join(f"  {name:<9}{kind.__doc__}" for name, kind in kinds.items()))
        if given:
            sys.exit(0)
        raise UserError("expected fit or predict; see guardrail forecast --help")
    if given[0] not in kinds:
        raise unknown("command of forecast", given[0], kinds)
    kind = kinds[given[0]]
    args = build_parser(kind).parse_args(given[1:])
    files = args.files
    del args.files
    options = read_options(kind, args)
    return fit(files, options) if isinstance(options, Fit) else predict(files[0], options)


def fit(files: Sequence[str], options: Fit) -> dict[str, Any]:
    """Read, fit, validate, write; returns the path and each model's skill."""
    if not 0 < options.level < 1:
        raise UserError(f"--level {options.level:g} must lie between 0 and 1, e.g. 0.9")
    keep_inputs("out", options.out, {f"FILE {file}": file for file in files})
    studies = [read_study(file) for file in files]
    from guardrail.similarity.forecast.file import describe, fit_studies, write_forecast

    document = fit_studies(studies, options.level)
    for line in describe(document):
        log(line)
    write_forecast(options.out, document)
    skills = {
        f"{model['outcome']}{'' if 'initial_percent' in model.get('properties', ()) else '_without_before'}": {
            scheme: round(found["value"], 4) for scheme, found in model["skill"].items()
        }
        for model in document["models"]
        if "reason" not in model
    }
    return {"forecast": options.out, "n_studies": len(studies), "n_arms": document["run"]["n"], "skill": skills}


def predict(file: str, options: Predict) -> dict[str, Any]:
    """The forecasts for what ``file`` holds."""
    from guardrail.similarity.forecast.file import answer, read_forecast
    from guardrail.similarity.forecast.words import heading, say

    forecast = read_forecast(options.forecast)
    rows = []
    for name, values, extraction, measured in questions(file, parse_before(options.before)):
        row: dict[str, Any] = {"name": name, "properties": values, **answer(forecast, values, extraction)}
        rows.append(row | ({"measured": measured} if measured else {}))
        log(f"{heading(row)} for {name}: {say(row)}")
    result: dict[str, Any] = {"forecast": options.forecast, "n": len(rows)}
    if options.out is not None:
        keep_inputs("out", options.out, {"FILE": file, "forecast": options.forecast})
        write_json(options.out, {"forecast_hash": forecast["hash"], "asked": file, "forecasts": rows})
        return {**result, "forecasts": options.out}
    return {**result, "forecasts": rows}


def parse_before(texts: Sequence[str]) -> dict[str, float]:
    """``NAME=PERCENT`` -> percent by name. Raises ``UserError``."""
    out = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            percent = float(value)
        except ValueError:
            percent = float("nan")
        if not name or not equals or not 0 <= percent <= 100:
            raise UserError(f"--before {text!r}: expected NAME=PERCENT with 0 to 100, e.g. pool=4.5")
        out[name] = percent
    return out


def questions(
    file: str | Path, before: dict[str, float]
) -> list[tuple[str, dict[str, float], dict[str, Any] | None, dict[str, float]]]:
    """Name, properties, extraction and measured outcomes of every arm that ``file`` asks about."""
    document = read_json(file)
    if isinstance(document, dict) and "variants" in document and "customer" in document:
        check_names(before, [one["name"] for one in document["variants"]])
        return [
            (
                one["name"],
                audit_properties(one, document["customer"], before.get(one["name"])),
                audit_extraction(document),
                {},
            )
            for one in document["variants"]
        ]
    if before:
        raise UserError(f"--before names sets of an audit, but {file} is none")
    if isinstance(document, dict) and "statistics" in document:
        study = read_study(file)
        return [(one.name, one.properties, study.extraction, one.outcomes) for one in study.observations]
    if not isinstance(document, dict) or not document:
        raise UserError(f"{file}: expected an audit.json, a study.json, or one JSON object of properties")
    for name, value in document.items():
        if name not in PROPERTIES:
            raise unknown(f"property in {file}:", name, PROPERTIES)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{file}: {name} is {value!r}; expected a number")
    return [("arm", {name: float(value) for name, value in document.items()}, None, {})]


def check_names(before: dict[str, float], names: Sequence[str]) -> None:
    for name in before:
        if name not in names:
            raise unknown("alignment set in --before:", name, names)


def audit_extraction(audit: dict[str, Any]) -> dict[str, Any] | None:
    """What represented an audit's rows; None for bare tensors, which do not say."""
    model = audit["customer"]["source"].get("model")
    if not isinstance(model, dict):
        return None
    return {"model": model.get("path", ""), "model_hash": model.get("hash"), "view": audit["view"]}


if __name__ == "__main__":
    run(main)
