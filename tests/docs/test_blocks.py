"""README and docs/: every block is run, or says why not; every file, link, flag and variable that is named exists.

A shell or Python block is run here unless one of these stands before it (or, for Python, at the head of the page):

    <!-- not run: needs four GPUs -->
    <!-- run by tests/core/test_extending.py -->
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from toys import REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
LANGUAGES = ("bash", "python", "yaml", "json", "text", "bibtex")
MARK = re.compile(r"<!-- (not run|run by)[: ] ?(.+?) -->")
# Flags of other programs: launchers, Snakemake, docker, pip, pytest, and what a shell script of ours takes itself.
FOREIGN_FLAGS = {
    "--nodes",  # sbatch
    *("--include", "--module", "--multi_gpu", "--num_processes", "--num_machines", "--gpu_ids", "--cpu"),
    *("--profile", "--build-arg", "--plan", "--dry-run", "--unlock", "--help", "--durations", "--strict"),
    *("--dist", "--nolock", "--local-dir", "--align-anything"),
}
# Files that a page asks the reader to write, or shows as an example.
EXAMPLES = {
    "scripts/NAME.sh",
    "configs/studies/mine.yaml",
    "guardrail/evaluation/judges/length.py",
    "guardrail/evaluation/attacks/insist.py",
    "guardrail/training/defences/pull_back.py",
}
PATH = re.compile(
    r"(?<![\w./-])(?:(?:scripts|guardrail|configs|docs|tests|benchmarks|similarity|workflow|datasets"
    r"|beavertails_moderation)/[\w./-]+\.(?:sh|py|md|yaml|json|txt)|requirements[\w-]*\.txt)(?![\w/*{<])"
)
MODULE = re.compile(r"\bguardrail(?:\.[a-z_]+)+")
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str
    mark: tuple[str, str] | None

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, each with the mark before it."""
    lines = page.read_text(encoding="utf-8").splitlines()
    head = next((MARK.fullmatch(line.strip()) for line in lines[:4] if MARK.fullmatch(line.strip())), None)
    name = page.relative_to(REPOSITORY).as_posix()
    found, start = [], None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
            continue
        language = lines[start].removeprefix("```").strip()
        own = MARK.fullmatch(lines[start - 1].strip())
        mark = own or (head if language == "python" else None)
        text = "\n".join(lines[start + 1 : number])
        found.append(Block(name, start + 1, language, text, mark and (mark[1], mark[2])))
        start = None
    assert start is None, f"{name}: a block that begins in line {start} does not end"
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
RUNNABLE = [block for block in BLOCKS if block.language in ("bash", "python") and block.mark is None]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def test_every_block_names_its_language():
    assert [block.place for block in BLOCKS if block.language not in LANGUAGES] == []
    indented = re.compile(r"(?:^|\n)(?![ ]*[-*0-9])[^\n]*\n\n {4}(?! *[-*])[^\n]*")
    assert [page.name for page in PAGES if indented.search(prose(page))] == [], "code is fenced, not indented"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_prose_is_short(page):
    """Lines of about 100 columns (tables and code apart), paragraphs and list items of at most eight lines."""
    if page.name == "LOG.md":
        pytest.skip("entries are kept as they were written")
    text = prose(page)
    lines = [line for line in text.splitlines() if not line.startswith(("|", "#", "<!--"))]
    assert [line for line in lines if len(re.sub(r"\]\([^)]*\)", "]", line)) > 104] == []
    parts = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", text)
    assert [part for part in parts if len(part.splitlines()) > 8 and not part.strip().startswith("|")] == []


def test_a_block_that_is_not_run_says_why():
    for block in BLOCKS:
        if block.mark is not None and block.mark[0] == "run by":
            assert (REPOSITORY / block.mark[1]).is_file(), block.place
        elif block.mark is not None:
            assert len(block.mark[1].split()) > 2, block.place


def test_python_blocks_of_the_page_on_extending_are_in_its_test():
    test = (REPOSITORY / "tests" / "core" / "test_extending.py").read_text(encoding="utf-8")
    asked = [part for _, part in re.findall(r"code_with\((['\"])(.+?)\1\)", test)]
    shown = [block for block in BLOCKS if block.page == "docs/extending.md" and block.language == "python"]
    assert [block.place for block in shown if not any(part in block.text for part in asked)] == []


def test_yaml_blocks_are_yaml():
    for block in BLOCKS:
        if block.language == "yaml":
            assert isinstance(yaml.safe_load(block.text), dict), block.place


@pytest.mark.slow
@pytest.mark.parametrize("block", RUNNABLE, ids=[block.place for block in RUNNABLE])
def test_block_runs(block, tmp_path):
    """In a folder that looks like the repository, so that nothing is written into it."""
    for entry in REPOSITORY.iterdir():
        if entry.name not in ("outputs", ".venv", ".git", ".snakemake", "models", "site"):
            (tmp_path / entry.name).symlink_to(entry)
    command = ["bash", "-euo", "pipefail", "-c"] if block.language == "bash" else [sys.executable, "-c"]
    venv = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{venv}:{os.environ['PATH']}", "VIRTUAL_ENV": str(venv.parent)}
    done = subprocess.run(
        [*command, block.text], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{block.place}: {done.stderr[-2000:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_modules_that_are_named_exist(page):
    if page.name == "LOG.md":
        pytest.skip("dated entries name what there was on their day")
    text = page.read_text(encoding="utf-8")
    paths = {name for name in PATH.findall(text) if name not in EXAMPLES}
    assert sorted(name for name in paths if not (REPOSITORY / name).exists()) == []
    assert sorted(name for name in set(MODULE.findall(text)) if not is_known_name(name)) == []


def is_known_name(name: str) -> bool:
    """A module, something in one, or the group of entry points of a kind of plug-in."""
    if any(place.startswith(name.replace(".", "/")) for place in EXAMPLES) or name in entry_point_groups():
        return True
    module, _, attribute = name, "", ""
    while module != "guardrail":
        path = REPOSITORY / module.replace(".", "/")
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if file.is_file():
            return not attribute or re.search(rf"\b{attribute}\b", file.read_text(encoding="utf-8")) is not None
        module, _, attribute = module.rpartition(".")
    return False


@cache
def entry_point_groups() -> set[str]:
    text = "".join(file.read_text(encoding="utf-8") for file in (REPOSITORY / "guardrail").rglob("*.py"))
    return {f"guardrail.{kind.replace(' ', '_')}" for kind in re.findall(r"Registry\(\s*\"([^\"]+)\"", text)}


@cache
def hooks() -> Any:
    spec = importlib.util.spec_from_file_location("docs_hooks", REPOSITORY / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def flags_of(config: type) -> set[str]:
    from guardrail.core.options import options_of

    return {flag for item in options_of(config) for flag in (f"--{item.name}", *item.metadata["flags"])}


@cache
def all_flags() -> set[str]:
    """Every flag of every entry point."""
    found = set(FOREIGN_FLAGS)
    for *_, places in hooks().STAGES.values():
        for place in places:
            found |= flags_of(hooks().find(place))
    sources = [
        *REPOSITORY.glob("*.py"),
        *(f for d in ("guardrail", "benchmarks", "datasets", "tests") for f in (REPOSITORY / d).rglob("*.py")),
    ]
    for file in sources:
        found |= set(re.findall(r"\"(--[a-z][\w-]*)\"", file.read_text(encoding="utf-8")))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_that_are_named_exist(page):
    if page.name == "LOG.md":
        pytest.skip("dated entries name what there was on their day")
    assert sorted(set(FLAG.findall(page.read_text(encoding="utf-8"))) - all_flags()) == []


def commands(block: Block) -> list[list[str]]:
    """The words of every command of a shell block, without its comments."""
    lines = block.text.replace("\\\n", " ").splitlines()
    out = []
    for line in lines:
        out += [part for part in re.split(r"[;&|]+ ?", re.sub(r"(^|\s)#.*", "", line)) if part.strip()]
    return [shlex.split(part) for part in out if "'" not in part or part.count("'") % 2 == 0]


def test_flags_of_commands_belong_to_their_entry_point():
    """Each command of a shell block that starts one of the stages with a table of options."""
    n_checked = 0
    for block in BLOCKS:
        for words in commands(block) if block.language == "bash" else []:
            line = " ".join(words)
            for _, started, places in hooks().STAGES.values():
                entries = [start.removeprefix("python ").split(" --")[0] for start in started.split(", ")]
                entry = next((entry for entry in entries if f"{entry} " in f"{line} "), None)
                if entry is None:
                    continue
                n_checked += 1
                given = set(FLAG.findall(line[line.index(entry) :]))
                known = set().union(*(flags_of(hooks().find(place)) for place in places)) | {
                    "--benchmark",
                    "--evaluator",
                    "--attack",
                    "--attack_options",
                }
                assert given - known - {"--help"} == set(), block.place
    assert n_checked > 10


def test_variables_of_commands_are_read_by_a_script():
    scripts = "".join(file.read_text(encoding="utf-8") for file in (REPOSITORY / "scripts").glob("*.sh"))
    known = set(re.findall(r"\$\{([A-Z_]+)", scripts)) | {"SFT_MODULE"}
    for block in BLOCKS:
        if block.language == "bash":
            named = re.findall(r"(?:^|[ (])([A-Z][A-Z_]+)=", block.text, re.M)
            assert set(named) - known - {"WITH_VLLM"} == set(), block.place
