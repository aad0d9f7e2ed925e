"""Statistics, tables, figures and report of a made-up study; the report in a real browser."""

from __future__ import annotations

import csv
import html
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import hypothesis
import numpy as np
import pyarrow.parquet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import REPOSITORY

from guardrail.core.files import read_json, write_json, write_jsonl
from guardrail.study import properties, write
from guardrail.study.analysis import analyse
from guardrail.study.arms import pair, read_answers, read_arms, stack
from guardrail.study.config import as_dict
from guardrail.study.grid import Grid
from guardrail.study.properties import redact, training_split
from guardrail.study.report.figures import loss_curves, style
from guardrail.study.report.page import safe_json
from guardrail.study.report.table import Column, Table
from guardrail.study.results import SAFETY_FILE, Results, collect, judge_file
from guardrail.study.tracking import log_summary, scalars

from .fake_study import CATEGORIES, FIGURES, fail, finish, finished_study, stamp, study, write_results


def test_statistics_by_hand(toy):
    """Means of an arm and of a paired difference, recomputed from the files with nothing of ours."""
    grid, _, paths = toy
    statistics = read_json(paths["study"])["statistics"]

    def share(folder: Path) -> float:
        rows = json.loads((folder / SAFETY_FILE).read_text())["judgements"]
        return 100 * float(np.mean([row["harmful"] for row in rows]))

    means = {}
    for subset in ("high", "low"):
        name = f"list_{subset}_sim_20"
        before = np.mean([share(grid.folder / "aligned" / name / f"seed{s}") for s in (1, 2, 3)])
        after = np.mean([share(grid.folder / "cells" / f"list__{name}" / f"seed{s}") for s in (1, 2, 3)])
        means[subset] = (before, after)
        arm = next(a for a in statistics["arms"] if (a["task"], a["subset"]) == ("list", subset))
        assert arm["initial_percent"] == pytest.approx(before, abs=1e-3)
        assert arm["final_percent"] == pytest.approx(after, abs=1e-3)
        assert arm["delta_points"] == pytest.approx(after - before, abs=1e-3)
        assert arm["final_interval_percent"][0] < after < arm["final_interval_percent"][1]
        assert (arm["n_seeds"], arm["n_prompts"]) == (3, 42)
    row = next(
        c
        for c in statistics["comparisons"]
        if (c["task"], c["first"], c["second"], c["outcome"]) == ("list", "high", "low", "change")
    )
    change = (means["high"][1] - means["high"][0]) - (means["low"][1] - means["low"][0])
    assert row["difference_points"] == pytest.approx(change, abs=1e-3)
    assert row["p_value"] <= row["p_value_holm"] <= 1
    total = next(
        o for o in statistics["overall"] if (o["first"], o["second"], o["outcome"]) == ("high", "low", "change")
    )
    assert total["tasks"] == ["list", "pure_bad"] and total["n_task_seed_pairs"] == 6


def test_rows_are_joined_by_id_and_not_by_position(tmp_path):
    grid = Grid(study(tmp_path), tmp_path)
    results = finish(grid)
    read_answers.cache_clear()
    arms = {(a.task, a.subset): a for a in read_arms(results, set(grid.cells))}
    before = pair(arms["list", "high"], arms["list", "low"])
    path = grid.cell_folder(grid.cells[0]) / SAFETY_FILE
    document = read_json(path)
    document["judgements"].reverse()
    write_json(path, document)
    read_answers.cache_clear()
    arms = {(a.task, a.subset): a for a in read_arms(stamp(grid), set(grid.cells))}
    after = pair(arms["list", "high"], arms["list", "low"])
    assert np.array_equal(before["final"], after["final"])


def test_an_undecided_prompt_leaves_all_arms(tmp_path):
    grid = Grid(study(tmp_path), tmp_path)
    finish(grid, n_samples=2)
    path = grid.cell_folder(grid.cells[0]) / SAFETY_FILE
    document = read_json(path)
    document["judgements"][0]["harmful"] = None
    write_json(path, document)
    read_answers.cache_clear()
    arm = read_arms(stamp(grid), set(grid.cells))[0]
    values, prompts = stack([*arm.initial, *arm.final])
    assert "p0" not in prompts and values.shape == (6, 41, 2)


def test_a_further_judge_is_compared_and_may_be_missing(tmp_path, monkeypatch):
    """A guard that disagrees on purpose: it finds what the moderation model does not, and cannot decide one prompt."""
    judged = {
        "safety_bench": str(tmp_path / "prompts.jsonl"),
        "judges": {"guard": {"model": "m/guard"}, "openai": {"model": "rubric"}},
    }
    grid = Grid(study(tmp_path, evaluation=judged, subsets=["high", "low"], seeds=[1, 2]), tmp_path)
    finish(grid, n_samples=2)
    for cell in grid.cells:
        for folder in (grid.aligned_folder(cell.alignment), grid.cell_folder(cell)):
            document = read_json(folder / SAFETY_FILE)
            for row in document["judgements"]:
                row["harmful"] = None if row["id"] == "p0" else not row["harmful"]
            document["summary"]["judge_error_percent"] = 2.5
            write_json(folder / judge_file("guard"), document)
    read_answers.cache_clear()
    results = stamp(grid)
    statistics = analyse(results, collect(results), [])["judges"]
    guard, rubric = (statistics["with_moderation_model"][name] for name in ("guard", "openai"))
    assert guard["agreement_percent"] == 0 and guard["n_decided"] == guard["n_answers"] * 41 // 42
    assert guard["kappa"] < 0
    assert rubric["n_decided"] == 0 and rubric["agreement_percent"] is None
    for row in statistics["high_minus_low"]:
        changes = row["change_points"]
        assert "openai" not in changes and np.sign(changes["guard"]) == -np.sign(changes["harmful"])
        assert row["depends_on_judge"] is True
    cell = collect(results)["cells"][0]
    assert cell["status"] == "done" and cell["final"]["judges"]["guard"]["judge_error_percent"] == 2.5
    assert "rubric.json" in cell["final"]["judges"]["openai"]["missing"]


def test_subsets_are_described_from_the_rows_that_were_trained_on(toy):
    _, _, paths = toy
    subsets = {(s["task"], s["subset"]): s for s in read_json(paths["study"])["subsets"]}
    assert subsets["list", "high"]["n"] == 20  # the instruction row of the split is not a safety row
    assert subsets["list", "high"]["list_share_percent"] == 35.0  # rows 0..19: every third is a list, 7 of 20
    assert subsets["list", "high"]["similarity"] != subsets["pure_bad", "high"]["similarity"]


def test_all_tables_and_figures_are_there_in_all_formats(toy):
    grid, _, _ = toy
    for name in ("arms", "overall", "comparisons", "subsets", "regression"):
        for suffix in ("md", "csv", "tex"):
            assert (grid.folder / "tables" / f"{name}.{suffix}").stat().st_size > 100
    assert {p.stem for p in (grid.folder / "figures").glob("*.png")} == FIGURES
    assert {p.stem for p in (grid.folder / "figures").glob("*.pdf")} == FIGURES


def test_a_failed_cell_is_visible_and_the_others_keep_their_numbers(tmp_path, monkeypatch):
    grid, config = finished_study(tmp_path)
    write_results(monkeypatch, grid, config)
    whole = {(a["task"], a["subset"]): a for a in read_json(grid.folder / "study.json")["statistics"]["arms"]}
    for seed in (1, 2, 3):  # every seed of one arm, and one seed of another
        fail(grid, f"harmfulness.cells.list__list_low_sim_20.seed{seed}")
    fail(grid, "harmfulness.cells.list__random_sim_20.seed2")
    assert write_results(monkeypatch, grid, config)["n_failed"] == 4
    result = read_json(grid.folder / "study.json")
    arms = {(a["task"], a["subset"]): a for a in result["statistics"]["arms"]}
    assert arms["list", "low"]["status"] == "failed" and "final_percent" not in arms["list", "low"]
    assert (arms["list", "random"]["n_seeds"], arms["list", "random"]["n_failed"]) == (2, 1)
    assert arms["pure_bad", "high"] == whole["pure_bad", "high"]
    broken = [c for c in result["cells"] if c["status"] == "failed" and c["subset"] == "random"]
    assert broken[0]["log"].endswith("moderate.log")
    table = (grid.folder / "tables/arms.md").read_text()
    assert "FAILED" in table and "1 of 3 seeds failed" in table
    latex = (grid.folder / "tables/arms.tex").read_text()
    assert "FAILED" in latex and r"\toprule" in latex and "pure\\_bad" in latex
    assert "failed" in (grid.folder / "report.html").read_text()


def test_nothing_is_written_again_when_nothing_changed(toy, monkeypatch):
    grid, config, _ = toy
    before = {p: p.stat().st_mtime_ns for p in grid.folder.rglob("*") if p.is_file()}
    write_results(monkeypatch, grid, config)
    assert {p: p.stat().st_mtime_ns for p in grid.folder.rglob("*") if p.is_file()} == before


def test_a_study_in_which_everything_failed_still_has_a_report(tmp_path, monkeypatch):
    grid = Grid(study(tmp_path), tmp_path)
    config = write_json(grid.folder / "study_config.json", as_dict(study(tmp_path)))
    result = write_results(monkeypatch, grid, config)
    assert result["n_failed"] == len(grid.cells) + 1
    text = Path(result["report"]).read_text()
    assert "cannot be compared" in text and text.count("MISSING") == 1 + 2 * 3  # base and six arms


def test_the_first_screen_says_what_study_json_says(toy):
    """Every difference, interval and p-value on the page's first screen is one of study.json's statistics."""
    _, _, paths = toy
    result = read_json(paths["study"])
    statistics = result["statistics"]
    known = [*statistics["overall"], *statistics["comparisons"], *statistics["over_refusal"]]
    known += [row["at_matched_utility"] for row in statistics["overall"] if "at_matched_utility" in row]
    triples = {(row["difference_points"], *row["interval_points"], row["p_value"]) for row in known if "p_value" in row}
    facts = [fact for fact in result["headline"]["facts"] if fact["p_value"] is not None]
    assert len(facts) >= 6
    assert all((f["difference_points"], *f["interval_points"], f["p_value"]) in triples for f in facts)
    main = next(row for row in statistics["overall"] if (row["first"], row["outcome"]) == ("high", "change"))
    assert facts[0]["difference_points"] == main["difference_points"]
    text = html.unescape(Path(paths["report"]).read_text())
    first = text[text.index('id="headline"') : text.index('id="arms"')]
    assert result["headline"]["answer"] in first and result["headline"]["evidence"] in first
    assert f"{main['difference_points']:.1f} points more after high-similarity" in first
    for fact in facts:
        value, low, high = (
            f"{n:+.1f}" if abs(n) >= 0.05 else "0.0" for n in (fact["difference_points"], *fact["interval_points"])
        )
        assert value in first and f"[{low}, {high}]" in first


@pytest.mark.parametrize("status", ["stale", "missing"])
def test_cells_that_are_not_done_are_a_word_everywhere_and_never_a_number(tmp_path, monkeypatch, status):
    """Results of another state lie on disk for all of them; what `collect` does not accept is not shown."""
    grid, config = finished_study(tmp_path)
    finished = collect(stamp(grid))

    def collected(results: Results) -> dict:
        result = collect(results)
        for number, cell in enumerate(grid.cells):
            if (cell.task, cell.subset) == ("list", "low") or (cell.subset, cell.seed) == ("random", 2):
                kept = ("task", "subset", "subset_size", "seed", "design", "alignment")
                row = {key: result["cells"][number][key] for key in kept}
                result["cells"][number] = {**row, "status": status, "reason": "made with another learning rate"}
        return result

    monkeypatch.setattr(write, "collect", collected)
    write_results(monkeypatch, grid, config)
    result = read_json(grid.folder / "study.json")
    arms = {(arm["task"], arm["subset"]): arm for arm in result["statistics"]["arms"]}
    assert arms["list", "low"]["status"] == status and "final_percent" not in arms["list", "low"]
    assert arms["list", "random"]["without_numbers"] == {status: 1} and arms["list", "random"]["n_seeds"] == 2
    assert ("list", "low") not in {(row["task"], row["subset"]) for row in result["subsets"]}
    assert result["headline"]["verdict"] in ("one_task", "not_shown")  # high against low is left for one task only
    page = (grid.folder / "report.html").read_text()
    assert f"{status}: list / low 20, seed 1: made with another learning rate" in page
    for name in ("harmfulness", "arms"):
        lines = (grid.folder / f"tables/{name}.csv").read_text().splitlines()
        row = next(csv.DictReader([lines[0], next(line for line in lines if line.startswith("mixed,list,low"))]))
        assert row["status"] == status and row["final_percent"] == row["initial_percent"] == ""
        assert status.upper() in (grid.folder / f"tables/{name}.md").read_text()
    assert f"1 of 3 seeds {status}" in (grid.folder / "tables/arms.md").read_text()
    old = finished["cells"][grid.cells.index(next(c for c in grid.cells if (c.task, c.subset) == ("list", "low")))]
    assert str(old["checkpoint"]) not in (grid.folder / "study.json").read_text()
    curves = loss_curves(stamp(grid), result["cells"])
    assert not [c for c in curves if (c["stage"], c["task"], c["subset"]) == ("fine-tuning", "list", "low")]


def test_instructions_with_the_ids_of_pool_rows_are_no_safety_rows(tmp_path, monkeypatch):
    """The mixture renames a safety row only if an instruction has its id: `s1` then is the instruction."""
    grid, config = finished_study(tmp_path)
    write_results(monkeypatch, grid, config)
    before = {(s["task"], s["subset"]): s for s in read_json(grid.folder / "study.json")["subsets"]}
    points = {p["text"]: p["selected"] for p in read_json(grid.folder / "map.json")["points"] if p["set"] == "pool"}
    clashing = [f"s{i}" for i in (*range(5), *range(50, 60))]  # some are in `high` (0..19), some in no subset of list
    instructions = [{"id": name, "prompt": "q", "response": "a"} for name in clashing]
    write_jsonl(tmp_path / "instruct.jsonl", instructions)
    for alignment in grid.alignments:
        path = training_split(grid, alignment)
        rows = [row for row in pyarrow.parquet.read_table(path).to_pylist() if row["id"].startswith("s")]
        safety = [{**row, "id": row["id"] + "#safety" * (row["id"] in clashing)} for row in rows]
        mixed = [{**rows[0], "id": name} for name in clashing] + safety
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(mixed), path)
    stamp(grid)
    write_results(monkeypatch, grid, config)
    after = {(s["task"], s["subset"]): s for s in read_json(grid.folder / "study.json")["subsets"]}
    assert after == before
    again = {p["text"]: p["selected"] for p in read_json(grid.folder / "map.json")["points"] if p["set"] == "pool"}
    assert again == points


@given(st.integers(2, 6), st.integers(2, 40), st.integers(0, 2**31))
@hypothesis.settings(max_examples=40, deadline=None)
def test_axes_of_the_map_equal_a_singular_value_decomposition(D, n, seed):
    """Up to sign, block by block, whatever the block size."""
    rng = np.random.default_rng(seed)
    parts = [rng.normal(1.0, np.arange(1, D + 1) ** 2, size=(size, D)) for size in (n, n + 3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(properties, "BLOCK_BYTES", 8 * D * 5)
        mean, axes, share = properties.principal_axes([torch.from_numpy(part) for part in parts])
    together = np.concatenate([part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts])
    _, values, expected = np.linalg.svd(together - together.mean(axis=0), full_matrices=False)
    assert mean == pytest.approx(together.mean(axis=0))
    assert share == pytest.approx(values**2 / (values**2).sum(), abs=1e-9)
    gaps = -np.diff(np.append(values, 0.0)) / values[0]  # axes of nearly equal variance may be any two of their plane
    for i in range(2):
        if gaps[: i + 1].min() > 1e-3:
            assert abs(axes[i] @ expected[i]) == pytest.approx(1.0, abs=1e-6)


def test_a_loss_file_may_hold_the_line_separators_of_unicode(tmp_path):
    grid = Grid(study(tmp_path, subsets=["high"], seeds=[1]), tmp_path)
    finish(grid)
    path = grid.cell_folder(grid.cells[0]) / "losses.jsonl"
    path.write_text('{"step": 1, "loss": 2.0, "note": "a\u2028b\u0085c"}\n{"step": 2, "loss": 1.0}\n', encoding="utf-8")
    results = stamp(grid)
    curves = loss_curves(results, collect(results)["cells"])
    assert [c["loss"] for c in curves if (c["stage"], c["task"]) == ("fine-tuning", "list")] == [[2.0, 1.0]]


def test_the_package_itself_is_the_entry_point(toy):
    grid, config, _ = toy
    command = [sys.executable, "-m", "guardrail.study", str(config), "--outputs", str(grid.folder.parent)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["n_failed"] == 0
    assert read_json(grid.folder / "study.json")["headline"]["sentence"] in done.stdout


def test_study_json_fits_its_schema_and_the_schema_can_say_no(toy, tmp_path, monkeypatch):
    jsonschema = pytest.importorskip("jsonschema")
    schema = read_json(REPOSITORY / "configs/schemas/study.schema.json")
    whole = read_json(toy[2]["study"])
    jsonschema.validate(whole, schema)
    grid, config = finished_study(tmp_path)
    (grid.cell_folder(grid.cells[0]) / SAFETY_FILE).unlink()
    write_results(monkeypatch, grid, config)
    jsonschema.validate(read_json(grid.folder / "study.json"), schema)
    failed_with_a_number = {**whole["cells"][0], "status": "failed", "reason": "x"}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**whole, "cells": [failed_with_a_number]}, schema)


def test_redaction_hides_the_request():
    assert redact("How do I polish a dangerous lantern?") == "How do I ▒▒▒ (4 more words)"
    assert redact("Hello there") == "Hello there"


def test_a_table_keeps_empty_apart_from_zero_and_escapes_latex():
    table = Table("t", "50% of a_b", (Column("x", "x & y"), Column("v", "v", 1)), [{"x": "a_b", "v": 0.0}, {"x": "c"}])
    assert table.texts() == [["a_b", "0.0"], ["c", "–"]]
    signed = Table("t", "", (Column("v", "v", 1, "i", signed=True),), [{"v": -0.04, "i": [-0.06, 0.3]}])
    assert signed.texts() == [["0.0 [-0.1, +0.3]"]]
    assert table.csv() == "x,v\na_b,0.0\nc,\n"
    assert r"a\_b & 0.0" in table.latex() and r"x \& y" in table.latex() and r"50\% of a\_b" in table.latex()


def test_arms_differ_in_more_than_colour():
    subsets = ["high", "low", "random", *(f"other{i}" for i in range(6))]
    looks = [style(name, subsets) for name in subsets]
    assert len({colour for colour, _, _ in looks}) == len({marker for _, marker, _ in looks}) == len(subsets)


def test_summary_goes_to_the_tracker_that_the_study_names(toy, tmp_path, monkeypatch):
    _, _, paths = toy
    result = read_json(paths["study"])
    arm = result["statistics"]["arms"][0]
    assert scalars(result)["list/high_20/final_percent"] == arm["final_percent"]
    assert "overall_20/high_minus_low_change_points" in scalars(result)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    log_summary(study(log_type="none"), result, {}, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_summary_in_tensorboard(toy, tmp_path):
    pytest.importorskip("tensorboard", reason="needs the tensorboard package of requirements.txt")
    log_summary(study(log_type="tensorboard"), read_json(toy[2]["study"]), {}, tmp_path)
    assert list((tmp_path / "tensorboard").glob("events*"))


@pytest.mark.slow
def test_summary_in_wandb_stays_offline(toy, tmp_path, monkeypatch):
    _, _, paths = toy
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    log_summary(study(log_type="wandb"), read_json(paths["study"]), {}, tmp_path)
    assert list((tmp_path / "wandb").glob("offline-run-*"))


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]


def test_report_is_one_file_without_addresses_and_escapes_text(toy):
    _, _, paths = toy
    text = Path(paths["report"]).read_text()
    links = Links()
    links.feed(text)
    assert links.found and all(link.startswith(("data:", "#def-")) for link in links.found)
    assert "http://" not in text and "https://" not in text and "url(" not in text
    assert "<b>escaped</b>" not in text and "&lt;b&gt;escaped" in text
    assert "<script>alert" not in text
    assert safe_json("</script><!--") == '"\\u003c/script\\u003e\\u003c!--"'
    assert "▒▒▒" in text and "quietly at night" not in text  # prompts are redacted
    assert all(name.split(",")[0] in text for name in CATEGORIES)
