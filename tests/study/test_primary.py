"""The primary comparison: checked when declared, hashed, its time known, analysed by its own rule, planned for."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.core.files import read_json
from guardrail.statistics.crossed import components
from guardrail.study import primary as analysis
from guardrail.study.config import as_dict, load_study
from guardrail.study.declaration import Primary, digest_of
from guardrail.study.grid import Grid
from guardrail.study.planning.power import earlier_studies, power_text, primary_power, primary_variances
from guardrail.study.registration import declare, history, standing

from .fake_study import fake_jobs, finish, settings, study, write_data, write_results

CHANGE = {"outcome": "change", "comparison": ["high", "low"], "smallest_difference": 5}
LIFE = {**CHANGE, "outcome": "restricted_mean_life"}
PROBED = {"epochs": 1, "learning_rate": "2e-5", "per_device_train_batch_size": 8, "probes": 7}


def declared(**changes) -> Primary:
    settings_ = {**CHANGE, "tasks": ("list",), "subset_size": 500, **changes}
    return Primary(**{**settings_, "comparison": tuple(settings_["comparison"])})


def written(tmp_path: Path, **changes) -> Path:
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump(json.loads(json.dumps(settings(tmp_path, **changes), default=list))))
    return file


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({**CHANGE, "outcome": "chang"}, "unknown primary.outcome 'chang'; did you mean 'change'?"),
        ({**CHANGE, "comparison": ["high", "lo"]}, "subset 'lo'; did you mean 'low'?"),
        ({**CHANGE, "comparison": ["high"]}, "expected two different arms"),
        ({**CHANGE, "comparison": ["high", "high"]}, "expected two different arms"),
        ({**CHANGE, "tasks": ["lisst"]}, "task 'lisst'; did you mean 'list'?"),
        ({**CHANGE, "tasks": ["list", "list"]}, "holds a task twice"),
        ({**CHANGE, "smallest_difference": 0}, "must be above 0"),
        ({**CHANGE, "smallest_difference": "much"}, "expected a number, got 'much'"),
        ({**CHANGE, "alpha": 1}, "primary.alpha must be above 0 and at most 0.5"),
        ({**CHANGE, "subset_size": 3}, "unknown primary.subset_size '3'"),
        ({"outcome": "change"}, "primary: missing comparison, smallest_difference"),
        ({**CHANGE, "margin": 3}, "unknown key in primary: 'margin'"),
        (LIFE, "is measured at probes; set fine_tuning.probes"),
    ],
)
def test_a_wrong_declaration_is_one_line(tmp_path, block, said):
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        load_study(written(tmp_path, primary=block))
    assert "\n" not in str(caught.value)


def test_what_is_declared_is_the_files_whatever_part_is_run(tmp_path):
    file = written(tmp_path, primary=CHANGE)
    whole, part = load_study(file), load_study(file, {"subsets": ["high"], "seeds": [1]})
    assert whole.primary == part.primary and part.subsets == ("high",)
    assert set(whole.primary.tasks) == set(whole.tasks) and whole.primary.subset_size == whole.subset_sizes[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"outcome": "harmful_after"},
        {"comparison": ("low", "high")},
        {"smallest_difference": 4.0},
        {"alpha": 0.01},
        {"tasks": ("list", "pure_bad")},
        {"subset_size": 1000},
    ],
)
def test_the_digest_changes_with_everything_that_is_declared(changes):
    assert digest_of(dataclasses.replace(declared(), **changes)) != digest_of(declared())
    assert digest_of(declared()) == digest_of(declared()) and digest_of(None) is None


def judge(folder: Path, n: int) -> None:
    for i in range(n):
        record = folder / "records" / f"harmfulness.cells.list__high.seed{i}" / "judgements.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text("{}")
    failed = folder / "records" / "harmfulness.cells.list__low.seed1" / "failed.json"
    failed.parent.mkdir(parents=True, exist_ok=True)
    failed.write_text("{}")


def test_a_declaration_knows_whether_it_came_first(tmp_path):
    first, other = declared(), declared(smallest_difference=3)
    assert standing(declare(tmp_path, None, [1]))["status"] == "none" and not history(tmp_path)
    declare(tmp_path, other, [1, 2])
    assert standing(declare(tmp_path, first, [1, 2]))["status"] == "before", "no result yet: it may be changed"
    judge(tmp_path, 2)
    assert declare(tmp_path, first, [1, 2]) == history(tmp_path) and len(history(tmp_path)) == 2, "noted once"
    found = standing(declare(tmp_path, first, [1, 2, 3]))
    assert found["status"] == "before" and "Seeds added after results existed: 3." in found["note"]
    found = standing(declare(tmp_path, other, [1, 2, 3]))
    assert found["status"] == "changed" and "2 fine-tuned models had been judged" in found["note"]
    assert digest_of(first) in found["note"] and digest_of(other) in found["note"]
    assert digest_of(first) in found["earlier"]
    assert "was withdrawn" in standing(declare(tmp_path, None, [1, 2, 3]))["note"]


def test_a_declaration_after_results_says_so(tmp_path):
    judge(tmp_path, 1)
    found = standing(declare(tmp_path, declared(), [1]))
    assert found["status"] == "after" and "read it as exploratory" in found["note"]


@pytest.mark.parametrize(
    ("interval", "p_value", "n_seeds", "decision", "reaches"),
    [
        ([1.0, 9.0], 0.01, 3, "difference", False),
        ([-12.0, -5.5], 0.001, 3, "difference", True),
        ([0.5, 4.9], 0.01, 3, "equivalent", False),
        ([-4.0, 3.0], 0.6, 3, "equivalent", False),
        ([-4.0, 6.0], 0.6, 3, "undecided", False),
        ([1.0, 9.0], 0.06, 3, "undecided", False),
        ([6.0, 9.0], 0.001, 1, "undecided", False),
    ],
)
def test_the_interval_decides(interval, p_value, n_seeds, decision, reaches):
    block = {"interval": interval, "p_value": p_value, "n_seeds": n_seeds}
    assert analysis.decide(block, declared()) == {"decision": decision, "reaches_smallest": reaches}


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """A finished toy study with probes and a declared comparison of lives."""
    folder = tmp_path_factory.mktemp("primary")
    config = load_study(written(folder, fine_tuning=PROBED, primary={**LIFE, "smallest_difference": 20}))
    grid = Grid(config, folder)
    write_data(grid, folder)
    declare(grid.folder, config.primary, config.seeds)
    finish(grid)
    from guardrail.core.files import write_json

    path = write_json(grid.folder / "study_config.json", as_dict(config))
    with pytest.MonkeyPatch.context() as patch:
        paths = write_results(patch, grid, path)
    return grid, path, paths


def test_the_primary_equals_the_rows_of_the_same_comparison(probed):
    grid, _, paths = probed
    result = read_json(paths["study"])
    block = result["primary"]
    (row,) = (r for r in result["survival"]["overall"] if (r["first"], r["second"]) == ("high", "low"))
    assert block["difference"] == pytest.approx(row["difference_percent_of_training"], abs=1e-3)
    assert block["interval"] == pytest.approx(row["interval_percent_of_training"], abs=1e-3)
    assert block["variances"] == pytest.approx(row["variances_percent2"], abs=1e-3)
    assert block["digest"] == digest_of(grid.study.primary) == paths["primary"]["digest"]
    assert block["standing"]["status"] == "before" and paths["primary"]["decision"] == block["decision"]
    assert block["sentence"] in Path(paths["report"]).read_text(encoding="utf-8").replace("&#43;", "+")
    assert digest_of(grid.study.primary) in (grid.folder / "tables" / "primary.md").read_text(encoding="utf-8")


def test_other_outcomes_equal_their_rows_and_another_level_is_narrower(probed):
    grid, _, paths = probed
    from guardrail.study.arms import read_arms
    from guardrail.study.results import Results

    result = read_json(paths["study"])
    arms = read_arms(Results(grid, fake_jobs(grid)), set(grid.cells))
    for outcome, name in (("change", "change"), ("harmful_after", "final")):
        wanted = dataclasses.replace(grid.study.primary, outcome=outcome, alpha=0.05)
        blocks = [
            analysis.analyse_primary(dataclasses.replace(grid.study, primary=one), arms, [], [])
            for one in (wanted, dataclasses.replace(wanted, alpha=0.2))
        ]
        rows = result["statistics"]["overall"]
        (row,) = (r for r in rows if (r["first"], r["second"], r["outcome"]) == ("high", "low", name))
        assert blocks[0]["difference"] == pytest.approx(row["difference_points"], abs=1e-3)
        assert blocks[0]["interval"] == pytest.approx(row["interval_points"], abs=1e-3)
        low, high = blocks[1]["interval"]
        assert blocks[0]["interval"][0] < low < high < blocks[0]["interval"][1]


def test_a_change_after_results_stands_in_the_report(probed, monkeypatch):
    grid, path, paths = probed
    before = digest_of(grid.study.primary)
    config = read_json(path)
    text = path.read_text(encoding="utf-8")
    noted = (grid.folder / "primary.json").read_bytes()
    config["primary"]["smallest_difference"] = 19
    try:
        path.write_text(json.dumps(config), encoding="utf-8")
        found = write_results(monkeypatch, grid, path)
        assert found["primary"]["digest"] != before
        page = Path(paths["report"]).read_text(encoding="utf-8")
        assert "CHANGED" in page and before in page and found["primary"]["digest"] in page
    finally:
        path.write_text(text, encoding="utf-8")
        (grid.folder / "primary.json").write_bytes(noted)
        write_results(monkeypatch, grid, path)


def test_a_part_of_a_study_has_no_primary_result(probed):
    grid, _, _ = probed
    block = analysis.analyse_primary(grid.study, [], [], [])
    assert "no common finished seed" in block["reason"] and "decision" not in block


def test_seeds_are_planned_from_an_earlier_study(probed, tmp_path):
    """By the definition: the fewest seeds whose detectable difference is small enough, from the recorded components."""
    grid, _, paths = probed
    file = Path(paths["study"])
    found = primary_variances(file, grid.study.primary)
    assert "its primary" in found.source
    plan = primary_power(grid.study, 42, grid.folder.parent)
    assert plan["source"] == found.source and earlier_studies(grid.folder.parent, grid.study)[0] == file
    aim = grid.study.primary.smallest_difference
    spreads = {n: found.components.spread(n, 42).detectable() for n in range(2, 101)}
    assert plan["seeds_needed"] == next((n for n, value in spreads.items() if value <= aim), None)
    assert plan["detectable"] == pytest.approx(spreads[len(grid.study.seeds)], abs=0.01)
    other = dataclasses.replace(grid.study.primary, outcome="change")
    assert "its primary" not in primary_variances(file, other).source
    row = next(r for r in read_json(file)["statistics"]["overall"] if r["outcome"] == "change")
    assert dataclasses.asdict(primary_variances(file, other).components) == row["variances_points2"]
    one_task = dataclasses.replace(other, tasks=other.tasks[:1])
    assert "other tasks" in primary_variances(file, one_task).source


def test_no_earlier_study_is_unknown_and_a_wrong_one_is_refused(tmp_path, probed):
    grid, _, _ = probed
    plan = primary_power(grid.study, 140, tmp_path)
    assert plan["source"] == "unknown: no earlier study" and plan["seeds_needed"] is None
    assert "unknown: no earlier study" in "\n".join(power_text(plan))
    bad = tmp_path / "study.json"
    bad.write_text(json.dumps({"cells": [], "study": "x"}))
    with pytest.raises(UserError, match="does not compare high with low in restricted_mean_life"):
        primary_power(grid.study, 140, tmp_path, bad)
    bad.write_text("[]")
    with pytest.raises(UserError, match=r"no study\.json"):
        primary_power(grid.study, 140, tmp_path, bad)
    assert primary_power(study(tmp_path), 140, tmp_path) is None
    assert "none declared" in "\n".join(power_text(None))


def test_components_come_back_as_they_were_put_in():
    rng = np.random.default_rng(0)
    cells = rng.normal(size=(60, 80)) + 2 * rng.normal(size=(60, 1)) + rng.normal(size=(1, 80))
    found = components(cells)
    assert found.seeds == pytest.approx(4, rel=0.5) and found.answers == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("name", ["quickstart", "sandbox_full", "sandbox_survival"])
def test_the_shipped_sandbox_studies_declare_what_they_are_for(name):
    assert load_study(REPOSITORY / "configs" / "studies" / f"{name}.yaml").primary is not None
