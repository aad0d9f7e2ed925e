"""Studies whose trainer is another project's: what is in the keys, and what is refused before anything runs."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.core.files import read_json
from guardrail.study import keys
from guardrail.study.config import Study, build
from guardrail.study.grid import Grid
from guardrail.study.run_job import run_job
from guardrail.study.schedule import choose_trainer, write_schedule
from guardrail.training import trainers
from guardrail.training.trainers import ALIGN_ANYTHING_TRAINER, OUR_TRAINER

from .toy_jobs import Stopped, ToyStudy


@pytest.fixture
def toy(tmp_path, monkeypatch) -> ToyStudy:
    return ToyStudy(tmp_path, monkeypatch)


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A folder that stands for align-anything's package."""
    folder = tmp_path / "package" / "align_anything"
    shutil.copytree(REPOSITORY / "configs" / "deepspeed", folder / "configs" / "deepspeed")
    shutil.copyfile(REPOSITORY / "configs" / "template.py", folder / "configs" / "template.py")
    (folder / "trainer.py").write_text("print('hello')\n")
    monkeypatch.setattr(trainers, "package_folder", lambda module: folder)
    monkeypatch.setattr(keys, "trainer_hash", trainers.trainer_hash.__wrapped__)  # a changed package is seen at once
    monkeypatch.setenv("SFT_MODULE", ALIGN_ANYTHING_TRAINER)
    return folder


def study(toy: ToyStudy, **changes) -> Study:
    parts = {name: {**toy.settings[name], **changes.pop(name, {})} for name in ("alignment", "fine_tuning")}
    return build(Study, {**toy.settings, **parts, **changes}, "")


def trained(toy: ToyStudy) -> set[str]:
    return {name for name, job in toy.jobs().items() if job.stage in ("align", "fine_tune")}


def test_a_changed_trainer_is_trained_with_again(toy, package):
    toy.trainer = ALIGN_ANYTHING_TRAINER
    toy.run()
    assert toy.todo() == []
    (package / "trainer.py").write_text("print('another loss')\n")
    assert trained(toy) <= set(toy.todo())
    assert not any(name.startswith(("select", "mix", "representations")) for name in toy.todo())


def test_a_key_holds_what_the_trainer_does_and_not_what_it_ignores(toy, package):
    toy.trainer = ALIGN_ANYTHING_TRAINER
    jobs = toy.jobs()
    parts = [jobs[name].product().key.parts for name in sorted(trained(toy))]
    assert {part["options"]["data_seed"] for part in parts} == {0}  # of seeds 1 and 2
    assert {part["options"]["label_mask"] for part in parts} == {"align_anything"}
    assert len({part["inputs"]["trainer"] for part in parts}) == 1
    toy.trainer = OUR_TRAINER
    ours = [toy.jobs()[name].product().key.parts for name in sorted(trained(toy))]
    assert all("trainer" not in part["inputs"] and part["options"]["label_mask"] == "exact" for part in ours)


def test_results_stay_done_where_the_trainer_is_not_installed(toy, package, monkeypatch):
    """A report is also made in an environment without the trainer: the schedule remembers its content."""
    toy.trainer = ALIGN_ANYTHING_TRAINER
    toy.run()
    write_schedule(toy.grid, toy.jobs(), [], toy.trainer, 1)
    assert read_json(toy.grid.folder / "jobs.json")["trainer_content"]
    monkeypatch.setattr(trainers, "package_folder", lambda module: None)
    assert toy.todo() == []


def test_a_training_that_was_killed_has_no_record_and_runs_again(toy, package):
    """The made-up stage leaves `slice_end` and is gone: a folder of weights alone is no result."""
    toy.trainer = ALIGN_ANYTHING_TRAINER
    name = next(iter(sorted(trained(toy))))
    jobs = toy.jobs()
    for need in jobs:
        if need == name:
            break
        run_job(toy.grid.folder, jobs, need, {})
    first = toy.grid.folder / jobs[name].product().files[0]

    def killed(*_):
        first.mkdir(parents=True)
        (first / "config.json").write_text("{}")
        raise Stopped

    from guardrail.study import run_job as running

    whole, running.execute = running.execute, killed
    try:
        with pytest.raises(Stopped):
            run_job(toy.grid.folder, jobs, name, {})
    finally:
        running.execute = whole
    assert first.is_dir() and name in toy.todo()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fine_tuning": {"bf16": False, "ds_cfgs": "ds_z0_config.json"}}, "float32 under ZeRO 3 only"),
        ({"fine_tuning": {"batching": "packed"}}, "batching is always 'padded', not 'packed'"),
        ({"alignment": {"ds_cfgs": "ds_z4_config.json"}}, "no DeepSpeed file 'ds_z4_config.json'"),
    ],
)
def test_a_study_that_it_cannot_train_is_refused_before_anything_runs(toy, package, monkeypatch, changes, words):
    asked = study(toy, **changes)
    with pytest.raises(UserError, match="SFT_MODULE=guardrail") as caught:
        choose_trainer(asked)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.delenv("SFT_MODULE")
    assert choose_trainer(asked, import_it=False) == OUR_TRAINER  # nobody insisted
    assert choose_trainer(study(toy), import_it=False) == ALIGN_ANYTHING_TRAINER


def test_adapters_are_trained_by_ours_whatever_is_chosen(toy, package):
    toy.settings["fine_tuning"] = {**toy.settings["fine_tuning"], "method": "lora", "bf16": False}
    toy.settings["fine_tuning"]["ds_cfgs"] = "ds_z0_config.json"  # which only ours can do
    toy.trainer = choose_trainer(build(Study, toy.settings, ""))
    assert toy.trainer == ALIGN_ANYTHING_TRAINER
    modules = {job.stage: job.variables["SFT_MODULE"] for job in toy.jobs().values() if job.name in trained(toy)}
    assert modules == {"align": ALIGN_ANYTHING_TRAINER, "fine_tune": OUR_TRAINER}


def test_without_the_package_the_module_is_refused_in_one_line(toy, monkeypatch):
    monkeypatch.setenv("SFT_MODULE", "nowhere_to_be_found.sft")
    with pytest.raises(UserError, match="no package nowhere_to_be_found in this environment"):
        choose_trainer(Grid(dataclasses.replace(study(toy)), toy.folder).study)
