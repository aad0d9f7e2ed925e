"""Ladders of doses: how a task expands, what decides a key, the numbers of a made-up study, tables, figures, page."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.core.files import read_json, write_jsonl
from guardrail.data.dose import make_doses
from guardrail.study.check import check_study, keep_tasks
from guardrail.study.config import Study, as_dict, build
from guardrail.study.doses import dose_response
from guardrail.study.grid import SAFETY_FILE, Grid
from guardrail.study.processes import make_processes
from guardrail.study.results import Results

from .fake_study import HOME, fake_jobs, finished_study, settings, stamp, write_results, write_sources

PAIR = (("high", "low", "similarity as it comes"),)
PERCENTS = [0, 1, 2, 5, 10, 20, 50, 100]


def tasks(folder: Path | str = HOME.name, **dose: Any) -> dict[str, Any]:
    """A ladder in `list`, `list` itself, and `long`: the same rows for ten epochs from the same aligned models."""
    found = settings(folder)["tasks"]
    ladder = copy.deepcopy(found["list"])
    ladder["dose"] = {"harmful": dict(found["pure_bad"]["train"]), "rows": 100, "percents": PERCENTS, **dose}
    return {
        "mild": ladder,
        "list": found["list"],
        "long": {**copy.deepcopy(found["list"]), "aligned_as": "list", "epochs": 10},
    }


def study(folder: Path | str = HOME.name, **changes: Any) -> Study:
    return build(Study, settings(folder, **{"tasks": tasks(folder), **changes}), "")


@pytest.fixture(scope="module")
def dosed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dosed")
    probes = {"epochs": 1, "learning_rate": "2e-5", "per_device_train_batch_size": 8, "probes": 7}
    grid, config = finished_study(folder, tasks=tasks(folder), subsets=["high", "low"], fine_tuning=probes)
    with pytest.MonkeyPatch.context() as patch:
        paths = write_results(patch, grid, config)
    return grid, paths, config


def test_a_ladder_becomes_a_task_per_dose() -> None:
    found = study()
    assert list(found.tasks) == [*(f"mild_dose{p}" for p in PERCENTS), "list", "long"]
    assert build(Study, as_dict(found), "") == found  # the resolved file is read again by every later step
    assert set(found.anchors) == {"mild", "list"} and set(found.utilities) == {"mild", "list", "long"}
    assert found.tuning("long").epochs == 10 and found.tuning("list") is found.fine_tuning
    cells = [cell for cell in Grid(found).cells if cell.subset == "high" and cell.seed == 1]
    assert {cell.alignment.name for cell in cells} == {"mild_high_sim_20", "list_high_sim_20"}
    assert len({cell.name for cell in cells}) == len(cells)


def test_parts_of_a_study_keep_their_alignment() -> None:
    whole = study()
    ladder = keep_tasks(whole, ["mild"])
    assert list(ladder.tasks) == [f"mild_dose{p}" for p in PERCENTS]
    assert list(keep_tasks(whole, ["mild_dose10", "long"]).tasks) == ["mild_dose10", "long"]
    alone = keep_tasks(whole, ["long"])  # its subsets are still those of `list`, under that name
    assert alone.anchors == {"list": whole.tasks["list"].train}
    with pytest.raises(UserError, match="did you mean 'mild'"):
        keep_tasks(whole, ["milt"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mild": {"dose": {"rows": 20}}}, "1% of 20 rows has no harmful row; give at least 50 rows"),
        ({"mild": {"dose": {"percents": [0, 101]}}}, "numbers from 0 to 100"),
        ({"mild": {"dose": {"percents": [5, 5]}}}, "twice"),
        ({"mild": {"dose": {"percent": [5]}}}, "did you mean 'percents'"),
        ({"long": {"aligned_as": "lisst"}}, "did you mean 'list'"),
        ({"long": {"epochs": 0}}, "epochs of a task must be positive"),
        ({"long": {"anchors": {"source": "elsewhere"}}}, "selected for other rows already"),
    ],
)
def test_what_is_refused(change, message) -> None:
    given = tasks()
    for name, block in change.items():
        for key, value in block.items():
            given[name][key] = {**given[name].get(key, {}), **value} if isinstance(value, dict) else value
    with pytest.raises(UserError, match=message) as error:
        study(tasks=given)
    assert "\n" not in str(error.value)


def test_a_name_that_is_a_dose_too_is_refused() -> None:
    given = tasks()
    given["mild_dose5"] = given.pop("long")
    with pytest.raises(UserError, match="a dose of the ladder mild"):
        study(tasks=given)


def test_rows_that_are_too_few_are_found_before_anything_runs(tmp_path) -> None:
    found = study(tmp_path, subset_sizes=[1])
    write_sources(found)
    for name in ("base", "chat", "mod"):
        (tmp_path / "m" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=r"tasks\.mild_dose0: .* needs 100 benign rows, there are 1") as error:
        check_study(found, tmp_path)
    assert "\n" not in str(error.value)


def keys(folder: Path, **dose: Any) -> dict[tuple[str, str], str]:
    found = study(folder, tasks=tasks(folder, **dose))
    write_sources(found)
    jobs = fake_jobs(Grid(found, folder))
    return {(name, product.name): product.key.value for name, job in jobs.items() for product in job.products}


def test_a_key_holds_what_decides_a_dose_and_no_other_dose(tmp_path) -> None:
    before = keys(tmp_path)
    fewer = keys(tmp_path, percents=[0, 5, 50])
    assert fewer.items() < before.items()  # a dose more or less leaves the others done
    larger, same_rows = keys(tmp_path, rows=200), keys(tmp_path, seed=7)
    touched = {name for name, _ in before if before[name, _] != larger.get((name, _))}
    assert touched and all("mild_dose" in name for name in touched)
    assert {name.split(".")[0] for name in touched} >= {"dose", "fine_tune", "harmfulness"}
    drawn = {name for name, _ in same_rows if name.startswith("dose.")}
    assert drawn == {f"dose.mild_dose{p}.seed7" for p in PERCENTS}  # one draw for all training seeds
    write_jsonl(tmp_path / "pure_bad.jsonl", [{"id": "b", "prompt": "Name a lamp.", "response": "The Moon."}])
    after = keys(tmp_path)
    assert {name for name, _ in before if before[name, _] != after[name, _]} == touched
    file, dose = "pure_bad.jsonl", [key for key in before if key[0] == "dose.mild_dose5.seed1"]
    assert dose and (tmp_path / file).is_file()


def test_the_job_makes_the_set_that_the_training_reads(tmp_path, monkeypatch) -> None:
    found = study(tmp_path)
    rows = [{"id": f"r{i}", "prompt": f"q{i}", "response": "a"} for i in range(120)]
    for name in ("list", "pure_bad"):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    write_sources(found)
    grid = Grid(found, tmp_path)
    jobs = fake_jobs(grid)
    job = jobs["dose.mild_dose5.seed2"]
    module, *flags = job.command
    from guardrail.data import dose

    monkeypatch.setattr(dose, "make_doses", lambda config: made.append(config) or make_doses(config))
    made: list[Any] = []
    assert module == "guardrail.data.dose" and dose.main(flags)["n_harmful"] == {"dose_5": 5}
    assert made[0].seed == 2  # the training's own draw
    assert all((grid.folder / file).is_file() for file in job.products[0].files)
    training = jobs["fine_tune.mild_dose5__mild_high_sim_20.seed2"]
    folder, split = training.variables["DATASET"], training.variables["SPLIT"]
    assert (Path(folder) / "data" / f"{split}-00000-of-00001.parquet").is_file() and job.name in training.needs
    processes = make_processes(jobs, list(jobs))
    assert job.name in processes["subsets"].jobs  # no process of its own


def test_numbers_by_hand(dosed) -> None:
    grid, paths, _ = dosed
    block = read_json(paths["study"])["doses"]
    (ladder,) = block["ladders"]
    assert ladder["doses_percent"] == PERCENTS and ladder["draw_seed"] == "the training's"
    (high,) = (arm for arm in block["arms"] if arm["subset"] == "high")
    files = [grid.cell_folder(c) / SAFETY_FILE for c in grid.cells if (c.task, c.subset) == ("mild_dose5", "high")]
    share = np.mean([row["harmful"] for file in files for row in read_json(file)["judgements"]])
    assert high["points"][3]["dose_percent"] == 5
    assert high["points"][3]["harmful_percent"] == pytest.approx(100 * share, abs=1e-3)
    assert 2.5 < high["ed50_percent"] < 6.5 and high["ed50_outside"] is None  # made with 4
    low, top = high["ed50_interval_percent"]
    assert low < high["ed50_percent"] < top
    assert 0 < high["floor_percent"] < 15 and 80 < high["ceiling_percent"] <= 100 and high["misfit_points"] < 8
    shares = [share for _, share in high["curve"]]
    assert shares == sorted(shares)
    (row,) = block["comparisons"]
    assert 0.3 < row["ed50_ratio"] < 0.8  # made with 4/8
    assert row["ed50_ratio_interval"][0] < row["ed50_ratio"] < row["ed50_ratio_interval"][1] < 1
    assert row["p_value"] < 0.05 and row["n_seeds"] == 3


def test_the_block_is_as_the_schema_says(dosed) -> None:
    import jsonschema

    _, paths, _ = dosed
    schema = read_json(REPOSITORY / "configs/schemas/study.schema.json")
    jsonschema.validate(read_json(paths["study"]), schema)
    broken = read_json(paths["study"])
    del broken["doses"]["arms"][0]["curve"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema)


def test_doses_are_not_averaged_with_tasks(dosed) -> None:
    _, paths, _ = dosed
    result = read_json(paths["study"])
    assert {row["task"] for row in result["statistics"]["comparisons"]} == {"list", "long"}
    assert {row["task"] for row in result["survival"]["comparisons"]} == {"list", "long"}
    assert {row["task"] for row in result["statistics"]["arms"]} > {"mild_dose0", "mild_dose100"}
    assert {row["task"] for row in result["subsets"]} == {"mild", "list", "long"}
    assert "could be compared" not in result["headline"]["answer"]  # doses are not missing there


def test_a_study_of_a_ladder_alone_has_numbers_everywhere(dosed, tmp_path) -> None:
    grid, _, _ = dosed
    alone = Grid(keep_tasks(grid.study, ["mild"]), grid.folder.parent)
    found = dose_response(Results(alone, fake_jobs(alone)), set(alone.cells), PAIR)
    assert found is not None and len(found["arms"]) == 2 and "ed50_ratio" in found["comparisons"][0]


def test_tables_figures_and_page(dosed) -> None:
    grid, paths, _ = dosed
    text = (grid.folder / "tables" / "doses.md").read_text(encoding="utf-8")
    assert "ED50" in text and "nan" not in text.lower()
    assert "ratio of ED50" in (grid.folder / "tables" / "dose_comparisons.md").read_text(encoding="utf-8")
    csv = (grid.folder / "tables" / "doses.csv").read_text(encoding="utf-8").splitlines()
    assert "ed50_percent" in csv[0] and "ed50_low_percent" in csv[0] and len(csv) == 3
    assert len((grid.folder / "tables" / "dose_points.csv").read_text(encoding="utf-8").splitlines()) == 17
    page = Path(paths["report"]).read_text(encoding="utf-8")
    for name in ("figure-doses", "figure-dose_time", "table-doses", "table-dose_comparisons", "figure-survival"):
        assert f'id="{name}"' in page
    assert 'href="#def-dose"' in page and 'id="def-dose"' in page
    for name in ("doses", "dose_time", "survival"):
        assert (grid.folder / "figures" / f"{name}.png").stat().st_size > 5000


def test_what_is_missing_is_said(dosed, tmp_path) -> None:
    grid, _, _ = dosed
    results = stamp(grid)
    cells = set(grid.cells)
    gone = {cell for cell in cells if cell.task == "mild_dose20" and cell.subset == "high"}
    one_seed = {cell for cell in cells if cell.task == "mild_dose5" and cell.subset == "high" and cell.seed != 2}
    found = dose_response(results, cells - gone - one_seed, PAIR)
    assert found is not None
    (high,) = (arm for arm in found["arms"] if arm["subset"] == "high")
    assert high["missing"] == ["mild_dose20"] and high["seeds"] == [2] and len(high["points"]) == 7
    (row,) = found["comparisons"]
    assert row["n_seeds"] == 1 and row["scope"] == "these checkpoints"
    few = {cell for cell in cells if cell.task in ("mild_dose0", "mild_dose1", "mild_dose2")}
    found = dose_response(results, few, PAIR)
    assert found is not None and "at least 3" in found["arms"][0]["reason"]
    assert "at least 3" in found["comparisons"][0]["reason"]
    assert dose_response(results, set(), PAIR)["reason"] == "no fine-tuning of a ladder is finished"


def test_an_ed50_outside_the_doses_has_no_number_and_no_ratio(dosed) -> None:
    grid, _, _ = dosed
    low = {cell for cell in grid.cells if cell.task.startswith("mild") and cell.task != "mild_dose100"}
    kept = {cell for cell in low if not cell.task.endswith(("_dose10", "_dose20", "_dose50"))}
    found = dose_response(stamp(grid), kept, PAIR)
    assert found is not None
    (arm,) = (arm for arm in found["arms"] if arm["subset"] == "low")  # 0, 1, 2 and 5% alone; half fall at 8%
    assert arm["ed50_percent"] is None and arm["ed50_outside"] == "above 5%"
    assert "outside the doses measured" in found["comparisons"][0]["reason"]


def test_without_a_ladder_there_is_no_block(toy) -> None:
    grid, _, paths = toy
    assert "doses" not in read_json(paths["study"])
    assert dose_response(stamp(grid), set(grid.cells), PAIR) is None
    assert not dataclasses.asdict(grid.study.tasks["list"])["rung"]
