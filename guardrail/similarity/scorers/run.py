"""Scores of rows, batch by batch: in memory, or into a file that survives a kill.

    scoring = RowScoring(ScoringConfig(scorers=("length", "perplexity"), model_name_or_path=..., anchors=...))
    scoring.score(rows)["perplexity"].values            # (n,) float64, NaN with a reason where there is no score

    score_file(config)                                  # what similarity/score_rows.py does

A file of scores has one line per row, in the rows' order: ``{"id": ..., "scores": {name: number or null}, "reasons":
{name: why there is none}}``. Its record, ``<out without .jsonl>.json``, is written last.

Rows are put into units by the length of their text, ranks take units in turn, and a unit that is done is not done again
(`guardrail.core.units`).
"""

from __future__ import annotations

import functools
import math
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from guardrail.core import ranks
from guardrail.core.cli import log
from guardrail.core.errors import UserError
from guardrail.core.files import hash_file, hash_json, read_json, read_jsonl, write_json, write_jsonl
from guardrail.core.options import decisive
from guardrail.core.provenance import run_record
from guardrail.core.units import Units, consecutive
from guardrail.data.hub_layout import folder_lock
from guardrail.data.prompts import style_fingerprint
from guardrail.data.rows import Row, hash_rows, load_rows
from guardrail.models.checkpoints import hash_checkpoint
from guardrail.models.fetch import local_checkpoint
from guardrail.models.loading import pick_device
from guardrail.similarity.audit.sets import parse_set
from guardrail.similarity.scorers import SCORERS, NotApplicable
from guardrail.similarity.scorers.interface import Batch, Scorer, Scores, make_scorer
from guardrail.similarity.scorers.options import VERSION, ScoringConfig
from guardrail.similarity.scorers.resources import Resources

UNIT_ROWS = 256
KIND = "row_scores"
NOT_APPLICABLE = "not applicable"
SETS = ("anchors", "safe_anchors", "alignment", "refusals", "safety")


class RowScoring:
    """The scorers of one run over any number of rows. Models are loaded at the first row."""

    def __init__(self, config: ScoringConfig) -> None:
        self.config = config
        self.resources = Resources(config)
        self.scorers: dict[str, Scorer] = {name: make_scorer(name, self.resources) for name in config.names}
        self.not_applicable = {
            name: why for name, scorer in self.scorers.items() if (why := scorer.not_applicable()) is not None
        }
        self.working = {name: one for name, one in self.scorers.items() if name not in self.not_applicable}
        for scorer in self.working.values():
            self.resources.positions += scorer.positions
            self.resources.every_layer |= scorer.every_layer
        self._prepared = False

    def prepare(self) -> None:
        """Load what is needed and let every scorer read its sets; done by itself before the first rows."""
        if not self._prepared:
            for name, scorer in list(self.working.items()):
                try:
                    scorer.prepare()
                except NotApplicable as why:
                    log(f"{name} is not applicable: {why}")
                    self.not_applicable[name] = str(why)
                    del self.working[name]
            self._prepared = True

    def score(self, rows: Sequence[Row]) -> dict[str, Scores]:
        """Scores of ``rows`` by every scorer, in their order; all of them NaN for one that is not applicable."""
        if not rows:
            return {name: Scores.of([]) for name in self.scorers}
        self.prepare()
        batch = Batch(rows, self.resources)
        return {
            name: self.working[name].score(batch)
            if name in self.working
            else Scores.none(len(rows), f"{NOT_APPLICABLE}: {self.not_applicable[name]}")
            for name in self.scorers
        }

    @functools.cached_property
    def key(self) -> str:
        """Hash of everything that decides a row's scores beside the row: options, model, sets, prompt style, device."""
        return hash_json({"version": VERSION, **self.inputs})

    @functools.cached_property
    def inputs(self) -> dict[str, Any]:
        """What `key` is made of."""
        config = self.config
        out: dict[str, Any] = {"options": {**decisive(config), "scorers": list(self.scorers)}}
        needs = {need for name in self.scorers for need in SCORERS.facts(name).get("needs", ())}
        if config.model_name_or_path is not None and needs & {"model", "representations"}:
            out["model"] = hash_checkpoint(config.model_name_or_path)
            style = self.resources.options.prompt_style
            folder = Path(local_checkpoint(config.model_name_or_path, weights=False))
            out["prompt_template"] = None if style is None else style_fingerprint(style, folder)
            out["dtype"] = self.resources.options.torch_dtype
            out["device"] = pick_device().type  # random signs are made where they are used
        if config.moderation_model is not None and "moderation_model" in needs:
            out["moderation_model"] = hash_checkpoint(config.moderation_model)
        versions = {name: SCORERS.facts(name).get("version", 1) for name in self.scorers}
        if set(versions.values()) != {1}:
            out["scorer_versions"] = versions
        out["sets"] = self.resources.content([name for name in SETS if name in needs])
        return out


def load_scored_rows(config: ScoringConfig) -> list[Row]:
    """The rows of ``--rows``. Raises ``UserError``: none given, or none there."""
    if config.rows is None:
        raise UserError("no rows to score; give --rows PATH or PATH::SPLIT (and --out SCORES.jsonl)")
    spec = parse_set("rows", f"={config.rows}")
    return load_rows(spec.path, split=spec.split, limit=config.limit)


def record_file(out: str | Path) -> Path:
    """Where the record of a file of scores lies."""
    return Path(out).with_suffix(".json")


def score_file(config: ScoringConfig) -> dict[str, Any]:
    """Score ``config.rows`` into ``config.out`` and return the record; all ranks call it."""
    if config.out is None or not config.out.endswith(".jsonl"):
        raise UserError("--out names the file of scores; give one that ends with .jsonl")
    out = Path(config.out)
    scoring = RowScoring(config)
    rows = load_scored_rows(config)
    for name, why in scoring.not_applicable.items():
        log(f"{name} is not applicable: {why}")
    data_hash = hash_rows(rows)
    fingerprint = hash_json({"key": scoring.key, "data": data_hash})
    out.parent.mkdir(parents=True, exist_ok=True)
    with ranks.process_group(), folder_lock(out.parent) if ranks.is_main() else nullcontext():
        ranks.barrier()
        done = ranks.broadcast(finished(out, fingerprint) if ranks.is_main() else None)
        if done is not None:
            log(f"{out} is up to date: {done['n']} rows, {', '.join(done['scorers'])}")
            return {**done, "reused": True}
        order = sorted(range(len(rows)), key=lambda i: (-text_length(rows[i]), i))
        groups = consecutive(order, min(UNIT_ROWS, math.ceil(len(rows) / 8)))
        units = Units(groups, out.parent, fingerprint, identity=lambda place: place)
        started = time.time()
        lines = units.run(lambda places: lines_of(scoring, [rows[i] for i in places]), desc="scores")
        by_id = {line["id"]: line for line in lines}
        record = describe(scoring, rows, by_id, fingerprint, data_hash, started)
        if ranks.is_main():
            record_file(out).unlink(missing_ok=True)
            write_jsonl(out, [by_id[row["id"]] for row in rows])
            write_json(record_file(out), {**record, "scores_hash": hash_file(out)})
        units.clear()
    return {**record, "reused": False}


def text_length(row: Row) -> int:
    """Characters of a conversation: rows of similar length share a unit, so that little is computed on padding."""
    return sum(len(message["content"]) for message in row["messages"])


def lines_of(scoring: RowScoring, rows: list[Row]) -> list[dict[str, Any]]:
    """The lines of the file for ``rows``."""
    found = scoring.score(rows)
    out = []
    for place, row in enumerate(rows):
        numbers = {name: float(one.values[place]) for name, one in found.items()}
        out.append(
            {
                "id": row["id"],
                "scores": {name: None if math.isnan(value) else value for name, value in numbers.items()},
                "reasons": {name: one.reasons[place] for name, one in found.items() if place in one.reasons},
            }
        )
    return out


def finished(out: Path, fingerprint: str) -> dict[str, Any] | None:
    """The record of this very run, when the scores lie beside it unchanged."""
    if not out.is_file() or not record_file(out).is_file():
        return None
    record = read_json(record_file(out))
    if not isinstance(record, dict) or record.get("kind") != KIND:
        raise UserError(f"{record_file(out)} is another file; choose another --out")
    same = record.get("fingerprint") == fingerprint and record.get("scores_hash") == hash_file(out)
    return record if same else None


def describe(
    scoring: RowScoring,
    rows: list[Row],
    lines: dict[str, dict[str, Any]],
    fingerprint: str,
    data_hash: str,
    started: float,
) -> dict[str, Any]:
    """The record: per scorer what it needs and costs, how many rows it scored and why not the others."""
    scorers = {}
    for name in scoring.scorers:
        values = [line["scores"][name] for line in lines.values()]
        known = np.array([value for value in values if value is not None], dtype=np.float64)
        facts = SCORERS.facts(name)
        scorers[name] = {
            "needs": list(facts.get("needs", ())),
            "cost": facts.get("cost"),
            "applicable": not all(is_not_applicable(line["reasons"].get(name)) for line in lines.values()),
            "n_scored": len(known),
            "not_scored": dict(Counter(line["reasons"][name] for line in lines.values() if name in line["reasons"])),
            "mean": float(known.mean()) if len(known) else None,
            "quantiles": [float(q) for q in np.quantile(known, (0, 0.1, 0.5, 0.9, 1))] if len(known) else None,
        }
    return {
        "kind": KIND,
        "fingerprint": fingerprint,
        "n": len(rows),
        "scorers": scorers,
        "run": run_record(
            "score_rows",
            {**decisive(scoring.config), "scorers": list(scoring.scorers)},
            n=len(rows),
            seed=scoring.config.seed,
            data={"path": scoring.config.rows, "hash": data_hash},
            inputs=scoring.inputs,
            processes=ranks.world_size(),
            startup_sec=round(scoring.resources.startup_sec, 3),
            scoring_sec=round(max(time.time() - started - scoring.resources.startup_sec, 0.0), 3),
        ),
    }


def is_not_applicable(reason: str | None) -> bool:
    """Does a row's reason speak of the scorer and the model, not of the row?"""
    return reason is not None and reason.startswith(NOT_APPLICABLE)


def read_scores(path: str | Path) -> tuple[list[str], dict[str, Any]]:
    """Row ids and ``{scorer: (n,) float64, NaN where there is no score}`` of a file of scores.

    Raises ``UserError``: no such file, a line of another kind (with its number).
    """
    ids: list[str] = []
    columns: dict[str, list[float]] = {}
    for number, line in read_jsonl(path):
        if not isinstance(line, dict) or not isinstance(line.get("scores"), dict) or "id" not in line:
            raise UserError(
                f"{path}, line {number}: expected an id and scores; is it a file of similarity/score_rows.py?"
            )
        if ids and line["scores"].keys() != columns.keys():
            raise UserError(f"{path}, line {number}: other scorers than in line 1; score the rows again")
        ids.append(str(line["id"]))
        for name, value in line["scores"].items():
            columns.setdefault(name, []).append(math.nan if value is None else float(value))
    if not ids:
        raise UserError(f"{path} holds no scores")
    return ids, {name: np.array(values) for name, values in columns.items()}
