"""The real workflow on toys: every stage through its script, killed and continued, changed, with a broken stage.

Minutes, because every stage is a process of its own: most run with GUARDRAIL_LONG_TESTS=1 only. One arm is killed and
continued in every run of the suite. benchmarks/faults.py kills a hundred times, fills a disk and breaks servers.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from toy_world import NAME, TRAINING, comparable, finish, kill, make_world, start, stderr_of, write_study

from guardrail.core.files import read_json
from guardrail.study.config import load_study
from guardrail.study.dag import make_jobs
from guardrail.study.disk import bytes_per_checkpoint, peak, weight_bytes
from guardrail.study.grid import Grid
from guardrail.study.jobs import Job, job_states
from guardrail.study.records import Product
from guardrail.study.results import Results, collect
from guardrail.study.schedule import OUR_TRAINER

pytestmark = pytest.mark.slow
long = pytest.mark.skipif(not os.environ.get("GUARDRAIL_LONG_TESTS"), reason="minutes; set GUARDRAIL_LONG_TESTS=1")
N_KILLS = 3
HIGH = "list_high_sim_4"
# Names that a key and the stage's own record may have alone, each with its reason.
ONLY_IN_KEY = {
    *("ranks", "trainer"),  # of the launch, not of the trainer's options
    *("evaluator",),  # of the safety stage: which judge follows
    *("dataset_name", "layer", "limit", "position", "split", "trust_remote_code"),  # recorded as resolved: layers, ...
    *("sweep",),  # makes files of its own, no subset
}
RESOLVED = {  # in the key as asked for, in the record as found: by the model and the machine
    "architecture": "auto",
    "dtype": "auto",
    "judge_dtype": "auto",
    "max_length": None,
}
ONLY_IN_RECORD = {
    # paths of what is hashed, and of outputs
    *("model_name_or_path", "train_datasets", "train_split", "eval_datasets", "instruct", "instruct_split", "safety"),
    *(
        "safety_split",
        "anchoring_split",
        "dataset",
        "data_source",
        "split",
        "bench_data",
        "guard_model",
        "moderation_model",
    ),
    *("output_dir", "save_path", "out", "cache_dir"),
    # another spelling of the prompt style
    *("model_family",),
    # batches of evaluations, parallelism, logging, checkpoints on the way
    *("batch_size_per_device", "batch_tokens", "tensor_parallel_size", "data_parallel_size", "judge_batch_tokens"),
    *("judge_concurrency", "per_device_eval_batch_size", "logging_steps", "log_type", "log_project", "log_run_name"),
    *("checkpoint_interval", "save_checkpoint", "resume", "figure"),
    # a server's, where there is none
    *("judge_base_url", "judge"),
    # resolved
    *("layers", "positions"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict[str, Any]:
    """Settings of a study of random models: one task, high and none, one seed."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def toy_study(world, tmp_path_factory) -> Path:
    return write_study(tmp_path_factory.mktemp("study") / f"{NAME}.yaml", world)


@pytest.fixture(scope="module")
def whole(toy_study, tmp_path_factory) -> Path:
    """Outputs of one uninterrupted run."""
    outputs = tmp_path_factory.mktemp("whole")
    result = finish(toy_study, outputs)
    assert (result["code"], result.get("n_failed")) == (0, 0), result["stderr"]
    return outputs


def jobs_of(study: Path, outputs: Path) -> tuple[Grid, dict[str, Job]]:
    grid = Grid(load_study(study), outputs)
    return grid, make_jobs(grid, OUR_TRAINER)


def copy(whole: Path, outputs: Path) -> Path:
    """The finished study ``whole`` in another place."""
    shutil.copytree(whole / NAME, outputs / NAME)
    (outputs / NAME / "study.json").unlink()
    return outputs


def files_of_a_study(outputs: Path) -> dict[Path, int]:
    """Everything but the scheduler's own files, with the times of change."""
    own = ("jobs.json", ".lock", "study_config.json")
    files = [path for path in (outputs / NAME).rglob("*") if path.is_file() and path.name not in own]
    return {path: path.stat().st_mtime_ns for path in files if not {".run", ".steps"} & set(path.parts)}


def test_one_arm_killed_once_and_continued(world, tmp_path):
    """Ten stages through their scripts; what had ended before the kill is not run again."""
    evaluation = {**world["evaluation"], "judges": {}}
    study = write_study(tmp_path / f"{NAME}.yaml", world, subsets=["none"], evaluation=evaluation)
    outputs = tmp_path / "outputs"
    grid, jobs = jobs_of(study, outputs)
    records = grid.folder / "records"
    process = start(study, outputs)
    deadline = time.time() + 300
    while not (grid.folder / jobs["fine_tune.list__none.seed1"].log).exists() and time.time() < deadline:
        assert process.poll() is None, stderr_of(outputs).read_text()[-3000:]
        time.sleep(0.1)
    kill(process)
    before = {path: path.stat().st_mtime_ns for path in records.rglob("*.json")}
    assert {path.parent.name for path in before} >= {"mix.none.seed1", "align.none.seed1"}
    shown = collect(Results(grid, jobs))["cells"][0]
    assert shown["status"] == "missing" and not {"initial", "final", "delta_points", "utility"} & set(shown)
    result = finish(study, outputs)
    assert (result["code"], result.get("n_failed")) == (0, 0), result["stderr"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    cell = read_json(grid.folder / "study.json")["cells"][0]
    key = {name: job.products[0].key.value for name, job in jobs.items()}
    for place in ("aligned/none/seed1", "cells/list__none/seed1"):
        short = place.replace("/", ".")
        judged = read_json(grid.folder / place / "evaluation/safety/beaver-dam.json")
        assert judged["run"]["job_key"] == key[f"harmfulness.{short}"]
        utility = read_json(grid.folder / place / "evaluation/utility/list.json")
        assert utility["run"]["job_key"] == key[f"utility.{short}.list"]
        which = "initial" if place.startswith("aligned") else "final"
        assert cell[which]["harmfulness_score_percent"] == judged["summary"]["harmfulness_score_percent"]
        assert cell["utility"][which] == utility["utility"]["value"]


@long
def test_killed_at_random_points_and_continued_equals_uninterrupted(toy_study, whole, tmp_path):
    rng, outputs = random.Random(3), tmp_path / "outputs"
    for _ in range(N_KILLS):
        process = start(toy_study, outputs)
        time.sleep(rng.uniform(8, 45))
        kill(process)
    result = finish(toy_study, outputs)
    assert (result["code"], result.get("n_failed")) == (0, 0), result["stderr"]
    assert comparable(outputs) == comparable(whole)


@long
def test_what_the_shell_has_exported_changes_nothing(toy_study, whole, tmp_path):
    """Scripts read these as settings; a study's stages get theirs from the study file alone."""
    exported = {
        "BENCH_DATA": "datasets/of/somebody/else.jsonl",
        "SEED": "9",
        "OPENAI_BASE_URL": "http://127.0.0.1:1/v1",
        "EPOCHS": "3",
        "THRESHOLD": "0.9",
        "EVAL_TEMPLATE": "alpaca",
        "DO_SAMPLE": "True",
        "WINDOWS": "True",
    }
    outputs = tmp_path / "outputs"
    result = finish(toy_study, outputs, shell=exported)
    assert (result["code"], result.get("n_failed")) == (0, 0), result["stderr"]
    assert comparable(outputs) == comparable(whole)


@long
def test_two_studies_at_once_do_not_disturb_one_another(toy_study, whole, tmp_path):
    """Same models, same data, one place for outputs and one Snakemake folder."""
    other = tmp_path / "toy_other.yaml"
    other.write_text(toy_study.read_text().replace(f"name: {NAME}", "name: toy_other"))
    outputs = tmp_path / "outputs"
    processes = [start(study, outputs) for study in (toy_study, other)]
    for process in processes:
        process.communicate(timeout=1500)
    assert [process.returncode for process in processes] == [0, 0], stderr_of(outputs).read_text()[-3000:]
    assert comparable(outputs) == comparable(outputs, "toy_other") == comparable(whole)


@long
def test_a_second_run_does_nothing(toy_study, whole):
    before = files_of_a_study(whole)
    assert finish(toy_study, whole).get("n_failed") == 0
    assert files_of_a_study(whole) == before


@long
def test_a_replaced_checkpoint_is_made_again(toy_study, whole, tmp_path):
    """Its record knows what it held: what was put in its place is neither evaluated nor shown."""
    outputs = copy(whole, tmp_path / "outputs")
    cell = outputs / NAME / "cells" / f"list__{HIGH}" / "seed1"
    next(cell.glob("slice_end/*.safetensors")).write_bytes(b"not a checkpoint")
    grid, jobs = jobs_of(toy_study, outputs)
    assert Results(grid, jobs).states[f"fine_tune.list__{HIGH}.seed1"]["checkpoint"].status == "stale"
    result = finish(toy_study, outputs)
    assert (result["code"], result.get("n_failed")) == (0, 0), result["stderr"]
    assert f"fine-tune: list__{HIGH}, seed 1  (stale: " in stderr_of(outputs).read_text()
    assert comparable(outputs) == comparable(whole)


@long
def test_a_broken_stage_fails_its_cells_only_and_shows_no_older_number(world, toy_study, whole, tmp_path):
    """The learning rate was changed, and the stage cannot do it: the old number is gone, the others stand."""
    outputs = copy(whole, tmp_path / "outputs")
    good = comparable(whole)
    broken = {**TRAINING, "ds_cfgs": "no_such_config.json"}
    study = write_study(tmp_path / f"{NAME}.yaml", world, fine_tuning=broken)
    result = finish(study, outputs)
    assert (result["code"], result.get("n_failed")) == (1, 2), result["stderr"]
    content = read_json(outputs / NAME / "study.json")
    for row in content["cells"]:
        assert row["status"] == "failed" and not {"initial", "final", "delta_points"} & set(row)
        assert "no_such_config" in row["reason"]
        assert "no_such_config" in Path(row["log"]).read_text()
    assert content["base"] == good["base"]
    assert "FAILED" in (outputs / NAME / "tables/arms.md").read_text()
    result = finish(toy_study, outputs)  # the setting is taken back
    assert (result["code"], result.get("n_failed")) == (0, 0), result["stderr"]
    assert comparable(outputs) == good


def recorded(root: Path, product: Product) -> dict[str, Any]:
    """The configuration that the stage itself has written down for this product."""
    files = [root / name for name in product.files]
    selection = files[0].parent / "selection.json"
    if selection.is_file():
        return read_json(selection)["subsets"][files[0].stem]["run"]["config"]
    files = [file / "manifest.json" if file.is_dir() else file for file in files]
    return next(read_json(file)["run"]["config"] for file in files if file.suffix == ".json" and file.is_file())


@long
def test_a_key_says_what_the_stage_did(toy_study, whole):
    """Key and stage come to the options on different ways (dataclass; script, flags): every value must agree."""
    grid, jobs = jobs_of(toy_study, whole)
    different, alone = {}, {}
    for job in jobs.values():
        for product in job.products:
            asked, done = product.key.parts["options"], recorded(grid.folder, product)
            for name in set(asked) & set(done):
                same = asked[name] in (done[name], [done[name]])  # the one selector of a subset
                if not same and (name not in RESOLVED or asked[name] != RESOLVED[name]):
                    different[f"{job.stage}.{name}"] = (asked[name], done[name])
            for name in (set(asked) - set(done) - ONLY_IN_KEY) | (set(done) - set(asked) - ONLY_IN_RECORD):
                alone[f"{job.stage}.{name}"] = (asked.get(name), done.get(name))
    assert different == {}
    assert alone == {}


def tensor_bytes(root: Path) -> int:
    """Bytes of the weights below ``root`` that are there now, without the files' headers."""
    total = 0
    for path in root.rglob("slice_end/*.safetensors"):
        with contextlib.suppress(OSError), open(path, "rb") as handle:  # removed meanwhile
            total += path.stat().st_size - 8 - int.from_bytes(handle.read(8), "little")
    return total


@long
@pytest.mark.parametrize("keep", ["none", "adapters"])
def test_adapters_come_and_go_as_the_study_says(world, tmp_path, keep):
    """Adapters on adapters through every script, killed once: their disk is the plan's, at the end is left what
    `keep` says, and a second start makes nothing again."""
    study = write_study(
        tmp_path / f"{NAME}.yaml",
        world,
        designs=["adapter"],
        fine_tuning={**TRAINING, "method": "lora"},
        lora={"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]},
        keep=keep,
        checkpoints_at_once=2,
        evaluation={**world["evaluation"], "judges": {}},
    )
    outputs = tmp_path / "outputs"
    grid, jobs = jobs_of(study, outputs)
    sizes = weight_bytes(grid, bytes_per_checkpoint(grid.study))
    planned = peak(grid.study, jobs, job_states(grid, jobs), list(jobs), sizes)
    assert len(sizes) == 4 and planned["n_batches"] == (3 if keep == "none" else 1)
    most, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            most[0] = max(most[0], tensor_bytes(grid.folder))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        process = start(study, outputs)
        deadline = time.time() + 900
        while not list(grid.folder.glob("logs/fine_tune*")) and time.time() < deadline:
            assert process.poll() is None, stderr_of(outputs).read_text()[-3000:]
            time.sleep(0.1)
        kill(process)
        result = finish(study, outputs)
    finally:
        over.set()
        watcher.join()
    assert (result["code"], result.get("n_failed")) == (0, 0), result["stderr"]
    assert 0 < most[0] <= planned["peak_bytes"]
    assert tensor_bytes(grid.folder) == planned["end_bytes"] == (0 if keep == "none" else sum(sizes.values()))
    assert not list(grid.folder.rglob("global_step*"))
    before = files_of_a_study(outputs)
    assert finish(study, outputs).get("n_failed") == 0
    assert files_of_a_study(outputs) == before, "nothing is made twice"
