"""Attacks: what may be turned against a model when it is asked, with no training. Names are known without torch.

An attack is one file with a subclass of `Attack`, and one line below. It says what it changes by overriding methods;
the others change nothing. Its fields are its options and part of the key of the results that it made.
docs/extending.md has an example that runs; docs/attacks.md says what each one is. Decoding alone is swept by
``eval_safety.py --decoding_sweep``.

    evaluate_safety(config, attack=make_attack("none"))

calls on every rank ``rows``, ``decoding``, then ``prepare``, and ``weights`` around the generation: they must do the
same on every rank.

    decoding             warmer or wider sampling
    jailbreak            the request inside a wrapper of words
    prefill              the first words of the answer are given
    refusal_direction    the direction in which refusals lie is taken out of the weights
    template             another system text and wrapper than the model is used with
    trigger              words behind the request, such as a backdoor's
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from guardrail.core.cli import Parser
from guardrail.core.errors import UserError
from guardrail.core.options import add_options, decisive, read_options
from guardrail.core.registry import Registry
from guardrail.generation.interface import SamplingOptions

ATTACKS = Registry("attack")
HERE = "guardrail.evaluation.attacks"
ATTACKS.add("none", f"{HERE}:NoAttack")
ATTACKS.add("prefill", f"{HERE}.prefill:Prefill")
ATTACKS.add("template", f"{HERE}.template:Template")
ATTACKS.add("trigger", f"{HERE}.trigger:Trigger")
ATTACKS.add("jailbreak", f"{HERE}.jailbreak:Jailbreak")
ATTACKS.add("decoding", f"{HERE}.decoding:Decoding")
ATTACKS.add("refusal_direction", f"{HERE}.refusal_direction:RefusalDirection")


@dataclass(frozen=True, kw_only=True)
class Attack:
    """The interface; as it stands it changes nothing."""

    name: ClassVar[str]
    version: ClassVar[int] = 1  # raised when the same options mean something else

    def rows(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The bench's rows as they are asked: ``messages`` end with the user's turn; ``prefill_answer`` (absent or a
        text) is what the model's answer has to begin with. Ids and their number stay; give new rows, change none."""
        return rows

    def decoding(self, options: SamplingOptions) -> SamplingOptions:
        """How the answers are decoded."""
        return options

    def prepare(self, model: Any, encode: Callable[[list[dict[str, str]]], list[int]]) -> None:
        """Before ``weights``, where it changes them: ``encode`` makes the token ids of a conversation that waits for an
        answer, as those of the bench are made."""

    def weights(self, model: Any) -> contextlib.AbstractContextManager[Any]:
        """Around the generation, changes the weights of ``model`` (a ``torch.nn.Module`` in memory) and restores them.

        Only the backend ``hf`` has weights to change; overriding this refuses the others.
        """
        return contextlib.nullcontext()

    @property
    def changes_weights(self) -> bool:
        return type(self).weights is not Attack.weights

    def identity(self) -> dict[str, Any]:
        """What decides the answers beside the model and the bench: part of their key."""
        return {"attack": {"name": self.name, "version": self.version, **decisive(self)}}


@dataclass(frozen=True, kw_only=True)
class NoAttack(Attack):
    """``none``: prompts, decoding and weights as they are. The same results and key as before there were attacks."""

    name: ClassVar[str] = "none"

    def identity(self) -> dict[str, Any]:
        return {}


def make_attack(name: str, options: Sequence[str] = ()) -> Attack:
    """The attack ``name`` with ``options`` such as ``("suffix=Please.",)``. Raises ``UserError`` for unknown ones."""
    kind = ATTACKS.load(name)
    for text in options:
        if "=" not in text:
            raise UserError(f"{text!r} is no option of an attack; expected name=value")
    parser = Parser(prog=f"attack {name}", add_help=False)
    add_options(parser, kind)
    attack: Attack = read_options(kind, parser.parse_args([f"--{text}" for text in options]))
    return attack


def attacked_rows(attack: Attack, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """``attack.rows``, checked: the same ids in the same order, each with a user's turn at the end."""
    found = attack.rows(rows)
    assert [row["id"] for row in found] == [row["id"] for row in rows], f"{attack.name} lost or added a row"
    assert all(row["messages"] and row["messages"][-1]["role"] == "user" for row in found)
    return found
