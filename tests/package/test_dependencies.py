"""What the wheel declares: every import, ranges that admit the pins, both for each supported Python."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from toys import REPOSITORY

if sys.version_info >= (3, 11):
    import tomllib
else:  # Python 3.10 has no TOML reader; a test dependency brings this one
    import tomli as tomllib

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DECLARED = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = {name: [Requirement(text) for text in texts] for name, texts in PROJECT["optional-dependencies"].items()}
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
NAMES = {  # module -> distribution, where they differ
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
    "rouge_score": "rouge-score",
    "lm_eval": "lm-eval",
    "jinja2": "Jinja2",
    "tensorboard": "tensorboard",
}
NOT_ON_THE_INDEX = {"align_anything"}
COMMANDS = {"accelerate", "snakemake", "pulp", "setuptools", "pandas", "tensorboard"}  # run, not imported, or for these
COMMANDS |= {"sentencepiece", "protobuf"}  # transformers imports them for a tokenizer.model
PIN_FILES = {  # file -> where its pins must be admitted
    "requirements.txt": [*DECLARED, *EXTRAS["dev"], *EXTRAS["slurm"], *EXTRAS["gate"]],
    "requirements-vllm.txt": EXTRAS["vllm"],
    "requirements-lm-eval.txt": EXTRAS["lm-eval"],
    "requirements-align-anything.txt": [*EXTRAS["align-anything"], *DECLARED],
}


def third_party(file: Path) -> set[str]:
    """Top-level modules that ``file`` imports, anywhere in it, and that are neither Python's nor ours."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"guardrail"}


def pins(name: str) -> list[Requirement]:
    lines = (REPOSITORY / name).read_text(encoding="utf-8").splitlines()
    texts = (re.split(r"(?:^|\s)#", line)[0].strip() for line in lines)
    return [Requirement(text) for text in texts if text and not text.startswith("-")]


def applies(requirement: Requirement, python: str) -> bool:
    environment = {"python_version": python, "python_full_version": f"{python}.1", "extra": ""}
    return requirement.marker is None or requirement.marker.evaluate(environment)


def test_every_import_is_declared():
    modules = set().union(*(third_party(file) for file in (REPOSITORY / "guardrail").rglob("*.py")))
    modules |= set().union(*(third_party(file) for file in (REPOSITORY / "configs").rglob("*.py")))
    extras = [*EXTRAS["vllm"], *EXTRAS["lm-eval"], *EXTRAS["gate"], *EXTRAS["inspect"]]
    known = {canonicalize_name(r.name) for r in [*DECLARED, *extras]}
    missing = {m for m in modules - NOT_ON_THE_INDEX if canonicalize_name(NAMES.get(m, m)) not in known}
    assert not missing


def test_nothing_is_declared_that_is_not_used():
    modules = set().union(*(third_party(file) for file in (REPOSITORY / "guardrail").rglob("*.py")))
    used = {canonicalize_name(NAMES.get(module, module)) for module in modules} | COMMANDS
    assert {canonicalize_name(r.name) for r in DECLARED} <= used


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("file", PIN_FILES)
def test_ranges_admit_the_pins(file, python):
    ranges: dict[str, list[Requirement]] = {}
    for requirement in PIN_FILES[file]:
        ranges.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    for pin in (pin for pin in pins(file) if applies(pin, python) and pin.url is None):
        (exact,) = pin.specifier
        assert exact.operator == "==", f"{file}: {pin} is no pin"
        for requirement in ranges.get(canonicalize_name(pin.name), []):
            if applies(requirement, python):
                assert requirement.specifier.contains(exact.version, prereleases=True), f"{requirement} and {pin}"


@pytest.mark.parametrize("python", PYTHONS)
def test_every_declared_dependency_is_pinned_once_for_each_python(python):
    names = [canonicalize_name(pin.name) for pin in pins("requirements.txt") if applies(pin, python)]
    assert len(names) == len(set(names))
    not_pinned = {canonicalize_name(r.name) for r in DECLARED if applies(r, python)} - set(names)
    assert not_pinned <= {"huggingface-hub"}  # transformers decides its version


def test_every_range_is_bounded_below():
    for requirement in DECLARED:
        operators = {part.operator for part in requirement.specifier}
        assert ">=" in operators or requirement.marker is not None, f"{requirement} has no lower bound"


def test_supported_pythons_are_the_documented_ones():
    supported = SpecifierSet(PROJECT["requires-python"])
    assert all(Version(python) in supported for python in PYTHONS)
    assert Version("3.9") not in supported


def test_the_extras_are_there():
    assert {"vllm", "align-anything", "lm-eval", "dev"} <= set(EXTRAS)


def test_one_environment_with_align_anything():
    """What align-anything declares is pinned, and everything that it does not decide is as in the default stack."""
    theirs = {canonicalize_name(pin.name): pin for pin in pins("requirements-align-anything.txt")}
    ours = {canonicalize_name(pin.name): pin for pin in pins("requirements.txt") if applies(pin, "3.11")}
    declared = (
        "torch",
        "torchvision",
        "torchaudio",
        "transformers",
        "datasets",
        "tokenizers",
        "accelerate",
        "deepspeed",
    )
    declared += ("wandb", "tensorboard", "tqdm", "rich", "diffusers", "peft", "gradio", "librosa", "soundfile")
    assert set(declared) <= set(theirs)
    assert set(ours) <= set(theirs)  # our tests run there, too
    older = {name for name in ours if theirs[name].specifier != ours[name].specifier}
    assert older == {"torch", "transformers", "tokenizers", "accelerate", "deepspeed", "datasets", "pandas"}
    assert theirs["align-anything"].url is not None
