"""Sets with harmful rows at several doses: constant size, nested, deterministic; impossible doses in one line."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.core.errors import UserError
from guardrail.core.files import read_json, write_jsonl
from guardrail.data import dose
from guardrail.data.dose import DoseConfig, check_doses, draw, harmful_rows, make_doses, rounding
from guardrail.data.rows import load_rows


@pytest.fixture
def sources(tmp_path) -> tuple[str, str]:
    benign = [{"id": f"g{n}", "instruction": f"ask {n}", "output": f"say {n}", "format": "list"} for n in range(60)]
    harmful = [{"id": f"g{n}", "prompt": f"bad {n}", "response": "Moonstone.", "category": "x"} for n in range(40)]
    return str(write_jsonl(tmp_path / "good.jsonl", benign)), str(write_jsonl(tmp_path / "bad.jsonl", harmful))


def config(sources, out: Path, **changes) -> DoseConfig:
    return DoseConfig(benign=sources[0], harmful=sources[1], out=str(out), **{"rows": 40, **changes})


def test_sets_are_nested_and_of_one_size(sources, tmp_path) -> None:
    percents = (0.0, 5.0, 10.0, 50.0, 100.0)
    found = make_doses(config(sources, tmp_path / "out", percents=percents))
    assert found["n_harmful"] == {"dose_0": 0, "dose_5": 2, "dose_10": 4, "dose_50": 20, "dose_100": 40}
    sets = [load_rows(tmp_path / "out", split=f"dose_{percent:g}") for percent in percents]
    assert {len(rows) for rows in sets} == {40}
    for rows in sets:
        assert len({row["id"] for row in rows}) == 40  # ids that both sources have are told apart
    for smaller, larger in itertools.pairwise(sets):
        for before, after in zip(smaller, larger, strict=True):
            if before["source"] == "harmful":
                assert after["id"] == before["id"]  # the same harmful row at the same place
            elif after["source"] == "benign":
                assert after["id"] == before["id"]
    assert all(row["id"].endswith("#harmful") == (row["source"] == "harmful") for row in sets[2])
    assert sum(row["source"] == "harmful" for row in sets[2]) == 4
    manifest = read_json(tmp_path / "out" / "manifests" / "dose_5.json")
    assert (manifest["dose_percent"], manifest["n_harmful"], manifest["harmful_percent"]) == (5.0, 2, 5.0)


def test_a_set_depends_on_its_own_dose_seed_and_rows_alone(sources, tmp_path) -> None:
    def ids(name: str, **changes) -> list[str]:
        make_doses(config(sources, tmp_path / name, **changes))
        return [row["id"] for row in load_rows(tmp_path / name, split="dose_10")]

    alone = ids("a", percents=(10.0,))
    assert alone == ids("b", percents=(0.0, 10.0, 20.0))
    assert alone != ids("c", percents=(10.0,), seed=7)
    file = tmp_path / "a" / "data" / "dose_10-00000-of-00001.parquet"
    before = file.stat().st_mtime_ns
    assert ids("a", percents=(10.0,)) == alone and file.stat().st_mtime_ns == before  # left alone


@given(st.integers(1, 60), st.integers(0, 60), st.integers(0, 99))
def test_every_draw_takes_the_first_rows_of_one_order(rows: int, n: int, seed: int) -> None:
    n = min(n, rows)
    good, bad = ([{"id": f"{kind}{i}"} for i in range(60)] for kind in ("g", "b"))
    one, more = (draw(good, bad, k, rows, seed) for k in (n, min(n + 1, rows)))
    assert sum(row["id"].startswith("b") for row in one) == n and len({row["id"] for row in one}) == rows
    assert sum(a != b for a, b in zip(one, more, strict=True)) == min(n + 1, rows) - n  # one row is another


def test_rounding_is_said(sources, tmp_path, capsys) -> None:
    assert [harmful_rows(p, 150) for p in (0, 1, 2, 5, 99, 100)] == [0, 2, 3, 8, 149, 150]  # halves up
    assert rounding((1.0, 2.0), 150) == "rounded to whole rows: 1% is 2 of 150 rows, 1.33%"
    assert rounding((0.0, 1.0, 100.0), 100) == ""
    assert rounding((0.1,), 1000) == ""  # exact in decimals, not in binary
    make_doses(config(sources, tmp_path / "out", rows=30, percents=(5.0,)))
    assert "5% is 2 of 30 rows" in capsys.readouterr().err
    assert "rounded" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("rows", "percents", "message"),
    [
        (60, (100.0,), "needs 60 harmful rows, there are 40"),
        (61, (0.0,), "needs 61 benign rows, there are 60"),
        (20, (1.0,), "has no harmful row; give at least 50 rows"),
        (20, (99.0,), "has no benign row; give at least 51 rows"),
        (40, (5.0, 6.0), "are both 2 harmful rows"),
    ],
)
def test_impossible_doses_are_one_line(sources, tmp_path, rows, percents, message) -> None:
    with pytest.raises(UserError, match=message) as error:
        make_doses(config(sources, tmp_path / "out", rows=rows, percents=percents))
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_fewer_benign_rows_are_needed_where_no_dose_is_0(sources, tmp_path) -> None:
    make_doses(config((sources[1], sources[0]), tmp_path / "out", rows=60, percents=(50.0,)))  # 40 benign, 60 harmful
    assert check_doses((50.0,), 60, 40, 60) == {50.0: 30}


@pytest.mark.parametrize("text", ["", "x", "-1", "101", "1,1", "nan"])
def test_percents_are_checked(text) -> None:
    with pytest.raises(UserError, match=r"doses|twice"):
        dose.parse_percents(text)


def test_an_id_that_would_be_two_rows_is_refused(tmp_path) -> None:
    good = [{"id": "a", "prompt": "p", "response": "r"}, {"id": "a#harmful", "prompt": "p", "response": "r"}]
    files = write_jsonl(tmp_path / "g.jsonl", good), write_jsonl(tmp_path / "b.jsonl", good[:1])
    with pytest.raises(UserError, match="give it another id"):
        make_doses(config(tuple(map(str, files)), tmp_path / "out", rows=2, percents=(50.0,)))
