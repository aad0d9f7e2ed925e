"""How a row filter of a study scores rows: the keys of its entry in ``defences`` that say so.

    filter_10: {method: row_filter, share: 0.1, scorer: gradient_cosine, anchors: {source: FILE, split: NAME}}
    filter_eroding_10: {method: row_filter, share: 0.1, scorer: safety_step, scoring: {gradient_tokens: 4}}

``anchors``: harmful rows with answers, for the scorers that compare with some. What else a scorer compares with (the
alignment set, safe anchors, refusals, rows of the safety loss) is the study's safety pool. ``scoring``: options of
similarity/score_rows.py. ``scoring_model``: whose scores these are, of the ``aligned`` model that is fine-tuned
(default), or of the ``extraction`` model, once for all alignments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from guardrail.core.cli import Parser
from guardrail.core.errors import UserError, unknown
from guardrail.core.options import add_options, decisive, option_names, read_options
from guardrail.similarity.scorers import SCORERS
from guardrail.similarity.scorers.options import ScoringConfig

KEYS = ("anchors", "scoring", "scoring_model")
ALIGNED, EXTRACTION = "aligned", "extraction"
OF_THE_STUDY = ("scorers", "prompt_style", "torch_dtype", "trust_remote_code")
OPTIONS = tuple(name for name in decisive(ScoringConfig()) if name not in OF_THE_STUDY)
OF_A_MODEL = ("model", "representations")
OF_THE_POOL = ("safe_anchors", "alignment", "refusals", "safety")
MODERATION = "moderation_model"


@dataclass(frozen=True)
class Scoring:
    """``options`` are texts, by name; ``model`` is `ALIGNED`, `EXTRACTION` or None for a scorer that loads neither."""

    scorer: str
    anchors: tuple[str, str | None] | None = None
    options: tuple[tuple[str, str], ...] = ()
    model: str | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(SCORERS.facts(self.scorer).get("needs", ()))

    @property
    def reads_pool(self) -> bool:
        return any(need in OF_THE_POOL for need in self.needs)

    @property
    def reads_moderation(self) -> bool:
        return MODERATION in self.needs

    def config(self, **given: Any) -> ScoringConfig:
        """The scoring run with these options over those that are ``given``. Raises ``UserError`` for a wrong value."""
        parser = Parser(prog="scoring", add_help=False)
        add_options(parser, ScoringConfig, leave_out=set(option_names(ScoringConfig)) - set(OPTIONS))
        asked = parser.parse_args([f"--{name}={value}" for name, value in ({**given, **dict(self.options)}).items()])
        return read_options(ScoringConfig, asked, scorers=(self.scorer,))


def read_scoring(name: str, raw: Mapping[str, Any]) -> Scoring:
    """The scoring of the entry ``name`` of ``defences``. Raises ``UserError`` with the entry's name."""
    where, scorer = f"defences.{name}", str(raw.get("scorer") or "")
    if not scorer:
        raise UserError(f"{where}: row_filter needs a score; add scorer: NAME, one of {', '.join(SCORERS)}")
    if scorer not in SCORERS:
        raise unknown(f"scorer of {where}:", scorer, tuple(SCORERS))
    needs = SCORERS.facts(scorer).get("needs", ())
    for need in needs:
        if need not in (*OF_A_MODEL, *OF_THE_POOL, MODERATION, "anchors"):
            raise UserError(f"{where}: scorer {scorer} needs {need}, which a study does not have; choose another one")
    scoring = Scoring(
        scorer, _anchors(where, scorer, needs, raw.get("anchors")), _options(where, raw), _model(where, needs, raw)
    )
    try:
        scoring.config()
    except UserError as error:
        raise UserError(f"{where}.scoring: {error}") from error
    return scoring


def _anchors(where: str, scorer: str, needs: tuple[str, ...], given: Any) -> tuple[str, str | None] | None:
    if "anchors" not in needs:
        if given is not None:
            raise UserError(f"{where}.anchors: scorer {scorer} compares with no harmful rows; leave it out")
        return None
    if given is None:
        raise UserError(
            f"{where}: scorer {scorer} compares rows with harmful rows; add anchors: {{source: FILE OR FOLDER, split: "
            "NAME}, or choose another scorer"
        )
    if not isinstance(given, Mapping) or not given.get("source") or set(given) - {"source", "split"}:
        raise UserError(f"{where}.anchors: expected {{source: FILE OR FOLDER, split: NAME}}")
    return str(given["source"]), given.get("split")


def _options(where: str, raw: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    given = raw.get("scoring") or {}
    if not isinstance(given, Mapping):
        raise UserError(f"{where}.scoring: expected options of similarity/score_rows.py, such as {{avg_n: 5}}")
    for key in given:
        if key not in OPTIONS:
            raise unknown(f"key in {where}.scoring:", key, OPTIONS)
    return tuple(sorted((str(key), str(value)) for key, value in given.items()))


def _model(where: str, needs: tuple[str, ...], raw: Mapping[str, Any]) -> str | None:
    given = raw.get("scoring_model")
    if not any(need in OF_A_MODEL for need in needs):
        if given is not None:
            raise UserError(f"{where}.scoring_model: scorer {raw['scorer']} looks at no model; leave it out")
        return None
    if given not in (None, ALIGNED, EXTRACTION):
        raise unknown(f"scoring_model of {where}:", given, (ALIGNED, EXTRACTION))
    return str(given or ALIGNED)
