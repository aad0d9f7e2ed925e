"""Strict flags, booleans, one-line errors, the JSON line, and the launcher that keeps exit code 2."""

from __future__ import annotations

import argparse
import json
import os
import pty
import subprocess
import sys
import textwrap

import pytest

from guardrail.core import cli
from guardrail.core.errors import UserError, unknown


def parser() -> cli.Parser:
    out = cli.Parser(prog="stage")
    out.add_argument("--prompt_style", choices=["llama2_base", "gemma"], default="llama2_base")
    out.add_argument("--stack_vector_tf", type=cli.boolean, default=False)
    return out


@pytest.mark.parametrize("text,value", [("True", True), ("1", True), ("true", True), ("False", False), ("0", False)])
def test_boolean_accepts_the_documented_spellings(text, value):
    assert parser().parse_args(["--stack_vector_tf", text]).stack_vector_tf is value


@pytest.mark.parametrize("text", ["yes", "TRUE", "", "None", "2"])
def test_boolean_refuses_everything_else(text):
    with pytest.raises((argparse.ArgumentTypeError, UserError)):
        cli.boolean(text)


def test_unknown_flag_names_the_near_match():
    with pytest.raises(UserError, match=r"unknown flag '--promt_style'.*'--prompt_style'"):
        parser().parse_args(["--promt_style=gemma"])


def test_abbreviations_are_refused():
    with pytest.raises(UserError, match="unknown flag '--prompt'"):
        parser().parse_args(["--prompt", "gemma"])


def test_misspelt_value_names_the_near_match():
    with pytest.raises(UserError, match=r"'lama2_base'; did you mean 'llama2_base'\?"):
        parser().parse_args(["--prompt_style", "lama2_base"])


def test_unknown_without_candidates_says_none():
    assert str(unknown("split", "x", [])) == "unknown split 'x'; available: none"


SCRIPT = textwrap.dedent(
    """
    import sys
    from guardrail.core import cli
    from guardrail.core.errors import UserError
    def main():
        if "bad" in sys.argv:
            raise UserError("no such\\nfile: x")
        cli.log("working")
        return {"n": 3}
    cli.run(main)
    """
)


def run_script(tmp_path, *arguments: str, launcher: bool = False, env=None):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), *arguments]
    if launcher:
        wrapper = tmp_path / "noisy_launcher.py"
        wrapper.write_text(
            "import subprocess, sys\n"
            "code = subprocess.run(sys.argv[1:]).returncode\n"
            "if code: print('Traceback\\n  pages of it', file=sys.stderr); sys.exit(1)\n"
        )
        command = [sys.executable, "-m", "guardrail.core.launch", sys.executable, str(wrapper), *command]
    return subprocess.run(command, capture_output=True, text=True, env=env)


def test_result_is_the_last_stdout_line(tmp_path):
    done = run_script(tmp_path)
    assert done.returncode == 0
    assert json.loads(done.stdout.splitlines()[-1]) == {"n": 3}
    assert "working" in done.stderr


def test_a_terminal_sees_the_beginning_of_a_long_list_and_a_pipe_all_of_it(tmp_path):
    """The plan of a whole study names a thousand jobs: two hundred thousand characters on a screen."""
    result = "{'run': {'jobs': [str(i) for i in range(999)]}, 'few': [1, 2]}"
    script = tmp_path / "long.py"
    script.write_text(f"from guardrail.core.cli import run; run(lambda: {result})")
    piped = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True).stdout
    assert len(json.loads(piped)["run"]["jobs"]) == 999
    screen, terminal = pty.openpty()
    subprocess.run([sys.executable, str(script)], stdout=terminal, check=True)
    os.close(terminal)
    seen = os.read(screen, 100_000).decode()
    os.close(screen)
    assert json.loads(seen.splitlines()[-1]) == {"run": {"jobs": ["0", "1", "... 999 in all"]}, "few": [1, 2]}


def test_user_error_is_one_line_and_exit_code_2(tmp_path):
    done = run_script(tmp_path, "bad")
    assert done.returncode == 2
    assert done.stderr == "error: no such file: x\n"
    assert done.stdout == ""


def test_launcher_drops_the_noise_of_a_user_error(tmp_path):
    done = run_script(tmp_path, "bad", launcher=True)
    assert done.returncode == 2
    assert done.stderr == "error: no such file: x\n"


def test_launcher_passes_success_through(tmp_path):
    done = run_script(tmp_path, launcher=True)
    assert done.returncode == 0
    assert json.loads(done.stdout.splitlines()[-1]) == {"n": 3}


def test_launcher_passes_other_failures_through(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "guardrail.core.launch", sys.executable, "-c", "raise SystemExit(7)"],
        capture_output=True,
    )
    assert done.returncode == 7


def test_importing_the_library_does_not_import_torch():
    modules = "guardrail.data.rows, guardrail.models.loading, guardrail.core.cli"
    code = f"import {modules}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
