"""Any text as the value of any flag of any entry point: a value that makes sense, or one line; never a traceback.

The parsers are those that ``main`` makes (tests/stages.py); nothing runs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stages import STAGES, parser_of

from guardrail.core import cli
from guardrail.core.errors import UserError

NASTY = (
    *("", " ", "\t", "nan", "inf", "-inf", "1e999", "9" * 30, "9" * 5000, "-1", "0", "1_000", "٣", "²", "0x10", "1e3"),
    *(
        "None",
        "null",
        "[]",
        "{}",
        "--",
        "-",
        "a\nb",
        "é",
        "\udcff",
        "%s",
        "{0}",
        "$HOME",
        "True ",
        "yes",
        "," * 9,
        "=" * 9,
    ),
)
TEXTS = st.sampled_from(NASTY) | st.text(max_size=40) | st.integers().map(str) | st.floats().map(str)


def arguments_of(stage: str) -> list[argparse.Action]:
    return [action for action in parser_of(stage)._actions if action.option_strings and action.nargs != 0]


def read(action: argparse.Action, text: str, stage: str) -> object:
    """The value, or the message of the refusal."""
    parser = parser_of(stage)
    try:
        values = parser._get_values(action, [text])
    except argparse.ArgumentError as error:
        try:
            parser.error(str(error))
        except UserError as refusal:
            return refusal
    except UserError as refusal:
        return refusal
    return values


@pytest.mark.parametrize("stage", STAGES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_value_makes_sense_or_is_refused_in_one_line(stage, data):
    action = data.draw(st.sampled_from(arguments_of(stage)))
    text = data.draw(TEXTS)
    value = read(action, text, stage)
    if isinstance(value, UserError):
        message = f"error: {value}"
        assert len(message.splitlines()) == 1 and len(message) < 2000
        message.encode("utf-8")
    elif isinstance(value, float):
        assert math.isfinite(value)
    elif isinstance(value, int):
        assert -(2**63) <= value < 2**63 and text.isascii()
    elif isinstance(value, str) and action.type in (None, str):
        assert value.strip() or value == action.default


@given(st.integers(min_value=-(2**63), max_value=2**63 - 1))
def test_every_whole_number_of_64_bits_is_read(value):
    assert cli.whole_number(str(value)) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_number_is_read(value):
    assert cli.number(repr(value)) == value


@pytest.mark.parametrize("text", [str(2**63), "-" + "9" * 5000, "1.0", "1_0", "٣", "", "+"])
def test_other_whole_numbers_are_refused(text):
    with pytest.raises((argparse.ArgumentTypeError, ValueError)):
        cli.whole_number(text)


@pytest.mark.parametrize("text", ["nan", "-inf", "1e999", "1_0.0", "", "x"])
def test_other_numbers_are_refused(text):
    with pytest.raises((argparse.ArgumentTypeError, ValueError)):
        cli.number(text)


def test_an_empty_path_is_refused():
    parser = cli.Parser()
    parser.add_argument("--output_dir")
    parser.add_argument("--prefix", default="")
    with pytest.raises(UserError, match=r"--output_dir: the value is empty; give one, or leave the argument out"):
        parser.parse_args(["--output_dir="])
    assert parser.parse_args(["--prefix="]).prefix == ""


def test_bytes_that_are_no_text_are_refused():
    code = (
        "from guardrail.core.cli import Parser, run\n"
        "def main():\n    p = Parser(); p.add_argument('--name'); return vars(p.parse_args())\n"
        "run(main)"
    )
    done = subprocess.run([sys.executable, "-c", code, b"--name=\xff"], capture_output=True, timeout=60)
    assert done.returncode == 2
    assert b"not valid UTF-8" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_reader_that_leaves_is_no_traceback():
    code = "from guardrail.core.cli import run\ndef main():\n    print('x' * 200000); return {'n': 1}\nrun(main)"
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run([sys.executable, "-c", code], stdout=write_end, stderr=subprocess.PIPE, timeout=60)
    finally:
        os.close(write_end)
    assert done.returncode == 141 and done.stderr == b""


def test_a_broken_pipe_of_another_kind_is_not_hidden():
    code = "from guardrail.core.cli import run\ndef main():\n    raise BrokenPipeError('a worker')\nrun(main)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "a worker" in done.stderr and not json_line(done.stdout)


def json_line(text: str) -> bool:
    try:
        return bool(json.loads(text.splitlines()[-1]))
    except (ValueError, IndexError):
        return False
