"""The ``guardrail`` command without a wheel: what its names stand for, and command lines that are wrong."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest
from toys import REPOSITORY

from guardrail import command


def source_of(target: str) -> Path:
    if target.endswith(".py"):
        return REPOSITORY / target
    spec = importlib.util.find_spec(target)
    assert spec is not None and spec.origin is not None, f"no module {target}"
    return Path(spec.origin)


@pytest.mark.parametrize("name", [name for name, (_, target) in command.COMMANDS.items() if "." in target])
def test_every_command_has_a_main(name):
    tree = ast.parse(source_of(command.COMMANDS[name][1]).read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    names |= {alias.asname or alias.name for n in tree.body if isinstance(n, ast.ImportFrom) for alias in n.names}
    assert "main" in names


def test_what_people_do_is_there():
    wanted = "prepare extract cluster select mix train evaluate judge utility study audit plan bench"
    assert set(wanted.split()) <= set(command.COMMANDS)
    assert all((REPOSITORY / "benchmarks" / f"{name}.py").is_file() for name in command.BENCHMARKS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no command given"),
        (["evalute"], "did you mean 'evaluate'?"),
        (["plan"], "no study given"),
        (["study", "--dry-run"], "no study given"),
        (["plan", "quickstrat"], "did you mean 'quickstart'?"),
        (["bench", "sft"], "unknown benchmark 'sft'"),
        (["mix", "--sim=hihg", "--task=x"], "did you mean 'high'?"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(arguments, words, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["guardrail", *arguments])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1


def test_a_study_is_found_by_path_and_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = str(REPOSITORY / "configs" / "studies" / "quickstart.yaml")
    assert command.study_file("quickstart") == command.study_file("configs/studies/quickstart.yaml") == shipped
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    assert command.study_file("mine.yaml") == "mine.yaml"
