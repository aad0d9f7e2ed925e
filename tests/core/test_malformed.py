"""A small slice of benchmarks/malformed.py: generated bad inputs through the entry points, each refused in one line."""

from __future__ import annotations

import importlib.util
import sys

import pytest
from toys import REPOSITORY


@pytest.fixture(scope="module")
def malformed():
    spec = importlib.util.spec_from_file_location("malformed", REPOSITORY / "benchmarks" / "malformed.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("kind", "n"),
    [
        ("rows", 60),
        ("flags", 40),
        ("studies", 30),
        ("answers", 30),
        ("replies", 20),
        ("stores", 30),
        ("checkpoints", 12),
    ],
)
def test_bad_input_is_one_line(malformed, kind, n):
    done = malformed.main(["--kinds", kind, "--n", str(n), "--seed", "3"])
    assert done["cases"] == n == done["refused"] + done["handled"]
    assert not any(done[name] for name in ("accepted", "tracebacks", "left_behind", "vague"))


def test_what_is_wrong_is_found(malformed, tmp_path, monkeypatch):
    """The check itself: a traceback, a file left behind, a message that says nothing, a wrong input that is taken."""

    def failing(argv):
        (tmp_path / "case" / "half").write_text("x")
        raise malformed.UserError("rows.jsonl: expected more")

    def vague(argv):
        raise malformed.UserError("no")

    def crash(argv):
        raise KeyError("x")

    found = []
    for main in (failing, vague, crash, lambda argv: {}):
        monkeypatch.setattr(malformed, "entry", lambda target, main=main: main)
        (tmp_path / "case").mkdir()
        found.append(malformed.run_case(malformed.Case("rows", "", "", (), {}, ("rows.jsonl",)), tmp_path / "case")[0])
        malformed.shutil.rmtree(tmp_path / "case")
    assert found == ["left_behind", "vague", "traceback", "accepted"]
    with pytest.raises(malformed.UserError, match="did you mean 'rows'"):
        malformed.main(["--kinds", "row"])
