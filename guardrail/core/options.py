"""One home per option: a field of a stage's frozen dataclass carries type, default, help, and whether it decides.

    @dataclass(frozen=True, kw_only=True)
    class MixConfig:
        instruct: str = option(help="instruction rows")                      # no default: required
        size: int | None = option(None, "safety rows", parse=parse_size)
        sim: str = option("high", "which rows are taken", choices=SIMILARITIES)
        out: str = option(help="data-set folder", decides=False)

    parser = Parser(description=...)
    add_options(parser, MixConfig)
    config = read_options(MixConfig, parser.parse_args(argv))
    decisive(config)                    # {"instruct": ..., "size": ..., "sim": ...}: what belongs in a key

The command line, the study schema, the documentation and the key of a result are derived from the fields. Groups of
options that several stages share are base classes. Imports nothing heavy.
"""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING
from typing import Any, TypeVar

from guardrail.core.cli import boolean

C = TypeVar("C")
Names = Sequence[str] | Callable[[], Sequence[str]]


def option(
    default: Any = MISSING,
    help: str = "",
    *,
    parse: Callable[[str], Any] | None = None,
    choices: Names | None = None,
    decides: bool = True,
    flags: Sequence[str] = (),
    positional: bool = False,
    repeat: bool = False,
    shown_default: Any = MISSING,
    only: bool = False,
    metavar: str | None = None,
    later: bool = False,
) -> Any:
    """A dataclass field that is an option.

    Args:
        default: none given: the option is required.
        help: one line for ``--help`` and the documentation; empty: the flag is shown without a text.
        parse: text -> value; default: by the field's type (``bool``, ``int``, ``float``, ``str``, ``X | None`` of
            these, ``tuple[str, ...]`` from a comma-separated list).
        choices: the values that are accepted, or a function that gives them.
        decides: False for what cannot change a result: paths of outputs, devices, batch sizes, logging.
        flags: further spellings of the flag, after ``--<name>``.
        positional: an argument without a flag.
        repeat: the flag may be given several times; the field is a tuple.
        shown_default: what ``--help`` and the parser use as default, where it is not ``default`` itself.
        only: the default is the only supported value (`refuse_unsupported`).
        later: added when there were results already: in no key while it has its default, so that these stay done.
    """
    metadata = {
        "help": help,
        "parse": parse,
        "choices": choices,
        "decides": decides,
        "flags": tuple(flags),
        "positional": positional,
        "repeat": repeat,
        "shown_default": shown_default,
        "only": only,
        "metavar": metavar,
        "later": later,
    }
    if default is not MISSING and isinstance(default, list | dict | set):
        raise TypeError("a default must be immutable; give a tuple")
    return dataclasses.field(default=default, metadata=metadata, kw_only=True)


def options_of(config: Any) -> list[dataclasses.Field[Any]]:
    """The fields of a dataclass (or an instance) that are options, in their order."""
    return [item for item in dataclasses.fields(config) if "decides" in item.metadata]


def option_names(config: Any) -> tuple[str, ...]:
    """The names of the options of a dataclass."""
    return tuple(item.name for item in options_of(config))


def decisive(config: Any) -> dict[str, Any]:
    """The options that decide a result, by name; tuples as lists. What belongs into a key."""
    found = [(item, getattr(config, item.name)) for item in options_of(config) if item.metadata["decides"]]
    values = {item.name: value for item, value in found if not (item.metadata["later"] and value == item.default)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def add_options(
    parser: Any,
    config: type,
    *,
    leave_out: Iterable[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """One argument of ``parser`` (or of an argument group) per option of ``config``.

    ``defaults`` replaces the defaults of single options (a script that takes one from the environment, say).
    """
    hints = typing.get_type_hints(config)
    for item in options_of(config):
        if item.name not in set(leave_out):
            names, settings = argument(item, hints[item.name], defaults or {})
            parser.add_argument(*names, **settings)


def argument(item: dataclasses.Field[Any], kind: Any, defaults: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Names and settings of ``argparse``'s ``add_argument`` for one option."""
    facts = item.metadata
    settings: dict[str, Any] = {"help": facts["help"] or None}
    names = [item.name] if facts["positional"] else [f"--{item.name}", *facts["flags"]]
    choices = facts["choices"]
    if choices is not None:
        settings["choices"] = list(choices() if callable(choices) else choices)
    parse = facts["parse"] or parser_of(kind)
    if parse is not str:
        settings["type"] = parse
    if facts["repeat"]:
        settings["action"] = "append"
    if facts["metavar"]:
        settings["metavar"] = facts["metavar"]
    default: Any = defaults.get(
        item.name, item.default if facts["shown_default"] is MISSING else facts["shown_default"]
    )
    if facts["repeat"] and isinstance(default, tuple):
        default = list(default)  # argparse appends to a copy of it
    if not facts["positional"]:
        if default is MISSING:
            settings["required"] = True
        else:
            settings["default"] = default
    elif default is not MISSING:
        settings |= {"default": default, "nargs": "?"}
    if len(names) > 1:
        settings["dest"] = item.name
    return names, settings


def parser_of(kind: Any) -> Callable[[str], Any]:
    """The parser of a type annotation: see `option`."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return parser_of(next(part for part in typing.get_args(kind) if part is not type(None)))
    if typing.get_origin(kind) is tuple:
        return names_list
    if kind is bool:
        return boolean
    if kind in (str, int, float):
        return typing.cast(Callable[[str], Any], kind)
    raise TypeError(f"no parser for {kind!r}; give option(parse=...)")


def names_list(text: str) -> tuple[str, ...]:
    """``a,b`` as ``("a", "b")``; blanks around names and empty names are dropped."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def read_options(config: type[C], args: argparse.Namespace | Mapping[str, Any], **values: Any) -> C:
    """An instance of ``config`` from parsed arguments; ``values`` replaces or adds single fields.

    Arguments that are no field of ``config`` are left alone: a parser may serve several dataclasses.
    """
    given = vars(args) if isinstance(args, argparse.Namespace) else args
    names = {item.name for item in dataclasses.fields(typing.cast(Any, config))}
    found = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items() if name in names}
    return config(**{**found, **values})


def given_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> set[str]:
    """Names of the arguments whose value is not the parser's default."""
    defaults = {action.dest: action.default for action in parser._actions}
    parsers = {action.dest: action.type for action in parser._actions}
    for name, default in defaults.items():
        parse = parsers[name]
        if isinstance(default, str) and callable(parse):
            defaults[name] = parse(default)
    return {name for name, value in vars(args).items() if value != defaults.get(name)}
