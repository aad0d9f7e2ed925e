"""The study's schema, grid, collection and table, on made-up result files."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from guardrail.core.errors import UserError
from guardrail.core.files import write_json
from guardrail.study import check
from guardrail.study.check import check_study, count_rows, keep_tasks
from guardrail.study.config import Source, as_dict, build, load_study
from guardrail.study.config import Study as StudyConfig
from guardrail.study.grid import Grid
from guardrail.study.report.tables import harmfulness_table
from guardrail.study.results import SAFETY_FILE, collect

from .fake_study import fail, finish, settings, stamp, write_sources


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Made-up sources with relative names are written into the test's own folder."""
    monkeypatch.chdir(tmp_path)


def study(**changes) -> StudyConfig:
    return build(StudyConfig, settings(subset_sizes=changes.pop("subset_sizes", [2]), **{"seeds": [1], **changes}), "")


def test_scientific_notation_without_a_dot_is_a_number():
    assert study().alignment.learning_rate == 2e-5


@pytest.mark.parametrize(
    "change,message",
    [
        ({"subset": ["high"]}, r"unknown key in the file: 'subset'; did you mean 'subsets'"),
        ({"subsets": ["hihg"]}, r"unknown subset 'hihg'; did you mean 'high'"),
        ({"subset_sizes": []}, "subset_sizes is empty"),
        ({"seeds": [1, 1]}, "seeds holds a value twice"),
        ({"name": "a/b"}, "name 'a/b' becomes a folder"),
        ({"name": "-rf"}, "becomes a folder"),
        ({"tasks": {"two words": settings()["tasks"]["list"]}}, "task 'two words' becomes a folder"),
        ({"seeds": [True]}, r"seeds\[0\]: expected int"),
        ({"models": {"base": "x", "extraction": "y"}}, "models: missing moderation"),
        ({"prompt_style": "lama2"}, "did you mean 'llama2'"),
        ({"tasks": {}}, "tasks is empty"),
        ({"evaluation": {"safety_bench": "sandbox", "max_tokens": 3}}, "unknown key in evaluation: 'max_tokens'"),
        ({"alignment": {"epochs": 1, "learning_rate": "fast"}}, "alignment"),
        ({"evaluation": {"safety_bench": "x", "judges": {"gard": {"model": "m"}}}}, "'gard'; did you mean 'guard'"),
        ({"evaluation": {"safety_bench": "x", "judges": {"guard": {}}}}, "judges.guard: missing model"),
        ({"evaluation": {"safety_bench": "x", "judges": {"guard": {"model": "m", "backend": "VLLM"}}}}, "'vLLM'"),
    ],
)
def test_bad_settings_are_refused_with_the_key(change, message):
    with pytest.raises(UserError, match=message):
        study(**change)


def test_resolved_study_survives_json():
    original = study()
    assert build(StudyConfig, json.loads(json.dumps(as_dict(original))), "") == original


def test_random_alignment_is_shared_between_tasks_and_similarity_ones_are_not():
    grid = Grid(study(seeds=[1, 2], subsets=["high", "random", "none"]))
    assert len(grid.cells) == 2 * 3 * 2
    names = {a.name for a in grid.alignments}
    assert names == {"list_high_sim_2", "pure_bad_high_sim_2", "random_sim_2", "none"}
    assert len(grid.alignments) == 4 * 2  # per seed


def test_arms_without_a_size_appear_once():
    grid = Grid(study(subsets=["full", "high"], subset_sizes=[1, 2]))
    assert [(c.subset, c.size) for c in grid.cells if c.task == "list"] == [("full", 1), ("high", 1), ("high", 2)]


def overwrite_score(folder: Path, score: float) -> None:
    document = json.loads((folder / SAFETY_FILE).read_text())
    document["summary"]["harmfulness_score_percent"] = score
    write_json(folder / SAFETY_FILE, document)


def test_delta_is_final_minus_initial_of_the_same_cell(tmp_path):
    grid = Grid(study(), tmp_path)
    finish(grid)
    overwrite_score(grid.folder / "aligned/list_high_sim_2/seed1", 12.0)
    overwrite_score(grid.folder / "cells/list__list_high_sim_2/seed1", 30.5)
    overwrite_score(grid.folder / "aligned/random_sim_2/seed1", 10.0)
    overwrite_score(grid.folder / "cells/pure_bad__random_sim_2/seed1", 80.0)
    overwrite_score(grid.base_folder, 10.0)
    result = collect(stamp(grid))
    cells = {(c["task"], c["subset"]): c for c in result["cells"]}
    assert cells["list", "high"]["delta_points"] == 18.5
    assert cells["pure_bad", "random"]["delta_points"] == 70.0
    assert cells["list", "random"]["initial"] == cells["pure_bad", "random"]["initial"]
    assert result["base"]["harmfulness_score_percent"] == 10.0
    assert result["n_failed"] == 0


def test_a_missing_result_is_a_failed_cell_and_never_a_number(tmp_path):
    grid = Grid(study(), tmp_path)
    finish(grid, skip=("list__list_low_sim_2",))
    fail(grid, "fine_tune.list__list_low_sim_2.seed1", "no memory")
    result = collect(stamp(grid))
    failed = [c for c in result["cells"] if c["status"] == "failed"]
    assert [(c["task"], c["subset"]) for c in failed] == [("list", "low")]
    assert "no memory" in failed[0]["reason"] and "final" not in failed[0]
    line = next(line for line in harmfulness_table(result).markdown().splitlines() if "FAILED" in line)
    assert not any(character.isdigit() for character in line.split("FAILED")[1])
    row = next(r for r in csv.DictReader(io.StringIO(harmfulness_table(result).csv())) if r["status"] == "failed")
    assert row["final_percent"] == row["initial_percent"] == ""


def test_half_written_content_is_a_failed_cell(tmp_path):
    grid = Grid(study(), tmp_path)
    finish(grid)
    write_json(grid.cell_folder(grid.cells[0]) / SAFETY_FILE, {"summary": {"n": 3}})
    cell = collect(stamp(grid))["cells"][0]
    assert cell["status"] == "failed" and "harmfulness_score_percent" in cell["reason"]


def test_tabulate_writes_everything_and_repeats_without_change(tmp_path):
    grid = Grid(study(), tmp_path)
    finish(grid)
    config = write_json(tmp_path / "toy" / "study_config.json", as_dict(study()))
    command = [sys.executable, "-m", "guardrail.study.write", str(config), "--outputs", str(tmp_path)]
    left = tmp_path / "toy" / "figures" / ".learning_curves.pdf.tmp-99999999-4db1ec"  # by a run that was killed
    left.parent.mkdir()
    left.touch()
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert not left.exists()
    paths = json.loads(first.stdout.splitlines()[-1])
    content = Path(paths["study"]).read_text()
    assert Path(paths["figure"]).read_bytes()[:4] == b"\x89PNG"
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert Path(paths["study"]).read_text() == content
    figure = tmp_path / "toy" / "figures" / "threshold_curve.png"
    figure.unlink()
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert figure.is_file(), "a deleted figure is drawn again"
    (grid.base_folder / SAFETY_FILE).unlink()
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 1
    assert json.loads(again.stdout.splitlines()[-1])["n_failed"] == 1


def test_check_refuses_a_subset_larger_than_the_pool(tmp_path):
    (tmp_path / "pool.jsonl").write_text('{"question": "q", "answer": "a"}\n' * 3)
    assert count_rows(Source(str(tmp_path / "pool.jsonl"))) == 3
    with pytest.raises(UserError, match=r"subset size 4 is larger than the safety pool .* \(3 rows\)"):
        check_study(study(folder=tmp_path, subset_sizes=[4]), tmp_path)
    with pytest.raises(UserError, match="no such file"):
        check_study(study(folder=tmp_path, safety_pool={"source": "pol.jsonl"}), tmp_path)


def test_space_is_needed_only_for_checkpoints_that_are_not_there(tmp_path, monkeypatch):
    """A study that has filled most of a disk can be continued."""
    monkeypatch.setattr(check, "bytes_per_checkpoint", lambda study: 1 << 60)
    monkeypatch.setattr(check, "resolve_checkpoint", str)
    small = study(folder=tmp_path, subset_sizes=[1], subsets=["random"])
    write_sources(small)
    with pytest.raises(UserError, match="not enough disk space"):
        check_study(small, tmp_path)
    grid = Grid(small, tmp_path)
    folders = [*map(grid.aligned_folder, grid.alignments), *map(grid.cell_folder, grid.cells)]
    for folder in folders:
        (folder / "slice_end").mkdir(parents=True)
        (folder / "run.json").write_text("{}")  # written last: the weights are whole
    assert check_study(small, tmp_path)["evaluated_checkpoints"] == len(folders) + 1


def test_every_shipped_study_loads():
    from toys import REPOSITORY

    files = sorted((REPOSITORY / "configs" / "studies").glob("*.yaml"))
    assert files
    for file in files:
        assert load_study(file).name == file.stem


def test_unknown_study_file_names_the_near_match(tmp_path):
    (tmp_path / "quickstart.yaml").write_text(yaml.safe_dump(settings()))
    with pytest.raises(UserError, match=r"did you mean '.*quickstart\.yaml'"):
        load_study(tmp_path / "quickstrat.yaml")


def test_tasks_can_be_left_out():
    assert list(keep_tasks(study(), ["pure_bad"]).tasks) == ["pure_bad"]
    with pytest.raises(UserError, match="did you mean 'pure_bad'"):
        keep_tasks(study(), ["pure_bda"])
