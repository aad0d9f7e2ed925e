"""One audit run: load or extract the sets, analyse, draw, write ``audit.json`` (last) and ``audit.html``."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from guardrail.core.cli import Parser, log, positive_int
from guardrail.core.errors import UserError, unknown
from guardrail.core.files import read_json, write_json, write_text
from guardrail.core.options import add_options, decisive, option, read_options
from guardrail.core.provenance import fingerprint, run_record
from guardrail.similarity.audit.forecasts import add_forecast, sentences
from guardrail.similarity.audit.sets import AuditSet, SetSpec, load_sets, parse_set
from guardrail.similarity.representations import options as o
from guardrail.similarity.representations.read import identify

RESULT, PAGE = "audit.json", "audit.html"
VERSION = 3  # raise when the same sets give another page
ENCODER_MAX_LENGTH = 256
SIZE_RATIO_WARNING = 1.5


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """Options of an audit. Of files that are read, the content decides (by hash), not the path."""

    customer: str = option(help="the data set to be fine-tuned on: NAME=PATH[::SPLIT]")
    alignment: tuple[str, ...] = option(
        help="an alignment set; several times to compare variants", parse=str, repeat=True
    )
    reference: tuple[str, ...] = option((), "a set to compare the customer with; several times", parse=str, repeat=True)
    output_dir: str = option(help="where audit.json, audit.html and reps/ go", decides=False)
    model_name_or_path: str | None = option(None, "encoder or causal LM that represents sets given as rows")
    prompt_style: str | None = option(None, f"chat string of a causal LM (default {o.DEFAULT_STYLE})")
    layer: str | None = option(None, "layers to extract, with commas (default: three; the first is the main one)")
    position: str | None = option(
        None, "positions to extract, with commas (default: eos, completion_mean, prompt_last; encoders mean)"
    )
    text: str = option("full", "what the model reads (prompt: for sets without answers)", choices=o.TEXTS)
    view: str | None = option(None, "main layer and position, e.g. layer16_eos (default: the first)")
    max_length: int | None = option(None, "cap in tokens (default: the model's; encoders 256)", parse=positive_int)
    max_rows: int = option(2000, "rows used of each set", parse=positive_int)
    bootstrap: int = option(200, "resamples", parse=positive_int)
    seed: int = option(42, "seed of samples and resamples")
    batch_tokens: int | None = option(None, "padded tokens per batch", parse=positive_int, decides=False)
    show_text: bool = option(False, "put row texts into audit.json and audit.html")
    forecast: str | None = option(None, "forecast.json of `guardrail forecast fit`; none: no prediction", decides=False)
    before: tuple[str, ...] = option(
        (),
        "NAME=PERCENT: harmfulness of the checkpoint of an alignment set; several times",
        parse=str,
        repeat=True,
        later=True,
    )
    command: tuple[str, ...] = ()

    @cached_property
    def sets(self) -> list[SetSpec]:
        """The customer first."""
        named = [("customer", self.customer), *(("alignment", text) for text in self.alignment)]
        return [parse_set(role, text) for role, text in [*named, *(("reference", text) for text in self.reference)]]


def build_parser() -> Parser:
    parser = Parser(description="Before any training: how similar is a customer's data set to each alignment set?")
    add_options(parser, AuditConfig)
    return parser


def main(argv: list[str] | None = None) -> dict[str, Any]:
    command = ("python", "similarity/audit.py", *(sys.argv[1:] if argv is None else argv))
    return run_audit(read_options(AuditConfig, build_parser().parse_args(argv), command=command))


def extraction_options(config: AuditConfig) -> tuple[o.ModelFacts | None, o.ExtractionOptions | None]:
    """What is extracted where only rows are given: three layers and three positions, the paper's feature among them.

    Encoders: the last layer and two before it, mean pooling, at most 256 tokens.
    """
    if config.model_name_or_path is None:
        given = {"text": None if config.text == "full" else config.text}
        given |= {name: getattr(config, name) for name in ("layer", "position", "prompt_style", "max_length")}
        useless = [name for name, value in given.items() if value is not None]
        if useless:
            raise UserError(
                f"--{useless[0]} concerns extraction, but there is no --model_name_or_path; give both or neither"
            )
        return None, None
    if all(spec.stored for spec in config.sets):
        raise UserError("all sets are stored representations; leave --model_name_or_path out")
    facts = o.model_facts(config.model_name_or_path)
    L = facts.n_layers
    encoder = facts.architecture == "encoder"
    layers = sorted({max(0, L - 2), max(0, L - 1), L} if encoder else {L // 2, (3 * L) // 4, L}, reverse=True)
    positions = "eos,completion_mean,prompt_last" if config.text == "full" else "eos,mean"
    if encoder:
        positions = "mean"
    max_length = config.max_length
    if max_length is None and encoder:
        max_length = min(ENCODER_MAX_LENGTH, facts.max_positions or ENCODER_MAX_LENGTH)
    return facts, o.resolve_options(
        facts,
        layer=config.layer or ",".join(map(str, layers)),
        position=config.position or positions,
        text=config.text,
        prompt_style=config.prompt_style,
        max_length=max_length,
    )


def run_audit(config: AuditConfig) -> dict[str, Any]:
    """Run the audit; returns paths and the verdict."""
    facts, options = extraction_options(config)
    forecast = _read_forecast(config)
    output = Path(config.output_dir)
    sets = load_sets(
        config.sets,
        output,
        config.model_name_or_path,
        options,
        facts,
        config.max_rows,
        config.seed,
        config.batch_tokens,
    )
    settings = decisive(config)
    prints = {f"{one.spec.role} {one.name}": one.source.get("fingerprint") or identify(one.spec.path) for one in sets}
    prints |= {"forecast": forecast["hash"]} if forecast else {}
    print_ = fingerprint({"version": VERSION, **settings}, prints)
    if (output / RESULT).is_file() and (output / PAGE).is_file():
        old = read_json(output / RESULT)
        if old["fingerprint"] == print_:
            log(f"{output} is up to date")
            return _summary(output, old, reused=True)
    audit = analyse_sets(config, sets)
    add_forecast(audit, forecast, config.before)
    audit |= {"fingerprint": print_, "model": config.model_name_or_path}
    audit["run"] = run_record(
        "audit", settings, n=audit["customer"]["n"], seed=config.seed, bootstrap_draws=config.bootstrap, inputs=prints
    )
    audit["summary"] = summarise(audit)
    _write(config, sets, audit, output)
    for sentence in audit["summary"]:
        log(sentence)
    return _summary(output, audit, reused=False)


def _read_forecast(config: AuditConfig) -> dict[str, Any] | None:
    """The forecast that was asked for. ``UserError`` before anything is loaded: unreadable, or nothing to use it on."""
    if config.forecast is None:
        if config.before:
            raise UserError("--before is used by a forecast only; give --forecast too, or leave it out")
        return None
    from guardrail.similarity.forecast.command import check_names, parse_before
    from guardrail.similarity.forecast.file import read_forecast

    check_names(parse_before(config.before), [spec.name for spec in config.sets if spec.role == "alignment"])
    return read_forecast(config.forecast)


def analyse_sets(config: AuditConfig, sets: list[AuditSet]) -> dict[str, Any]:
    """All numbers of the audit (the content of audit.json without provenance)."""
    import numpy as np

    from guardrail.similarity.audit import analyse

    customer = sets[0]
    variants = [one for one in sets if one.spec.role == "alignment"]
    references = [one for one in sets if one.spec.role == "reference"]
    view = config.view or next(iter(customer.matrices))
    if view not in customer.matrices:
        raise unknown("--view", view, customer.matrices)
    generator = np.random.default_rng(config.seed)
    table = analyse.similarity_table(customer, variants)
    wins = analyse.bootstrap_winners(customer, variants, view, config.bootstrap, generator)
    entries = []
    for variant in variants:
        values = analyse.measure(analyse.similarity_matrix(variant.matrices[view], customer.matrices[view]), "max")
        driving = analyse.drivers(customer, variant, view)
        if config.show_text:
            _add_texts(driving, customer, variant)
        entries.append(
            {
                "name": variant.name,
                "similarity": round(float(values.mean()), 6),
                "interval": analyse.bootstrap_interval(values, generator, config.bootstrap),
                "lowest_in_resamples": wins[variant.name] if len(variants) > 1 else None,
                "references": analyse.compare_with_references(customer, variant, references, view),
                "drivers": driving,
                "set": analyse.describe_set(variant, view),
            }
        )
    return {
        "customer": analyse.describe_set(customer, view),
        "variants": entries,
        "references": [analyse.describe_set(one, view) for one in references],
        "view": view,
        "views": list(customer.matrices),
        "verdict": analyse.verdict(variants, table, view, wins),
        "similarity_by_view": table,
    }


def _add_texts(driving: dict[str, Any], customer: AuditSet, variant: AuditSet) -> None:
    """Put the texts in, for ``--show_text True``; sets given as bare representations have none."""
    from guardrail.similarity.audit.analyse import row_text

    entries = [(customer, row) for row in driving["rows"]]
    entries += [(customer, pair["customer"]) for pair in driving["pairs"]]
    entries += [(variant, pair["alignment"]) for pair in driving["pairs"]]
    for one, entry in entries:
        if one.rows is not None:
            entry["text"] = row_text(one.rows[entry["number"]])


def summarise(audit: dict[str, Any]) -> list[str]:
    """The verdict in plain sentences, with the reasons for doubt."""
    judged, out = audit["verdict"], sentences(audit)
    by_name = {entry["name"]: entry for entry in audit["variants"]}
    if judged["least_similar"] is not None:
        best = by_name[judged["least_similar"]]
        out.append(
            f"Least similar: {best['name']} (similarity {best['similarity']:.4f}, lowest of {len(by_name)}, "
            f"by {judged['margin']:.4f}). How stable that rank is: {judged['confidence']}."
        )
        same, resampled = 100 * judged["agreement_fraction"], 100 * judged["bootstrap_fraction"]
        out.append(
            f"The least similar set is the same in {same:.0f}% of {judged['n_choices']} combinations "
            f"of layer, position and measure and in {resampled:.0f}% of resamples."
        )
    head = by_name.get(judged["least_similar"] or "") or audit["variants"][0]
    compared = head["references"]
    if "row_percentile" in compared:
        out.append(
            f"The customer's rows are at percentile {compared['row_percentile']:.0f} of the reference rows in their "
            f"similarity to {head['name']} (50 is like the references); {compared['sets_below']} of "
            f"{compared['n_reference_sets']} reference sets are less similar."
        )
    else:
        out.append("No reference sets were given, so there is no percentile: similarity has no meaning on its own.")
    lengths = [
        e["set"]["composition"]["length_chars"]["mean"]
        for e in audit["variants"]
        if e["set"]["composition"] is not None
    ]
    if len(lengths) > 1 and max(lengths) > SIZE_RATIO_WARNING * max(1.0, min(lengths)):
        out.append(
            f"Caution: mean answer length differs between the alignment sets ({min(lengths):.0f} to {max(lengths):.0f} "
            "characters); length alone could explain the difference."
        )
    return out


def _write(config: AuditConfig, sets: list[AuditSet], audit: dict[str, Any], output: Path) -> None:
    from guardrail.similarity import figures
    from guardrail.similarity.audit.page import render_page

    customer = sets[0]
    variants = [one for one in sets if one.spec.role == "alignment"]
    references = [one for one in sets if one.spec.role == "reference"]
    view, chosen = audit["view"], audit["verdict"]["least_similar"]
    head = next((one for one in variants if one.name == chosen), variants[0])
    drawn = [
        (
            f"Similarity of single rows to {head.name}: the customer against the reference sets.",
            figures.draw_references(customer, head, references, view),
        )
    ]
    if len(variants) > 1:
        compared = "Similarity of the alignment sets to the customer's rows. * least similar."
        drawn.insert(0, (compared, figures.draw_variants(audit["variants"], chosen)))
        drawn.append(
            (
                "Does the choice depend on layer, position or measure? Ranks by similarity, 1 = lowest.",
                figures.draw_stability(audit["similarity_by_view"]),
            )
        )
    drawn.append(
        (
            "Customer and alignment rows in their first two components.",
            figures.draw_map(customer, variants, view, config.seed),
        )
    )
    (output / RESULT).unlink(missing_ok=True)
    write_text(output / PAGE, render_page(audit, drawn, shlex.join(config.command), config.show_text))
    write_json(output / RESULT, audit)


def _summary(output: Path, audit: dict[str, Any], reused: bool) -> dict[str, Any]:
    return {
        "audit": str(output / RESULT),
        "page": str(output / PAGE),
        "least_similar": audit["verdict"]["least_similar"],
        "predicted_best": audit["verdict"]["predicted_best"],
        "confidence": audit["verdict"]["confidence"],
        "similarity": {entry["name"]: entry["similarity"] for entry in audit["variants"]},
        "row_percentile": {entry["name"]: entry["references"].get("row_percentile") for entry in audit["variants"]},
        "reused": reused,
    }
