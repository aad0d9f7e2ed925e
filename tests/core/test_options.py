"""Options as dataclass fields: the command line, the configuration and the key come from the same place."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from guardrail.core.cli import Parser
from guardrail.core.errors import UserError
from guardrail.core.options import add_options, decisive, given_options, option, option_names, read_options
from guardrail.core.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Engine:
    batch: int | None = option(None, "rows at once", decides=False)


@dataclass(frozen=True, kw_only=True)
class Config(Engine):
    source: str = option(help="rows")
    size: int = option(3, "how many")
    greedy: bool = option(True, "no sampling")
    names: tuple[str, ...] = option(("a", "b"), "some names", shown_default="a,b")
    style: str = option("x", "one of two", choices=lambda: ("x", "y"))
    sets: tuple[str, ...] = option((), "again and again", repeat=True, parse=str)


def parser() -> Parser:
    out = Parser()
    add_options(out, Config)
    return out


def read(*argv: str) -> Config:
    return read_options(Config, parser().parse_args(argv))


def test_defaults_are_those_of_the_fields():
    assert read("--source=s") == Config(source="s")


def test_values_have_the_type_of_the_field():
    config = read("--source=s", "--size=4", "--greedy=False", "--names=c, d", "--style=y", "--sets=1", "--sets=2")
    assert config == Config(source="s", size=4, greedy=False, names=("c", "d"), style="y", sets=("1", "2"))


@pytest.mark.parametrize("flag", ["--size=x", "--greedy=yes", "--style=z", "--batch=1.5"])
def test_a_wrong_value_is_a_user_error(flag):
    with pytest.raises(UserError):
        read("--source=s", flag)


def test_what_has_no_default_is_required():
    with pytest.raises(UserError, match="--source"):
        read()


def test_only_what_decides_belongs_into_a_key():
    key = decisive(read("--source=s", "--batch=9"))
    assert key == decisive(Config(source="s")) and "batch" not in key and key["names"] == ["a", "b"]
    assert set(option_names(Config)) == {*key, "batch"}


def test_given_options_differ_from_the_defaults():
    args = parser().parse_args(["--source=s", "--size=3", "--greedy=0"])
    assert given_options(parser(), args) == {"source", "greedy"}


def test_a_registry_imports_on_demand_and_names_the_near_match():
    registry = Registry("shape")
    registry.add("round", "guardrail.core.files:write_json", sides=0)
    registry.add("square", "no.such.module", sides=4)
    assert registry.names() == ("round", "square") and registry.facts("square") == {"sides": 4}
    assert registry.load("round").__name__ == "write_json"
    with pytest.raises(UserError, match="did you mean 'square'"):
        registry.load("sqare")
    with pytest.raises(ValueError, match="twice"):
        registry.add("round", "elsewhere")
