"""`scripts/install.sh --align-anything`: what it installs from where, when again, and what it refuses.

The real script with a made-up Python and pip. The real packages: `.ci/run` with ALIGN_ANYTHING.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from toys import REPOSITORY

from .test_install_vllm import executable

PYTHON = """
case "$1 $2" in
"-m venv")
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
    echo "VIRTUAL_ENV=$3 PATH=$3/bin:\\$PATH" >"$3/bin/activate"
    ;;
"-m pip") echo "$@" >>"$PIP_LOG" && echo "Collecting torch" && exit "${BROKEN_PIP:-0}" ;;
esac
"""


class Machine:
    """A checkout, a copy of something that looks like align-anything, and a Python 3.11 that only writes down."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.repo, self.source = folder, folder / "repo", folder / "align anything"
        self.environment = self.repo / ".venv-align-anything"
        (self.repo / "scripts").mkdir(parents=True)
        (self.repo / "configs").mkdir()
        (self.repo / "configs" / "template.py").write_text("STYLES = {}\n")
        for file in ("scripts/install.sh", "scripts/help.sh", "requirements-align-anything.txt", "pyproject.toml"):
            shutil.copy(REPOSITORY / file, self.repo / file)
        (self.repo / "requirements.txt").write_text("torch\n")
        executable(self.repo / "scripts" / "install_template.sh", 'echo template >>"$PIP_LOG"')
        executable(folder / "bin" / "python3.11", PYTHON)
        (self.source / "align_anything").mkdir(parents=True)
        (self.source / "pyproject.toml").write_text("[project]\n")
        (self.source / "align_anything" / "sft.py").write_text("pass\n")

    def install(self, *, code: int = 0, **shell: str) -> tuple[list[str], list[str]]:
        """What pip was asked for, and the lines on stderr."""
        log = self.folder / "pip.log"
        log.write_text("")
        environment = {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "PIP_LOG": str(log), **shell}
        command = ["bash", str(self.repo / "scripts" / "install.sh"), "--align-anything"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stderr
        return log.read_text().splitlines(), done.stderr.splitlines()


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


def test_a_second_run_does_nothing_until_something_changed(machine):
    source = str(machine.source)
    (packages, library, template), lines = machine.install(ALIGN_ANYTHING=source)
    assert packages.endswith(f"-r {machine.environment}/requirements.txt {source}")
    assert library.endswith(f"-e {machine.repo}") and template == "template"
    pins = (machine.environment / "requirements.txt").read_text()
    assert "torch==" in pins and "align-anything @" not in pins
    assert lines[-1] == f"align-anything is ready; use it with: source {machine.environment}/bin/activate"
    assert machine.install(ALIGN_ANYTHING=source) == ([], lines[-1:])
    assert machine.install() == ([], lines[-1:])  # it knows where it came from
    (machine.source / "align_anything" / "sft.py").write_text("another loss\n")
    assert len(machine.install()[0]) == 3
    assert machine.install(ALIGN_ANYTHING=source)[0] == []
    (machine.repo / "configs" / "template.py").write_text("STYLES = {'new': 1}\n")
    assert machine.install()[0] == ["template"]  # a pulled change of it reaches the package
    assert machine.install()[0] == []
    (machine.repo / "requirements-align-anything.txt").write_text("torch==9\n")
    assert len(machine.install(ALIGN_ANYTHING=source)[0]) == 3


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("https://git.invalid/a.git", "git+https://git.invalid/a.git"),
        ("file:///srv/a@3f9decc", "git+file:///srv/a@3f9decc"),
        ("git+ssh://git@git.invalid/a.git", "git+ssh://git@git.invalid/a.git"),
    ],
)
def test_a_git_address_is_handed_to_pip(machine, given, taken):
    (packages, *_), _ = machine.install(ALIGN_ANYTHING=given)
    assert packages.split()[-1] == taken


def test_the_pinned_commit_is_taken_where_nothing_is_said(machine):
    (packages, *_), _ = machine.install()
    assert packages.endswith(f"-r {machine.repo}/requirements-align-anything.txt")


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_path_without_align_anything_is_one_line_and_makes_nothing(machine, name):
    (machine.folder / "empty").mkdir()
    asked, (line,) = machine.install(code=2, ALIGN_ANYTHING=str(machine.folder / name))
    assert asked == [] and not machine.environment.exists()
    assert line.startswith("error: ALIGN_ANYTHING=") and "no pyproject.toml with align_anything/ beside it" in line


def test_an_installation_that_failed_is_taken_up_again(machine):
    source = str(machine.source)
    _, lines = machine.install(code=2, ALIGN_ANYTHING=source, BROKEN_PIP="1")
    assert lines[-1].startswith("error: pip could not install requirements-align-anything.txt")
    assert lines[-1].endswith(f"the reason is at the end of {machine.environment}/install.log")
    assert len(machine.install(ALIGN_ANYTHING=source)[0]) == 3
    machine.install(code=2, ALIGN_ANYTHING="https://git.invalid/a.git", BROKEN_PIP="1")
    assert len(machine.install(ALIGN_ANYTHING=source)[0]) == 3  # what the failed one left is not taken for whole


def test_an_environment_of_the_default_stack_is_left_alone(machine):
    other = machine.folder / "env"
    other.mkdir()
    (other / ".guardrail-installed").write_text("x\n")
    asked, (line,) = machine.install(code=2, ALIGN_ANYTHING_ENV=str(other))
    assert asked == [] and "holds the default stack, which would be replaced" in line
