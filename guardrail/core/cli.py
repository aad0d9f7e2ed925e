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
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from guardrail.core.errors import UserError, unknown

ERROR_FILE_VARIABLE = "GUARDRAIL_ERROR_FILE"
USER_ERROR_EXIT_CODE = 2


def boolean(text: str) -> bool:
    """``True/False/true/false/1/0`` and nothing else (``type=bool`` reads "False" as true)."""
    values = {"True": True, "true": True, "1": True, "False": False, "false": False, "0": False}
    if text not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is not a boolean; use True or False")
    return values[text]


def positive_int(text: str) -> int:
    """An integer of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


class Parser(argparse.ArgumentParser):
    """``argparse`` without abbreviations, raising ``UserError`` with the near match instead of printing usage."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(*args, **options)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        known, rest = self.parse_known_args(args, namespace)
        if rest:
            flags = sorted(flag for action in self._actions for flag in action.option_strings if flag.startswith("--"))
            stray = next((token for token in rest if token.startswith("-")), rest[0])
            if stray.startswith("-"):
                raise unknown("flag", stray.split("=")[0], flags)
            raise UserError(f"unexpected argument {stray!r}; see --help")
        return known

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = action.option_strings[0] if action.option_strings else action.dest
            raise unknown(f"value for {name}:", value, action.choices)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


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

    ``exit_code`` maps a result to the exit code, for stages that can finish and still report failures.
    """
    try:
        result = main()
    except UserError as error:
        sys.exit(report_user_error(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    if result is not None and int(os.environ.get("RANK", "0")) == 0:
        sys.stdout.flush()
        print(json.dumps(result, ensure_ascii=False, default=str), flush=True)
    sys.exit(exit_code(result) if result is not None else 0)


def log(*parts: object) -> None:
    """One line on stderr, from rank 0."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(*parts, file=sys.stderr, flush=True)
