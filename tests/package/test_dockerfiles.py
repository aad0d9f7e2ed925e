"""The Dockerfiles against the repository, where no daemon can build them: instructions, sources, pins, shell syntax."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import subprocess

import pytest
from toys import REPOSITORY

INSTRUCTIONS = {"ARG", "FROM", "RUN", "ENV", "WORKDIR", "COPY", "CMD"}
FILES = ("Dockerfile", "Dockerfile.cuda")


def instructions(name: str) -> list[tuple[str, str]]:
    """``(instruction, arguments)`` of a Dockerfile: comments dropped, continued lines joined."""
    lines = (REPOSITORY / name).read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    found = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            assert rest, f"{name}: {line!r} has no arguments"
            found.append((word, rest.strip()))
    return found


def ignored(path: str) -> bool:
    lines = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return any(fnmatch.fnmatch(path, line) for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("name", FILES)
def test_instructions_are_known_and_in_order(name):
    words = [word for word, _ in instructions(name)]
    assert set(words) <= INSTRUCTIONS
    assert words.index("FROM") == words.count("ARG") - len([w for w in words[words.index("FROM") :] if w == "ARG"])
    assert words.count("FROM") == 1 and words[-1] == "CMD"


@pytest.mark.parametrize("name", FILES)
def test_the_base_image_has_a_version_and_every_argument_is_known(name):
    found = instructions(name)
    (base,) = [rest for word, rest in found if word == "FROM"]
    arguments = dict(rest.partition("=")[::2] for word, rest in found if word == "ARG")
    for variable in re.findall(r"\$\{(\w+)\}", base):
        base = base.replace(f"${{{variable}}}", arguments[variable])
    assert re.fullmatch(r"[a-z/]+:\d+\.\d+[\w.-]*", base), base
    if base.startswith("python:"):
        assert base.split(":")[1][:4] in ("3.10", "3.11", "3.12", "3.13")


@pytest.mark.parametrize("name", FILES)
def test_every_copied_file_is_there_and_not_ignored(name):
    copies = [shlex.split(rest) for word, rest in instructions(name) if word == "COPY"]
    assert copies
    for *sources, target in copies:
        assert target in (".", "./")
        for source in sources:
            assert (REPOSITORY / source).exists() and not ignored(source), source


def test_what_the_images_need_is_not_ignored():
    needed = ("pyproject.toml", "setup.py", "guardrail", "configs", "scripts", "workflow", "datasets", "README.md")
    assert not [name for name in needed if ignored(name)]


@pytest.mark.parametrize("name", FILES)
def test_packages_come_from_the_requirement_files(name):
    """No version stands in a Dockerfile: ``pip install`` gets a requirements file or the project itself."""
    commands = [part for word, rest in instructions(name) if word == "RUN" for part in re.split(r"&&|;", rest)]
    installs = [part for part in commands if "pip install" in part]
    assert len(installs) >= 2
    for command in installs:
        assert re.search(r"-r \S*(requirements[\w-]*|torch)\.txt", command) or command.rstrip().endswith("-e ."), (
            command
        )
        assert "==" not in command
    if "torch.txt" in "".join(installs):
        text = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8")
        assert len(re.findall(r"(?m)^torch==", text)) == 1  # what `grep` finds


@pytest.mark.parametrize("name", FILES)
def test_shell_parses_and_started_files_exist(name):
    for word, rest in instructions(name):
        if word == "RUN":
            assert subprocess.run(["sh", "-n", "-c", rest]).returncode == 0, rest
        for file in re.findall(r"(?:scripts|configs)/[\w/.]+", rest):
            assert (REPOSITORY / file).is_file(), file
        if word == "CMD":
            assert json.loads(rest)
