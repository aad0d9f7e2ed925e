"""README's tree is the tree: what it names exists, and every folder and every room is named."""

from __future__ import annotations

import re
import subprocess

import pytest
from toys import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
TREE = README.split("## The tree")[1].split("```")[1].splitlines()[1:]


def named() -> set[str]:
    """Paths of the tree, folders without their slash; two blanks before a name mean: in guardrail/."""
    names = [line for line in TREE if line.strip()]
    return {("guardrail/" if line.startswith("  ") else "") + line.split()[0].rstrip("/") for line in names}


def test_what_the_tree_names_exists() -> None:
    assert not [name for name in named() if not list(REPOSITORY.glob(name))]


def test_every_folder_and_room_is_named() -> None:
    rooms = {f"guardrail/{file.parent.name}" for file in (REPOSITORY / "guardrail").glob("*/__init__.py")}
    assert rooms == {name for name in named() if "/" in name}
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    if listed.returncode:
        pytest.skip("no git here: generated folders cannot be told from the project's")
    folders = {file.split("/")[0] for file in listed.stdout.splitlines() if "/" in file}
    assert folders <= named()


def test_links_to_files_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert len(links) > 20
    assert not [link for link in links if not (REPOSITORY / link).exists()]
