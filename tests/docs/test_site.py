"""The documentation site: it builds without a warning and without the network, and holds every option of the code."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from types import ModuleType

import pytest
from toys import REPOSITORY


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", REPOSITORY / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def classes_with_options() -> set[str]:
    """Names of the classes of guardrail/ with a field that is an `option(...)`, read from the source."""
    found = set()
    for file in (REPOSITORY / "guardrail").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                values = [item.value for item in node.body if isinstance(item, ast.AnnAssign)]
                calls = [value.func for value in values if isinstance(value, ast.Call)]
                if any(isinstance(call, ast.Name) and call.id == "option" for call in calls):
                    found.add(node.name)
    return found


def test_every_class_with_options_is_on_a_page(hooks):
    shown = {base.__name__ for *_, places in hooks.STAGES.values() for p in places for base in hooks.find(p).__mro__}
    assert classes_with_options() - shown == set()


def test_a_page_says_what_the_code_says(hooks):
    from guardrail.training.config import SFTConfig

    page = hooks.options_page("train")
    rate = next(line for line in page.splitlines() if line.startswith("| `--learning_rate`"))
    assert f"`{SFTConfig.learning_rate}`" in rate and "| yes |" in rate
    assert "| `--output_dir` | `str` | required | no |" in page


def test_every_block_of_a_study_file_is_on_its_page(hooks):
    from guardrail.study import attack_settings, config, tasks

    blocks = {
        name
        for module in (config, tasks, attack_settings)
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__ and hasattr(value, "__dataclass_fields__")
    }
    # a study file writes a design as text: mixed, adapter+lora; a rung is what a dose expands to, an arm what an attack
    assert blocks - {"Design", "Rung", "AttackArm", "Plain"} == set(hooks.STUDY_BLOCKS)


def test_every_room_has_a_page(hooks):
    rooms = {file.parent.name for file in (REPOSITORY / "guardrail").glob("*/__init__.py")}
    assert rooms == set(hooks.ROOMS)


def test_links_out_of_the_site_become_names(hooks):
    text = (
        "[data](../datasets/README.md) [set-up](../scripts/setup.sh) [keys](keys.md#where) [paper](https://arxiv.org)"
    )
    moved = hooks.moved_links(text, "docs/page.md", "page.md")
    assert hooks.moved_links("![bars](docs/images/a.png)", "README.md", "index.md") == "![bars](images/a.png)"
    assert moved == "[data](data.md) `set-up` [keys](keys.md#where) [paper](https://arxiv.org)"


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    pages = {path.relative_to(tmp_path / "site").as_posix(): path.read_text() for path in tmp_path.rglob("*.html")}
    assert {"index.html", "keys.html", "glossary.html", "options/train.html", "reference/study.html"} <= set(pages)
    assert "product_state" in pages["reference/study.html"]
    for name, text in pages.items():
        loaded = re.findall(r"<(?:script|link|img)\b[^>]*\b(?:src|href)=\"(https?:[^\"]*)", text)
        assert loaded == [], f"{name} needs the network"
