"""Bash variables against the options that they become: every flag exists, every default is the option's own or listed.

The list is of this project's deliberate settings: where a script starts from the paper's number (or from what its stage
is for), not from the option's general default. An entry that is no longer needed is an error.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from stages import flags_of
from toys import REPOSITORY

from guardrail.study.planning.node import cores

SFT = "guardrail.training.sft"
STAGES = {  # script -> the stages that get its variables
    "admit": ["similarity/admit.py"],
    "audit": ["similarity/audit.py"],
    "cluster": ["similarity/get_high_similarity_group.py"],
    "eval_safety": ["eval_safety.py"],
    "evaluate": ["guardrail.evaluation.checkpoint"],
    "eval_utility": ["eval_utility.py"],
    "get_representation": ["similarity/get_representation.py"],
    "judge": ["guardrail.evaluation.judges.__main__"],
    "moderate": ["beavertails_moderation/formatter.py", "beavertails_moderation/evaluate.py"],
    "mt_bench": ["__main__.py"],
    "score_rows": ["similarity/score_rows.py"],
    "select_subset": ["similarity/get_top_similarity_dataset_reps_general.py"],
    "sft": [SFT],
    "sft_downstream": [SFT],
    "sft_subset": [SFT],
}
VIA = {"sft_downstream": "sft", "sft_subset": "sft"}  # the script that passes an exported variable on
DELIBERATE = {
    ("mt_bench", "BACKEND"): "the paper answers MT-Bench with vLLM (its command)",
    ("score_rows", "SCORERS"): "the script names a model and sets, the option's default needs none",
    ("select_subset", "SIZE"): "the paper's subsets have 1,000 and 5,000 rows",
    ("sft", "BATCH_SIZE"): "the paper's alignment: 8 rows per device on 4 GPUs",
    ("sft_downstream", "EPOCHS"): "the paper's downstream fine-tuning: 5 epochs",
    ("sft_downstream", "BATCH_SIZE"): "the paper's downstream fine-tuning: 5 rows per device",
}
NO_STAGE = (
    "help",
    "setup",
    "install",
    "install_template",
    "install_vllm",
    "quickstart",
    "stages",
    "study",
    "test",
    "lint",
)
SCRIPTS = sorted((REPOSITORY / "scripts").rglob("*.sh"))


def text_of(script: str) -> str:
    return (REPOSITORY / "scripts" / f"{script}.sh").read_text(encoding="utf-8")


def defaults_of(script: str) -> dict[str, str]:
    """Variables that the script gives a literal, non-empty default; those made from others are left out."""
    found = re.findall(r'(?m)^(?:export )?([A-Z_]+)="\$\{\1:?-(.*?)\}"(?: +#.*)?$', text_of(script))
    return {name: default for name, default in found if default and "$" not in default}


def passed_by(script: str) -> list[tuple[str, str]]:
    """``(flag, value)`` of everything that the script gives to its stage; values may be variables."""
    code = "\n".join(line for line in text_of(script).splitlines() if not line.lstrip().startswith("#"))
    code = code.partition('--module "$SFT_MODULE"')[2] or code  # before it: flags of the launcher
    return re.findall(r'--([a-z_0-9]+)(?:=| +"?)("?[\w$.{}]+)', code)


def flags(script: str) -> dict[str, Any]:
    return {flag: action for stage in STAGES[script] for flag, action in flags_of(stage).items()}


def value_of(action: Any, text: str) -> Any:
    """``text`` as the parser would read it, choices checked."""
    value = action.type(text) if action.type else text
    assert action.choices is None or value in action.choices, f"{text} is no value of {action.option_strings[0]}"
    return value


def differing(script: str) -> set[str]:
    """Variables whose default is not that of the option."""
    out = set()
    defaults = defaults_of(script)
    for flag, value in passed_by(VIA.get(script, script)):
        name = value.strip('"${}')
        if name in defaults and flag in flags(script):
            action = flags(script)[flag]
            default = value_of(action, action.default) if isinstance(action.default, str) else action.default
            if value_of(action, defaults[name]) != default and default is not None:
                out.add(name)
    return out


def test_every_script_is_looked_at():
    assert {path.stem for path in (REPOSITORY / "scripts").glob("*.sh")} == {*STAGES, *NO_STAGE}


@pytest.mark.parametrize("script", [script for script in STAGES if script not in VIA])
def test_every_flag_that_a_script_passes_exists(script):
    known = set(flags(script))
    passed = [flag for flag, _ in passed_by(script)]
    assert passed
    assert not set(passed) - known


@pytest.mark.parametrize("script", [script for script in STAGES if script not in VIA])
def test_every_constant_that_a_script_passes_is_a_value_of_its_flag(script):
    for flag, value in passed_by(script):
        if "$" not in value and flag in flags(script) and flags(script)[flag].nargs != 0:
            value_of(flags(script)[flag], value.strip('"'))


@pytest.mark.parametrize("script", STAGES)
def test_defaults_are_the_options_own_or_deliberate(script):
    assert differing(script) == {name for owner, name in DELIBERATE if owner == script}


def test_the_check_finds_a_default_that_has_drifted(tmp_path, monkeypatch):
    text = text_of("sft").replace("LEARNING_RATE:-2e-5", "LEARNING_RATE:-3e-5").replace("SEED:-42", "SEED:-042")
    monkeypatch.setitem(globals(), "text_of", lambda script: text)
    assert differing("sft") == {"LEARNING_RATE", "BATCH_SIZE"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_help_shows_every_variable_and_touches_nothing(path: Path, tmp_path):
    if path.stem in ("help", "setup"):
        pytest.skip("sourced by the others")
    before = {file: file.stat().st_mtime_ns for file in (REPOSITORY / "scripts").rglob("*")}
    done = subprocess.run(["bash", str(path), "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    source = path.read_text(encoding="utf-8")
    if path.stem != "install_template":  # passes everything on, --help too
        names = set(re.findall(r'(?m)^(?:export )?([A-Z_]+)="\$\{\1:?[-?].*\}"(?: +#.*)?$', source))
        assert names <= set(re.findall(r"(?m)^  ([A-Z_]+)(?:=| \(needed\))", done.stdout))
        assert source.splitlines()[1].removeprefix("# ") in done.stdout
    assert not list(tmp_path.iterdir())
    assert before == {file: file.stat().st_mtime_ns for file in (REPOSITORY / "scripts").rglob("*")}


def test_threads_of_a_job_are_not_taken_for_the_cores():
    """coreutils' nproc prints OMP_NUM_THREADS: with one thread per job exported, a study ran one job at a time."""
    line = next(line for line in text_of("study").splitlines() if line.startswith('JOBS="${JOBS:-$('))
    shown = subprocess.run(
        ["bash", "-c", f'{line}\necho "$JOBS"'],
        env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "OMP_THREAD_LIMIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert int(shown) == cores()
