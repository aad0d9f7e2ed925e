"""The hooks of pre-commit run what scripts/lint.sh runs, seen by tools that write down how they were called."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from toys import REPOSITORY

CONFIG = REPOSITORY / ".pre-commit-config.yaml"
TOOLS = ("ruff", "mypy", "shellcheck", "yamllint", "snakefmt")
KINDS = {  # a changed file -> the hooks that must run
    "guardrail/core/cli.py": {"format", "ruff", "mypy"},
    "tests/toys.py": {"format", "ruff"},
    "notebooks/study.ipynb": {"format", "ruff"},
    "pyproject.toml": {"format", "ruff", "mypy"},
    "scripts/study.sh": {"shellcheck"},
    "scripts/slurm/sft.sbatch": {"shellcheck"},
    ".ci/run": {"shellcheck"},
    "configs/studies/quickstart.yaml": {"yamllint"},
    ".yamllint": {"yamllint"},
    "workflow/Snakefile": {"snakefmt"},
    "README.md": set(),
}


def hooks() -> list[dict[str, Any]]:
    (repository,) = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["repos"]
    assert repository["repo"] == "local"
    return repository["hooks"]


@pytest.fixture
def calls(tmp_path: Path):
    """``calls(command)`` -> how it called the tools, and its exit code; a tool named in ``failing`` fails."""
    for tool in TOOLS:
        file = tmp_path / "bin" / tool
        file.parent.mkdir(exist_ok=True)
        file.write_text(f'#!/bin/sh\necho "{tool} $*" >>"{tmp_path}/calls"\n[ "$FAILING" != {tool} ]\n')
        file.chmod(0o755)
    variables = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "VIRTUAL_ENV": str(tmp_path)}

    def run(command: list[str], failing: str = "", cwd: Path = REPOSITORY) -> tuple[list[str], int]:
        (tmp_path / "calls").write_text("")
        done = subprocess.run(
            command, cwd=cwd, env={**variables, "FAILING": failing}, capture_output=True, text=True, timeout=60
        )
        return (tmp_path / "calls").read_text().splitlines(), done.returncode

    return run


def test_hooks_run_what_lint_runs(calls) -> None:
    expected, code = calls(["bash", "scripts/lint.sh"])
    assert code == 0 and len(expected) == 6
    by_hooks = [call for hook in hooks() for call in calls(shlex.split(hook["entry"]))[0]]
    assert by_hooks == expected
    assert "shellcheck -x -P SCRIPTDIR scripts/admit.sh" in "\n".join(expected)


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_that_complains_fails_lint_and_its_hooks(calls, tool: str) -> None:
    assert calls(["bash", "scripts/lint.sh"], failing=tool)[1] == 1
    failed = {hook["id"] for hook in hooks() if calls(shlex.split(hook["entry"]), failing=tool)[1] == 1}
    assert failed == ({"format", "ruff"} if tool == "ruff" else {tool})


def test_an_unknown_check_is_refused(calls) -> None:
    assert calls(["bash", "scripts/lint.sh", "pylint"]) == ([], 2)


def test_hooks_need_nothing_but_the_environment() -> None:
    for hook in hooks():
        assert hook["language"] == "system" and hook["pass_filenames"] is False, hook


@pytest.mark.parametrize(("file", "expected"), KINDS.items())
def test_a_changed_file_runs_the_hooks_of_its_kind(file: str, expected: set[str]) -> None:
    assert {hook["id"] for hook in hooks() if re.search(hook["files"], file)} == expected
    assert (REPOSITORY / file).exists(), f"{file} is gone: the hooks' patterns may name what is not there"


def test_pre_commit_runs_them_without_a_network(calls, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("pre_commit")
    monkeypatch.setenv("PRE_COMMIT_HOME", str(tmp_path / "home"))
    pre_commit = [sys.executable, "-m", "pre_commit"]
    done = subprocess.run([*pre_commit, "validate-config", str(CONFIG)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout

    copy = tmp_path / "copy"
    for file in ("scripts/lint.sh", "scripts/help.sh", "workflow/Snakefile", ".ci/run", ".yamllint"):
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / file, copy / file)
    shutil.copy(CONFIG, copy)
    for command in (["git", "init", "-q"], ["git", "add", "."]):
        subprocess.run(command, cwd=copy, check=True, timeout=60)
    done_calls, code = calls([*pre_commit, "run", "--all-files"], cwd=copy)
    assert code == 0
    assert [call.split()[0] for call in done_calls] == ["shellcheck", "yamllint", "snakefmt"]  # no Python file is there
    assert calls([*pre_commit, "run", "--all-files"], failing="yamllint", cwd=copy)[1] == 1
