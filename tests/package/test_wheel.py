"""The wheel: built from a copy of the sources, installed beside the pinned packages, used from an empty folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from toys import REPOSITORY

from guardrail.command import COMMANDS

pytestmark = pytest.mark.slow
HEAVY = {"torch", "transformers", "deepspeed", "datasets", "sklearn", "matplotlib", "pandas", "vllm", "snakemake"}
SKIPPED = shutil.ignore_patterns("__pycache__", "*.egg-info", "data", "mt_bench*.jsonl", "results", "golden")
SOURCES = (
    "guardrail",
    "configs",
    "workflow",
    "scripts",
    "similarity",
    "beavertails_moderation",
    "benchmarks",
    "datasets",
)
FILES = ("*.toml", "*.py", "MANIFEST.in", "LICENSE", "README.md", "requirements*.txt")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        # guardrail/data and guardrail/evaluation/mt_bench are code; datasets/sandbox/data is generated
        ignored = SKIPPED if name == "datasets" else shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(REPOSITORY / name, source / name, ignore=ignored)
    for pattern in FILES:
        for file in REPOSITORY.glob(pattern):
            shutil.copy(file, source)
    stale = source / "build" / "lib" / "guardrail" / "left_over.py"  # of an earlier build, before a module was renamed
    stale.parent.mkdir(parents=True)
    stale.write_text("")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "-w", str(out), "."], cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return next(out.glob("guardrail_durability-*.whl"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel that sees this one's packages, but not its editable installation."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "lib" / version / "site-packages"
    # A path in a .pth file is taken as it is: .pth files inside it, such as an editable installation's, are not read.
    (packages / "base.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = str(folder / "bin" / "python")
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    done = subprocess.run([*command, "--force-reinstall", str(wheel)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    shim = folder / "bin" / "snakemake"  # the command of the package that the .pth file adds
    shim.write_text(f'#!/bin/sh\nexec {python} -m snakemake "$@"\n')
    shim.chmod(0o755)
    return folder


@pytest.fixture
def guardrail(environment, tmp_path):
    """Runs ``guardrail ...`` in an empty folder, with nothing of the checkout in the environment."""
    keep = ("HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
    variables = {name: os.environ[name] for name in keep if name in os.environ}
    variables |= {
        "PATH": f"{environment / 'bin'}:/usr/local/bin:/usr/bin:/bin",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "200",
    }

    def call(*arguments: str, start: tuple[str, ...] = ("guardrail",)) -> subprocess.CompletedProcess[str]:
        program = [str(environment / "bin" / start[0]), *start[1:]]
        return subprocess.run(
            [*program, *arguments], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=120
        )

    return call


def installed(environment: Path) -> set[Path]:
    return {file for file in environment.rglob("*") if "__pycache__" not in file.parts}


def test_the_wheel_is_what_is_imported(guardrail, environment):
    code = "import guardrail.core.places as p; print(p.LIBRARY, p.IN_CHECKOUT, p.WORK)"
    library, in_checkout, work = guardrail("-c", code, start=("python",)).stdout.split()
    assert (
        Path(library).is_relative_to(environment) and in_checkout == "False" and Path(work).name.startswith("test_the")
    )


def test_no_module_of_an_earlier_build_is_in_it(environment):
    assert not list(environment.rglob("left_over.py"))
    assert not list(environment.rglob("resources/datasets/**/__init__.py"))


def test_every_place_is_in_the_wheel(guardrail):
    code = (
        "import guardrail.core.places as p; "
        "assert p.TEMPLATE_FILE.is_file() and list(p.DEEPSPEED_FOLDER.glob('*.json')); "
        "assert list(p.STUDIES.glob('*.yaml')); "
        "assert list(p.SCHEMAS.glob('*.json')) and (p.SCRIPTS / 'study.sh').is_file(); "
        "assert (p.RESOURCES / 'workflow' / 'Snakefile').is_file(); "
        "assert list((p.LIBRARY / 'study' / 'report').rglob('*.j2'))"
    )
    done = guardrail("-c", code, start=("python",))
    assert done.returncode == 0, done.stderr


def test_help_lists_the_commands_and_imports_nothing_heavy(guardrail):
    code = (
        "import sys, guardrail.command as c\n"
        "try: c.main(['--help'])\n"
        f"except SystemExit: print(sorted({HEAVY!r} & set(sys.modules)), len(sys.modules), file=sys.stderr)\n"
    )
    done = guardrail("-c", code, start=("python",))
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    heavy, n_modules = done.stderr.rsplit(maxsplit=1)
    assert heavy == "[]"
    assert int(n_modules) < 200  # 130 with argparse and json: what keeps it below half a second


@pytest.mark.parametrize("command", [*(name for name in COMMANDS if name != "bench"), "bench similarity"])
def test_help_of_every_command(guardrail, command):
    done = guardrail(*command.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert "usage: guardrail" in done.stdout or "scripts/study.sh" in done.stdout or "usage: python" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no command given"),
        (("stduy",), "did you mean 'study'?"),
        (("study",), "no study given"),
        (("plan", "quickstrat"), "did you mean 'quickstart'?"),
        (("bench", "trainign"), "did you mean 'training'?"),
        (("mix", "--taks=list"), "required"),
        (("train", "--modle"), "required"),
        (("judge", "answers.json", "--judge=gaurd"), "did you mean 'guard'?"),
    ],
)
def test_a_wrong_command_line_is_one_line(guardrail, arguments, words):
    done = guardrail(*arguments)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr and len(done.stderr.splitlines()) == 1


def test_plan_and_dry_run_in_an_empty_folder(guardrail, environment, tmp_path):
    before = installed(environment)
    plan = guardrail("plan", "quickstart")
    assert plan.returncode == 0, plan.stderr
    assert "6 cells" in plan.stdout
    assert (tmp_path / "datasets" / "sandbox" / "manifest.json").is_file()
    dry = guardrail("study", "quickstart", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    jobs = dry.stdout + dry.stderr
    assert "fine_tune" in jobs and "71 to run" in jobs
    assert {path.name for path in tmp_path.iterdir()} == {"datasets"}, "a dry run writes the sandbox's data and no more"
    assert installed(environment) == before


def test_a_stage_works_from_the_wheel(guardrail, tmp_path):
    assert guardrail("sandbox_data").returncode == 0
    arguments = ["--instruct=datasets/sandbox", "--instruct_split=list", "--safety=datasets/sandbox"]
    done = guardrail(
        "mix", *arguments, "--safety_split=safety_pool", "--task=list", "--sim=random", "--size=20", "--out=mix"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])
    assert list((tmp_path / "mix" / "data").glob("*.parquet"))
