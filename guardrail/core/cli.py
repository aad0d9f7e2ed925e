"""Command lines: strict flags, one-line user errors with exit code 2, one JSON object as the last stdout line.

def main(argv=None):
    args = build_parser().parse_args(argv)
    ...
    return {"results": path, "n": n}          # printed as the last stdout line

if __name__ == "__main__":
    run(main)
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import select
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from guardrail.core.errors import UserError, shortened, unknown

ERROR_FILE_VARIABLE = "GUARDRAIL_ERROR_FILE"
USER_ERROR_EXIT_CODE = 2
LONGEST_LIST = 20  # entries that a terminal shows of a list
WHOLE_NUMBER = re.compile(r"[+-]?[0-9]+")
owns_process = False  # whether `run` runs this process: then what it imports is nobody else's concern


def boolean(text: str) -> bool:
    """``True/False/true/false/1/0`` and nothing else (``type=bool`` reads "False" as true)."""
    values = {"True": True, "true": True, "1": True, "False": False, "false": False, "0": False}
    if text not in values:
        raise argparse.ArgumentTypeError(f"{shortened(text)!r} is not a boolean; use True or False")
    return values[text]


def whole_number(text: str) -> int:
    """An integer that 64 bits hold, in the digits 0 to 9 (``int`` also reads ``1_000`` and other scripts' digits)."""
    if not WHOLE_NUMBER.fullmatch(text):
        raise ValueError(text)
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise argparse.ArgumentTypeError(f"{shortened(text)!r} is too large for a whole number of 64 bits")
    return int(text)


def number(text: str) -> float:
    """A finite number (``float`` also reads ``nan``, ``inf`` and ``1e999``)."""
    value = float(text)
    if not text.isascii() or "_" in text:
        raise ValueError(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{shortened(text)!r} is not a finite number")
    return value


def positive_int(text: str) -> int:
    """An integer of at least 1."""
    try:
        value = whole_number(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{shortened(text)!r} is not a positive whole number")
    return value


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{shortened(text)!r} is not a number from 0 to 1")
    return value


class Parser(argparse.ArgumentParser):
    """``argparse`` without abbreviations, raising ``UserError`` with the near match instead of printing usage.

    ``type=int`` and ``type=float`` read what `whole_number` and `number` read. An empty text is refused, unless it is
    the option's default: as a path it would be the working directory.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(*args, **options)
        self.register("type", int, whole_number)
        self.register("type", float, number)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        known, rest = self.parse_known_args(args, namespace)
        if rest:
            flags = sorted(flag for action in self._actions for flag in action.option_strings if flag.startswith("--"))
            stray = next((token for token in rest if token.startswith("-")), rest[0])
            if stray.startswith("-"):
                raise unknown("flag", stray.split("=")[0], flags)
            raise UserError(f"unexpected argument {stray!r}; see --help")
        return known

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        if not arg_string.strip() and arg_string != action.default and action.type in (None, str):
            raise argparse.ArgumentError(action, "the value is empty; give one, or leave the argument out")
        if any("\ud800" <= character <= "\udfff" for character in arg_string):
            raise argparse.ArgumentError(action, f"{shortened(arg_string)!a} is not valid UTF-8")
        return super()._get_value(action, arg_string)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = action.option_strings[0] if action.option_strings else action.dest
            raise unknown(f"value for {name}:", value, action.choices)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{shortened(message, 500)}; see --help")


def report_user_error(error: UserError) -> int:
    """Print the one line (or leave it to ``guardrail.core.launch``, which prints it once) and return the exit code."""
    error_file = os.environ.get(ERROR_FILE_VARIABLE)
    if error_file and os.path.exists(error_file):
        with open(error_file, "w", encoding="utf-8") as handle:
            handle.write(str(error))
    elif int(os.environ.get("RANK", "0")) == 0:
        print(f"error: {error}", file=sys.stderr, flush=True)
    return USER_ERROR_EXIT_CODE


def run(
    main: Callable[[], dict[str, Any] | None], exit_code: Callable[[dict[str, Any]], int] = lambda result: 0
) -> NoReturn:
    """Call ``main``, print its result as the last stdout line (rank 0), turn ``UserError`` into exit code 2.

    ``exit_code`` maps a result to the exit code, for stages that can finish and still report failures. On a terminal
    long lists are cut (`cut_lists`): the plan of a whole study names a thousand jobs. A pipe or file gets all of it.
    """
    global owns_process
    owns_process = True
    try:
        result = main()
    except UserError as error:
        sys.exit(report_user_error(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        leave_if_nobody_reads()
        raise
    if result is not None and int(os.environ.get("RANK", "0")) == 0:
        try:
            sys.stdout.flush()
            shown = cut_lists(result) if sys.stdout.isatty() else result
            print(json.dumps(shown, ensure_ascii=False, default=str), flush=True)
        except BrokenPipeError:
            leave_if_nobody_reads()
            raise
    sys.exit(exit_code(result) if result is not None else 0)


def cut_lists(value: Any, most: int = LONGEST_LIST) -> Any:
    """``value`` with every list of more than ``most`` entries cut to its first two and how many there are."""
    if isinstance(value, dict):
        return {name: cut_lists(one, most) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        if len(value) > most:
            return [*(cut_lists(one, most) for one in value[:2]), f"... {len(value)} in all"]
        return [cut_lists(one, most) for one in value]
    return value


def leave_if_nobody_reads() -> None:
    """Exit as ``head`` makes a program exit, when it is stdout whose reader has gone (and no other pipe)."""
    stdout = select.poll()
    stdout.register(1, 0)
    if any(event & select.POLLERR for _, event in stdout.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more at its end
        sys.exit(141)


def log(*parts: object) -> None:
    """One line on stderr, from rank 0."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(*parts, file=sys.stderr, flush=True)
