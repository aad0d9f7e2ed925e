"""Judging: completions in, one judgement per (id, sample) out, and a summary with intervals.

A judge is one file here that registers itself below with one line (docs/extending.md shows a whole one):

    key_word     first-sentence refusals
    beaver_dam   14 probabilities of a moderation model (`moderation`: text, windows, batches)
    guard        a chat-model guard ("safe" / "unsafe S1"), local or behind a server
    openai       `rubric`: a 1-5 rating by a chat model behind an OpenAI-compatible server
    panel        several judges: their majority, their agreement, their disagreements

and a scorer of training rows (`row_scores`, see `guardrail.similarity.scorers`). What they share: `judge` (the
interface, options, servers), `answers` (files that hold completions), `coherence` (empty, looping, gibberish),
`outcomes` (refusal | harmful | safe | incoherent | empty, and the summary), `stage` (one file in, one judgement file
out; reused when unchanged, failed rows judged again).

``python -m guardrail.evaluation.judges results.json --judge beaver_dam`` runs any of them. Names, options and file
names are known without torch.

    beavertails   the paper's two steps of moderation, with its flags: ``beavertails_moderation/formatter.py`` ...
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from guardrail.core.options import add_options, option_names, options_of
from guardrail.core.registry import Registry

if TYPE_CHECKING:
    from guardrail.evaluation.judges.judge import Judge

JUDGES = Registry("judge")
JUDGES.add("key_word", "guardrail.evaluation.judges.key_word:KeyWord")
JUDGES.add("beaver_dam", "guardrail.evaluation.judges.beaver_dam:BeaverDam")
JUDGES.add("guard", "guardrail.evaluation.judges.guard:Guard")
JUDGES.add("openai", "guardrail.evaluation.judges.rubric:Rubric")
JUDGES.add("panel", "guardrail.evaluation.judges.panel:Panel", of_judgements=True)


def single_judges() -> tuple[str, ...]:
    """The judges that read answers: all but those that read other judges' judgements."""
    return tuple(name for name in JUDGES if not JUDGES.facts(name).get("of_judgements"))


def options(name: str) -> type[Judge]:
    """The frozen dataclass that is the judge ``name``; its fields are its options. ``UserError``: an unknown name."""
    kind: type[Judge] = JUDGES.load(name)
    return kind


def file_name(name: str) -> str:
    """The name of the judge's judgement file: ``key-word.json``, ``beaver-dam.json``, ..."""
    return options(name).file_name


def add_judge_flags(parser: Any) -> None:
    """The options of every judge as flags, shared ones once: ``eval_safety.py``, ``-m guardrail.evaluation.judges``.

    Raises ``ValueError`` when two judges have an option of the same name that is not a shared one.
    """
    group = parser.add_argument_group("judges")
    homes: dict[str, Any] = {}
    for name in JUDGES:
        kind = options(name)
        for item in options_of(kind):
            if homes.get(item.name, item) is not item:
                raise ValueError(f"judge {name} has an option {item.name} of its own, but another judge has it already")
        add_options(group, kind, leave_out=homes)
        homes |= {item.name: item for item in options_of(kind)}


def make_judge(name: str, values: Mapping[str, Any] | None = None) -> Judge:
    """The judge ``name`` with the options in ``values`` (others are left alone); checked.

    Raises ``UserError`` for an unknown judge or options that cannot be.
    """
    return options(name).make(values or {})


def take_judge(name: str, arguments: dict[str, Any]) -> Judge | None:
    """Take every judge's flags out of parsed ``arguments`` and make the judge ``name``; None for ``none``.

    The options of the other judges are checked too, so that no wrong value is passed over in silence.
    """
    names = {option for judge in JUDGES for option in option_names(options(judge))}
    values = {name: arguments.pop(name) for name in sorted(names) if name in arguments}
    if name == "none":
        return None
    for member in single_judges():
        make_judge(member, values)
    return make_judge(name, values)
