"""What moves a result: seeds, prompts and machines by hand; and the page says what every number means."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import REPOSITORY

from guardrail.core.files import read_json
from guardrail.study.grid import MACHINE_FILE, SAFETY_FILE
from guardrail.study.noise import key_of, machine_values, pooled
from guardrail.study.report.definitions import COLUMNS, DEFINITIONS, FIGURES
from guardrail.study.report.primary import sorted_comparisons
from guardrail.study.report.tables import study_tables
from guardrail.study.results import Results

from .fake_study import fake_jobs, write_results


@pytest.fixture(scope="module")
def benchmark():
    place = REPOSITORY / "benchmarks" / "machine_noise.py"
    spec = importlib.util.spec_from_file_location("machine_noise", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of(result: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in result["noise"] if all(row[key] == value for key, value in wanted.items())]


def test_seeds_and_prompts_by_hand(toy):
    grid, _, paths = toy
    (row,) = rows_of(read_json(paths["study"]), task="list", subset="high", outcome="harmful_after")
    cells = [cell for cell in grid.cells if (cell.task, cell.subset) == ("list", "high")]
    flags = []
    for cell in cells:
        judged = read_json(grid.cell_folder(cell) / SAFETY_FILE)["judgements"]
        flags.append([100.0 * row["harmful"] for row in sorted(judged, key=lambda row: row["id"])])
    values = np.array(flags)
    assert row["sd_seeds"] == pytest.approx(values.mean(axis=1).std(ddof=1), abs=1e-3)
    within = [one.var(ddof=1) / len(one) for one in values]
    assert row["sd_prompts"] == pytest.approx(np.sqrt(np.mean(within)), abs=1e-3)
    assert row["sd_machine"] is None and row["n_seeds"] == len(cells)


def test_machines_are_pooled_over_cells():
    assert pooled([[1.0, 3.0], [10.0, 10.0]]) == pytest.approx(1.0)  # variances 2 and 0
    assert pooled([[5.0, 5.0, 5.0]]) == 0.0


def test_a_machine_counts_only_for_cells_as_they_are_now(toy, benchmark, monkeypatch):
    """Collected from four runs of the same study, shown in the tables, and gone when the cell is another one."""
    grid, config, paths = toy
    results = Results(grid, fake_jobs(grid))
    result = read_json(paths["study"])
    seed = grid.study.seeds[0]
    runs = {}
    for number, name in enumerate(map(benchmark.name_of, benchmark.MACHINES)):
        cells = [json.loads(json.dumps(cell)) for cell in result["cells"] if cell["seed"] == seed]
        for cell in cells:
            cell["delta_points"] = float(number)
        runs[name] = {"cells": cells}
    record = benchmark.collect(results, runs)
    assert list(record["machines"]) == ["default_1", "default_2", "avx2_1", "avx2_2"]
    assert {cell["seed"] for cell in record["cells"]} == {seed}
    file = grid.folder / MACHINE_FILE
    try:
        file.write_text(json.dumps(record))
        write_results(monkeypatch, grid, config)
        (row,) = rows_of(read_json(paths["study"]), task="list", subset="high", outcome="change")
        assert row["sd_machine"] == pytest.approx(np.std([0, 1, 2, 3], ddof=1), abs=1e-3) and row["n_machines"] == 4
        assert "1.3" in (grid.folder / "tables" / "noise.md").read_text(encoding="utf-8")
        for cell in record["cells"]:
            cell["key"] = "another"
        file.write_text(json.dumps(record))
        assert machine_values(results) == {}
    finally:
        file.unlink()
        write_results(monkeypatch, grid, config)
    assert (
        key_of(results, grid.cells[0])
        == fake_jobs(grid)[f"fine_tune.{grid.cells[0].name}.seed{seed}"].products[0].key.value
    )


def test_what_lies_before_the_fine_tunings_is_copied_once(benchmark, tmp_path):
    source, target = tmp_path / "study", tmp_path / "copy"
    for name in ("aligned/a", "cells/c", "records/align.a", "records/fine_tune.c.seed1", "records/utility.cells.c"):
        (source / name).mkdir(parents=True)
        (source / name / "x.json").write_text("{}")
    benchmark.copy_upstream(source, target)
    found = sorted(str(path.relative_to(target)) for path in target.rglob("x.json"))
    assert found == ["aligned/a/x.json", "records/align.a/x.json"]
    (target / "aligned" / "a" / "x.json").write_text("[]")
    benchmark.copy_upstream(source, target)
    assert (target / "aligned" / "a" / "x.json").read_text() == "[]", "what is there is used"


def test_every_number_has_its_definition_one_click_away(toy):
    _, _, paths = toy
    page = Path(paths["report"]).read_text(encoding="utf-8")
    defined = set(re.findall(r'id="def-([a-z-]+)"', page))
    assert defined == set(DEFINITIONS) >= set(COLUMNS.values())
    assert all(key in defined for names in FIGURES.values() for key in names)
    assert set(re.findall(r'href="#def-([a-z-]+)"', page)) <= defined
    result = read_json(paths["study"])
    numbers = {
        column.key for table in study_tables(result) for column in table.columns if column.title and column.measured
    }
    assert numbers and not numbers - set(COLUMNS)
    for entry in DEFINITIONS.values():
        assert (REPOSITORY / "docs" / f"{entry.page}.md").is_file()


def test_comparisons_are_folded_and_sorted(toy):
    _, _, paths = toy
    page = Path(paths["report"]).read_text(encoding="utf-8")
    before = page[: page.index('id="table-overall"')]
    assert before.count("<details>") > before.count("</details>"), "folded"
    rows = read_json(paths["study"])["statistics"]["overall"]
    declared = {"declared": {"comparison": ["high", "random"]}}
    found = sorted_comparisons(rows, declared)
    assert len(found) == len(rows) and (found[0]["first"], found[0]["second"]) == ("high", "random")
    rest = [row for row in found if (row["first"], row["second"]) != ("high", "random") and row["outcome"] == "change"]
    assert [row["p_value"] for row in rest] == sorted(row["p_value"] for row in rest)


def test_without_a_declaration_all_is_exploratory(toy):
    _, _, paths = toy
    page = Path(paths["report"]).read_text(encoding="utf-8")
    assert "No primary comparison was declared." in page and 'id="primary"' not in page
