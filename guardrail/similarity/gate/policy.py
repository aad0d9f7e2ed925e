"""The policy of a gate: a YAML file that says what is asked of a row and when a file is refused.

    python similarity/admit.py customer.jsonl --policy configs/policies/sandbox.yaml

configs/policies/sandbox.yaml shows every key with a comment. Unknown keys are refused with the near match, so that a
misspelt rule is never a rule that does not exist. A set is PATH or PATH::SPLIT; what decides is its content.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from guardrail.core.errors import UserError, unknown
from guardrail.core.files import read_text
from guardrail.core.options import decisive, option_names, read_options
from guardrail.similarity.scorers.options import ScoringConfig

KEEP, FLAG, QUARANTINE, MASK = "keep", "flag", "quarantine", "mask"
ACTIONS = (FLAG, QUARANTINE)
# The rules that are no threshold on a score; every other rule names its scorer.
DUPLICATE, FORMAT, SECRETS = "near_duplicate", "format", "secrets"
SEGMENT = "harmful_segment"
SCORED = ("harmful", "near_harmful", "erodes", "length")  # further names are free
LIMITS = ("above", "below", "above_percentile", "below_percentile")
SETS = ("anchors", "safe_anchors", "alignment", "refusals", "safety")
MODELS = ("target", "moderation", "prompt_style", "max_length")
# Options of a scoring run that the policy gives elsewhere, or that are the gate's own.
NOT_SCORING = {*SETS, "rows", "limit", "scorers", "out", "compare", "model_name_or_path", "moderation_model"}
NOT_SCORING |= {"prompt_style", "max_length", "representations"}
KEY_OF_FLAG = re.compile(r"--(\w+)")
DEFAULT_REFERENCE_ROWS = 500
DEFAULT_JACCARD = 0.9


@dataclass(frozen=True)
class Rule:
    """One reason to hold a row back. A row has it when its score is beyond any of the limits.

    ``above`` and ``below`` are in the score's own unit; the percentiles are among the rows of the references.
    """

    name: str
    action: str = QUARANTINE
    scorer: str | None = None
    above: float | None = None
    below: float | None = None
    above_percentile: float | None = None
    below_percentile: float | None = None
    jaccard: float = DEFAULT_JACCARD

    @property
    def needs_references(self) -> bool:
        return self.above_percentile is not None or self.below_percentile is not None


@dataclass(frozen=True)
class Segments:
    """Harm inside a long answer: every sentence is scored as an answer of its own to the row's question.

    Sentences beyond the limit get no loss, unless they are more than ``max_masked_fraction`` of the answer's
    characters: then the row goes. ``instead_of``: reasons that a mask makes good (the row as a whole is harmful because
    of the masked sentence).
    """

    scorer: str = "moderation"
    above: float | None = None
    above_percentile: float | None = None
    max_masked_fraction: float = 0.5
    instead_of: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """When the whole file is refused: shares of its rows, and the fewest rows that are worth a training."""

    quarantined_fraction: float = 1.0
    fractions: dict[str, float] = field(default_factory=dict)
    min_kept_rows: int = 1


@dataclass(frozen=True)
class Policy:
    """A checked policy. ``references`` and ``checks`` map a name to a set."""

    rules: tuple[Rule, ...]
    description: str = ""
    models: dict[str, Any] = field(default_factory=dict)
    sets: dict[str, str] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)
    reference_rows: int = DEFAULT_REFERENCE_ROWS
    checks: dict[str, str] = field(default_factory=dict)
    scoring: dict[str, Any] = field(default_factory=dict)
    segments: Segments | None = None
    refuse: Refusal = field(default_factory=Refusal)

    @property
    def scorers(self) -> tuple[str, ...]:
        """The scorers of rows, each once, in the order of the rules."""
        return tuple(dict.fromkeys(rule.scorer for rule in self.rules if rule.scorer is not None))

    def rule(self, name: str) -> Rule | None:
        return next((rule for rule in self.rules if rule.name == name), None)

    def scoring_config(self, scorers: tuple[str, ...]) -> ScoringConfig:
        """The options of the scoring run of these scorers. Raises ``UserError`` for what one of them lacks."""
        values = {**self.sets, **self.scoring}
        names = {"target": "model_name_or_path", "moderation": "moderation_model"}
        values |= {names.get(name, name): value for name, value in self.models.items()}
        config = read_options(ScoringConfig, values, scorers=scorers)
        assert config.names == scorers
        return config

    def as_dict(self) -> dict[str, Any]:
        """What decides, JSON-able: the rules with their defaults written out."""
        value = dataclasses.asdict(self)
        value.pop("description")
        value["rules"] = {
            rule.name: {k: v for k, v in dataclasses.asdict(rule).items() if k != "name"} for rule in self.rules
        }
        scored = (*self.scorers, *([self.segments.scorer] if self.segments else []))
        if scored:
            value["scoring"] = {k: v for k, v in decisive(ScoringConfig(**self.scoring)).items() if k != "scorers"}
        return value


def load_policy(path: str | Path) -> Policy:
    """The policy in the YAML file ``path``. Raises ``UserError``: absent, not YAML, unknown key, wrong value."""
    text = read_text(path)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(
            f"{path}{line}: not valid YAML: {getattr(error, 'problem', None) or 'cannot be read'}"
        ) from error
    return _Reader(str(path)).policy(value)


def _key_of(flag: re.Match[str]) -> str:
    """Where the policy gives what a scoring run gives as a flag."""
    name = flag.group(1)
    names = {"model_name_or_path": "models.target", "moderation_model": "models.moderation", "representations": "sets"}
    return names.get(name) or (f"sets.{name}" if name in SETS else f"scoring.{name}")


class _Reader:
    """Reads one file; every message begins with the file and the key."""

    def __init__(self, path: str) -> None:
        self.path = path

    def wrong(self, key: str, value: Any, expected: str) -> UserError:
        return UserError(f"{self.path}: {key} is {str(value)[:60]!r}; expected {expected}")

    def mapping(self, key: str, value: Any, known: tuple[str, ...] | None) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise self.wrong(key, value, "names with their values")
        for name in value:
            if known is not None and name not in known:
                raise UserError(f"{self.path}: {unknown(f'key in {key}:', name, known)}")
        return dict(value)

    def number(self, key: str, value: Any, low: float, high: float, whole: bool = False) -> Any:
        kinds = (int,) if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
            kind = "a whole number" if whole else "a number"
            bounds = (
                f" from {low:g} to {high:g}" if high < float("inf") else f" of at least {low:g}" if low > -1e300 else ""
            )
            raise self.wrong(key, value, kind + bounds)
        return value if whole else float(value)

    def text(self, key: str, value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(key, value, "a text")
        return value

    def paths(self, key: str, value: Any, known: tuple[str, ...] | None) -> dict[str, str]:
        return {name: self.text(f"{key}.{name}", path) for name, path in self.mapping(key, value, known).items()}

    def policy(self, value: Any) -> Policy:
        known = tuple(item.name for item in dataclasses.fields(Policy))
        found = self.mapping("the policy", value, known)
        if not found.get("rules"):
            raise UserError(f"{self.path}: no rules; expected at least one, such as format: {{}}")
        rules = tuple(self.rule(name, one) for name, one in self.mapping("rules", found["rules"], None).items())
        references = self.paths("references", found.get("references"), None)
        segments = self.segments(found["segments"], rules) if found.get("segments") is not None else None
        needing = next((rule.name for rule in rules if rule.needs_references), None)
        if segments is not None and segments.above_percentile is not None:
            needing = needing or "segments"
        if needing and not references:
            raise UserError(
                f"{self.path}: {needing} has a percentile, and there are no references; name some, or use above"
            )
        policy = Policy(
            rules=rules,
            description=str(found.get("description") or ""),
            models=self.models(found.get("models")),
            sets=self.paths("sets", found.get("sets"), SETS),
            references=references,
            reference_rows=self.number(
                "reference_rows", found.get("reference_rows", DEFAULT_REFERENCE_ROWS), 20, float("inf"), whole=True
            ),
            checks=self.paths("checks", found.get("checks"), None),
            scoring=self.scoring(found.get("scoring")),
            segments=segments,
            refuse=self.refusal(found.get("refuse"), rules),
        )
        scored = (*policy.scorers, *([segments.scorer] if segments else []))
        try:
            if scored:
                policy.scoring_config(tuple(dict.fromkeys(scored)))
        except UserError as error:
            raise UserError(f"{self.path}: {KEY_OF_FLAG.sub(_key_of, str(error))}") from error
        return policy

    def rule(self, name: str, value: Any) -> Rule:
        key = f"rules.{name}"
        if name == SEGMENT:
            raise UserError(f"{self.path}: {key} is what segments give; write a block segments instead")
        if name in (FORMAT, SECRETS, DUPLICATE):
            found = self.mapping(key, value, ("action", *(("jaccard",) if name == DUPLICATE else ())))
        else:
            found = self.mapping(key, value, ("action", "scorer", *LIMITS))
            if "scorer" not in found and name != "length":
                raise UserError(
                    f"{self.path}: {key} names no scorer; expected one, or one of {FORMAT}, {SECRETS}, {DUPLICATE}"
                )
            found.setdefault("scorer", "length")
            self.text(f"{key}.scorer", found["scorer"])
            if not any(limit in found for limit in LIMITS):
                raise UserError(f"{self.path}: {key} has no limit; expected one of {', '.join(LIMITS)}")
        for limit in ("above", "below"):
            if limit in found:
                found[limit] = self.number(f"{key}.{limit}", found[limit], -float("inf"), float("inf"))
            if f"{limit}_percentile" in found:
                found[f"{limit}_percentile"] = self.number(
                    f"{key}.{limit}_percentile", found[f"{limit}_percentile"], 0, 100
                )
        if "jaccard" in found:
            found["jaccard"] = self.number(f"{key}.jaccard", found["jaccard"], 0.5, 1)
        if found.get("action", QUARANTINE) not in ACTIONS:
            raise UserError(f"{self.path}: {unknown(f'{key}.action', str(found['action']), ACTIONS)}")
        return Rule(name=name, **found)

    def models(self, value: Any) -> dict[str, Any]:
        found = self.mapping("models", value, MODELS)
        if "max_length" in found:
            found["max_length"] = self.number("models.max_length", found["max_length"], 1, float("inf"), whole=True)
        for name in set(found) - {"max_length"}:
            self.text(f"models.{name}", found[name])
        return found

    def scoring(self, value: Any) -> dict[str, Any]:
        known = tuple(name for name in option_names(ScoringConfig) if name not in NOT_SCORING)
        return self.mapping("scoring", value, known)

    def segments(self, value: Any, rules: tuple[Rule, ...]) -> Segments:
        found = self.mapping("segments", value, tuple(item.name for item in dataclasses.fields(Segments)))
        if ("above" in found) == ("above_percentile" in found):
            raise UserError(f"{self.path}: segments needs one limit: above or above_percentile")
        if "above" in found:
            found["above"] = self.number("segments.above", found["above"], -float("inf"), float("inf"))
        for name, high in (("above_percentile", 100), ("max_masked_fraction", 1)):
            if name in found:
                found[name] = self.number(f"segments.{name}", found[name], 0, high)
        if "scorer" in found:
            self.text("segments.scorer", found["scorer"])
        if "instead_of" in found:
            names = [rule.name for rule in rules]
            if not isinstance(found["instead_of"], list):
                raise self.wrong("segments.instead_of", found["instead_of"], "a list of rules")
            for name in found["instead_of"]:
                if name not in names:
                    raise UserError(f"{self.path}: {unknown('rule in segments.instead_of:', str(name), names)}")
            found["instead_of"] = tuple(found["instead_of"])
        return Segments(**found)

    def refusal(self, value: Any, rules: tuple[Rule, ...]) -> Refusal:
        found = self.mapping("refuse", value, tuple(item.name for item in dataclasses.fields(Refusal)))
        if "quarantined_fraction" in found:
            found["quarantined_fraction"] = self.number(
                "refuse.quarantined_fraction", found["quarantined_fraction"], 0, 1
            )
        if "min_kept_rows" in found:
            found["min_kept_rows"] = self.number(
                "refuse.min_kept_rows", found["min_kept_rows"], 1, float("inf"), whole=True
            )
        names = (*(rule.name for rule in rules), SEGMENT)
        fractions = self.mapping("refuse.fractions", found.get("fractions"), names)
        found["fractions"] = {
            name: self.number(f"refuse.fractions.{name}", one, 0, 1) for name, one in fractions.items()
        }
        return Refusal(**found)
