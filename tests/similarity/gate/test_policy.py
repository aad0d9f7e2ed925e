"""Policies: the shipped ones are read, and what is misspelt or out of range is refused with its place."""

from __future__ import annotations

import pytest
import yaml
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.similarity.gate.policy import load_policy

RULES = {"format": {}}


def written(folder, value):
    path = folder / "policy.yaml"
    path.write_text(value if isinstance(value, str) else yaml.safe_dump(value))
    return path


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "configs" / "policies").glob("*.yaml")), ids=lambda path: path.name
)
def test_shipped_policies_are_read_and_say_what_they_are_for(path):
    policy = load_policy(path)
    assert policy.description and policy.rules
    assert policy.as_dict()["rules"].keys() == {rule.name for rule in policy.rules}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("rules: [", "not valid YAML"),
        ("- 1", "the policy is '\\[1\\]'; expected names"),
        ({}, "no rules"),
        ({"rule": RULES}, "unknown key in the policy: 'rule'; did you mean 'rules'"),
        ({"rules": {"harmful": {"scorer": "moderation"}}}, "rules.harmful has no limit"),
        ({"rules": {"harmful": {"above": 1}}}, "rules.harmful names no scorer"),
        ({"rules": {"harmful": {"scorer": "modration", "above": 1}}}, "did you mean 'moderation'"),
        ({"rules": {"harmful": {"scorer": "moderation", "above": 0.5}}}, "scorer moderation needs moderation_model"),
        ({"rules": {"length": {"above": "much"}}}, "rules.length.above is 'much'; expected a number"),
        ({"rules": {"length": {"above_percentile": 99}}}, "length has a percentile, and there are no references"),
        ({"rules": {"length": {"above_percentile": 101}}, "references": {"a": "b"}}, "expected a number from 0 to 100"),
        ({"rules": {"format": {"action": "delete"}}}, "rules.format.action"),
        ({"rules": {"format": {"above": 1}}}, "unknown key in rules.format"),
        ({"rules": {"near_duplicate": {"jaccard": 0.2}}}, "expected a number from 0.5 to 1"),
        ({"rules": {"harmful_segment": {}}}, "write a block segments"),
        ({"rules": RULES, "segments": {}}, "segments needs one limit"),
        ({"rules": RULES, "segments": {"scorer": "length", "above": 1, "instead_of": ["lenght"]}}, "instead_of"),
        ({"rules": RULES, "models": {"targe": "x"}}, "did you mean 'target'"),
        ({"rules": RULES, "scoring": {"max_set_row": 3}}, "did you mean 'max_set_rows'"),
        ({"rules": RULES, "refuse": {"fractions": {"harmful": 0.1}}}, "unknown key in refuse.fractions"),
        ({"rules": RULES, "refuse": {"min_kept_rows": True}}, "expected a whole number"),
        ({"rules": RULES, "references": {"a": 3}}, "references.a is '3'; expected a text"),
    ],
    ids=range(22),
)
def test_what_is_wrong_is_named(tmp_path, value, message):
    with pytest.raises(UserError, match=message) as found:
        load_policy(written(tmp_path, value))
    assert "\n" not in str(found.value) and "policy.yaml" in str(found.value)
