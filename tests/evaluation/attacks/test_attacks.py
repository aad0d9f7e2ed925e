"""Attacks: names, options, `none` changes nothing, and what an attack must keep is checked."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.core.options import option
from guardrail.evaluation.attacks import ATTACKS, Attack, attacked_rows, make_attack
from guardrail.generation.interface import SamplingOptions

ROWS = [{"id": str(i), "messages": [{"role": "user", "content": f"Where is boat {i}?"}]} for i in range(3)]


@dataclass(frozen=True, kw_only=True)
class Shorten(Attack):
    name: ClassVar[str] = "shorten"
    keep: int = option(1, "rows")

    def rows(self, rows):
        return rows[: self.keep]


def test_none_changes_nothing_and_is_in_no_key():
    attack, options = make_attack("none"), SamplingOptions()
    assert attacked_rows(attack, ROWS) is ROWS and attack.decoding(options) is options
    assert attack.identity() == {} and attack.changes_weights is False
    with attack.weights(object()):
        pass


def test_names_and_options_are_checked():
    with pytest.raises(UserError, match="unknown attack 'non'; did you mean 'none'"):
        make_attack("non")
    with pytest.raises(UserError, match="unknown flag '--keep'"):
        make_attack("none", ["keep=2"])
    with pytest.raises(UserError, match="expected name=value"):
        make_attack("none", ["keep"])


def test_an_attack_that_loses_a_row_is_caught_and_its_options_are_its_identity():
    ATTACKS.add("shorten", f"{__name__}:Shorten")
    try:
        attack = make_attack("shorten", ["keep=2"])
    finally:
        ATTACKS.remove("shorten")
    assert attack.identity() == {"attack": {"name": "shorten", "version": 1, "keep": 2}}
    with pytest.raises(AssertionError, match="lost or added"):
        attacked_rows(attack, ROWS)


def test_looking_an_attack_up_needs_no_torch():
    look_up = "from guardrail.evaluation import attacks; attacks.make_attack('none')"
    code = f"import sys; {look_up}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, timeout=60).returncode == 0
