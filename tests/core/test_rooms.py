"""Rooms import downwards only, without cycles; no library file is long. Read from the source, nothing is imported."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from toys import REPOSITORY

LIBRARY = REPOSITORY / "guardrail"
ROOMS = (  # a room imports from itself and from rooms above it in this list
    *(
        "core",
        "statistics",
        "data",
        "models",
        "generation",
        "similarity",
        "training",
        "evaluation",
        "sandbox",
        "bench",
        "study",
    ),
)
MAX_LINES = 400
FILES = sorted(file.relative_to(LIBRARY) for file in LIBRARY.rglob("*.py") if len(file.relative_to(LIBRARY).parts) > 1)


def module_name(file: Path) -> str:
    return ".".join(("guardrail", *file.with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module_name(file): file for file in FILES}


def imported(file: Path) -> set[str]:
    """Modules of the library that ``file`` imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((LIBRARY / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in map(known, found) if name is not None}


def known(name: str) -> str | None:
    """The module that ``name`` is, or is in."""
    while name.startswith("guardrail."):
        if name in MODULES:
            return name
        name = name.rpartition(".")[0]
    return None


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_room_imports_only_from_rooms_above_it(file):
    own = ROOMS.index(file.parts[0])
    wrong = {name for name in imported(file) if ROOMS.index(name.split(".")[1]) > own}
    assert not wrong


def test_no_two_modules_import_each_other_however_indirectly():
    edges = {name: imported(file) - {name} for name, file in MODULES.items()}
    free: set[str] = set()
    while ready := {name for name, needs in edges.items() if name not in free and needs <= free}:
        free |= ready
    stuck = {name: sorted(needs - free) for name, needs in edges.items() if name not in free}
    in_cycle = {name for name in stuck if reaches(name, name, edges)}
    assert not in_cycle, {name: stuck[name] for name in sorted(in_cycle)}


def reaches(start: str, goal: str, edges: dict[str, set[str]]) -> bool:
    seen: set[str] = set()
    todo = list(edges[start])
    while todo:
        name = todo.pop()
        if name == goal:
            return True
        if name not in seen:
            seen.add(name)
            todo += edges[name]
    return False


@pytest.mark.parametrize("file", FILES, ids=str)
def test_no_file_is_long(file):
    assert len((LIBRARY / file).read_text(encoding="utf-8").splitlines()) <= MAX_LINES


PACKAGES = sorted(file.parent for file in LIBRARY.rglob("__init__.py") if "resources" not in file.parts)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda folder: str(folder.relative_to(REPOSITORY)))
def test_a_package_names_its_modules(package):
    """The tree alone answers where a step is: every module has its line in the docstring of its room."""
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))) or ""
    modules = {file.stem for file in package.glob("*.py") if not file.stem.startswith("__")}
    modules |= {folder.name for folder in package.iterdir() if (folder / "__init__.py").is_file()} - {"resources"}
    assert not {name for name in modules if not re.search(rf"\b{name}\b", text)}
