"""A bundle re-makes the study without sources, models or texts, and no text gets into it."""

from __future__ import annotations

import json
import shutil
import zipfile

import pytest

from guardrail.core.errors import UserError
from guardrail.core.files import read_json, write_json
from guardrail.study import export, write
from guardrail.study.dag import make_jobs
from guardrail.study.grid import SAFETY_FILE
from guardrail.study.schedule import write_schedule
from guardrail.study.training_jobs import OUR_TRAINER

from .fake_study import finished_study, stamp, write_results

CANARY = "kettle-canary-7391"
SAME = ("base", "cells", "subsets", "statistics", "survival", "headline", "designs", "n_failed")


def plant(grid):
    """Texts where results hold texts: questions and answers of a judge, a server's error, a config with a place."""
    for cell in grid.cells:
        folder = grid.cell_folder(cell)
        content = read_json(folder / SAFETY_FILE)
        for row in content["judgements"]:
            row |= {"question": CANARY, "explanation": [CANARY], "error": None}
        content["summary"]["harmful_means"] = CANARY
        content["run"] = {"stage": "harmfulness", "n": 42, "config": {"data_path": f"/home/{CANARY}"}}
        write_json(folder / SAFETY_FILE, content)
        write_json(folder / "evaluation/safety/results.json", {"results": [{"question": CANARY, "completion": CANARY}]})
        record = {"training_sec": 3.5, "config": {"output_dir": f"/home/{CANARY}"}, "dropped_ids": [CANARY]}
        write_json(folder / "run.json", {"summary": {"output_dir": CANARY}, "run": record})


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundled")
    probes = {"epochs": 1, "learning_rate": 1e-3, "per_device_train_batch_size": 4, "probes": 7}
    grid, config = finished_study(folder, subsets=["high", "low"], fine_tuning=probes)
    plant(grid)
    stamp(grid)
    write_schedule(grid, make_jobs(grid, OUR_TRAINER), [])
    patch = pytest.MonkeyPatch()
    try:
        write_results(patch, grid, config)
    finally:
        patch.undo()
    out = folder / "toy.zip"
    summary = export.main([str(grid.folder), "--out", str(out)])
    return grid, out, summary


def test_no_text_is_in_a_bundle(bundled):
    _, out, summary = bundled
    with zipfile.ZipFile(out) as file:
        names = file.namelist()
        assert len(names) == summary["n_files"] and summary["n_results"] > 20
        for name in names:
            assert CANARY.encode() not in file.read(name), name
        assert not any(name.endswith((".parquet", ".safetensors", ".pt", "results.json", ".log")) for name in names)
        rows = json.loads(file.read(f"toy/cells/list__list_high_sim_20/seed1/{SAFETY_FILE}"))["judgements"]
        assert {"id", "sample", "harmful", "max_probability", "outcome", "category"} <= set(rows[0])
        run = json.loads(file.read("toy/cells/list__list_high_sim_20/seed1/run.json"))["run"]
        assert run == {"training_sec": 3.5}


def test_a_bundle_re_makes_the_study_without_its_sources(bundled, tmp_path, monkeypatch):
    grid, out, _ = bundled
    with zipfile.ZipFile(out) as file:
        file.extractall(tmp_path)
    hidden = grid.folder.parent / "hidden"
    hidden.mkdir()
    for path in grid.folder.parent.glob("*.jsonl"):
        shutil.move(path, hidden / path.name)
    try:
        arguments = ["write", str(tmp_path / "toy/study_config.json"), "--outputs", str(tmp_path), "--bundle"]
        monkeypatch.setattr("sys.argv", arguments)
        assert write.main()["n_failed"] == 0
    finally:
        for path in hidden.glob("*"):
            shutil.move(path, grid.folder.parent / path.name)
    before, after = (read_json(folder / "study.json") for folder in (grid.folder, tmp_path / "toy"))
    for name in SAME:
        assert clean(before[name]) == clean(after[name]), name
    assert (tmp_path / "toy/report.html").is_file()


def clean(block):
    """Without the places of checkpoints, which are the folder's."""
    if isinstance(block, dict):
        return {key: clean(value) for key, value in block.items() if key != "checkpoint"}
    return [clean(item) for item in block] if isinstance(block, list) else block


def test_the_same_study_gives_the_same_bytes_and_a_changed_file_of_a_bundle_shows(bundled, tmp_path, monkeypatch):
    grid, out, _ = bundled
    export.export(grid.folder, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == out.read_bytes()
    with zipfile.ZipFile(out) as file:
        file.extractall(tmp_path)
    path = tmp_path / "toy/cells/list__list_high_sim_20/seed1" / SAFETY_FILE
    content = read_json(path)
    content["judgements"][0]["harmful"] = not content["judgements"][0]["harmful"]
    write_json(path, content)
    monkeypatch.setattr(
        "sys.argv", ["write", str(tmp_path / "toy/study_config.json"), "--outputs", str(tmp_path), "--bundle"]
    )
    assert write.main()["n_failed"] == 1
    assert "was changed" in (tmp_path / "toy/study.json").read_text(encoding="utf-8")


def test_what_cannot_be_exported_is_refused(bundled, tmp_path):
    grid, _, _ = bundled
    for argv, told in (
        ([str(tmp_path)], "holds no study that has run"),
        ([str(grid.folder), "--out", "a.tar"], r"is no \.zip file"),
    ):
        with pytest.raises(UserError, match=told):
            export.main(argv)
