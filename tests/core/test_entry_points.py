"""Every entry point answers `--help` without torch and refuses an unknown flag in one line (E1).

Entry points are found, not listed: a script that is added is checked.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from toys import REPOSITORY

FOLDERS = (".", "similarity", "datasets", "datasets/sandbox", "beavertails_moderation", "benchmarks")
SCRIPTS = [
    file.relative_to(REPOSITORY)
    for folder in FOLDERS
    for file in sorted((REPOSITORY / folder).glob("*.py"))
    if '__name__ == "__main__"' in file.read_text(encoding="utf-8")
]
MODULES = [  # guardrail/core/cli.py only shows the idiom in its docstring
    file.relative_to(REPOSITORY)
    for file in sorted((REPOSITORY / "guardrail").rglob("*.py"))
    if file.name != "cli.py"
    and '\nif __name__ == "__main__"' in (text := file.read_text(encoding="utf-8"))
    and "Parser(" in text
]
HEAVY = {"torch", "transformers", "deepspeed", "sklearn", "matplotlib", "vllm", "datasets", "scipy"}
RUN = """
import runpy, sys
kind, target = sys.argv[1:3]
sys.argv = [target, *sys.argv[3:]]
try:
    runpy.run_path(target, run_name="__main__") if kind == "path" else runpy.run_module(target, run_name="__main__")
except SystemExit as stop:
    heavy = sorted(HEAVY & set(sys.modules))
    if heavy and not stop.code:
        print("imported", heavy, file=sys.stderr)
        sys.exit(99)
    raise
"""


def call(file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kind, target = "path", str(file)
    if file.parts[0] == "guardrail":
        kind, target = "module", ".".join(file.with_suffix("").parts).removesuffix(".__main__")
    code = RUN.replace("HEAVY &", f"{HEAVY!r} &")
    command = [sys.executable, "-c", code, kind, target, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)


def test_the_paper_s_entry_points_are_among_them():
    names = {str(path) for path in SCRIPTS}
    assert {
        "similarity/get_representation.py",
        "similarity/get_high_similarity_group.py",
        "similarity/get_top_similarity_dataset_reps_general.py",
        "eval_safety.py",
        "eval_utility.py",
        "__main__.py",
        "beavertails_moderation/formatter.py",
        "beavertails_moderation/evaluate.py",
        "datasets/prepare.py",
        "datasets/mix.py",
    } <= names


@pytest.mark.parametrize("file", [*SCRIPTS, *MODULES], ids=str)
def test_help_needs_no_heavy_import(file):
    done = call(file, "--help")
    assert done.returncode == 0, done.stderr
    assert "--help" in done.stdout


@pytest.mark.parametrize("file", [*SCRIPTS, *MODULES], ids=str)
def test_an_unknown_flag_is_one_line_and_exit_code_2(file):
    done = call(file, "--no_such_flag", "1")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


def test_no_package_hides_the_datasets_library():
    assert not (REPOSITORY / "datasets" / "__init__.py").exists()
    done = subprocess.run([sys.executable, "-c", "import datasets; print(datasets.__version__)"], cwd=REPOSITORY)
    assert done.returncode == 0


@pytest.mark.parametrize("script", sorted((REPOSITORY / "scripts").rglob("*.sh")), ids=lambda p: p.name)
def test_bash_is_strict_and_parses(script):
    assert "set -euo pipefail" in script.read_text(encoding="utf-8")
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
