"""Repetitions of a control study: its own stages and tests, resumed after a kill, and what its power says."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.core.options import decisive, read_options
from guardrail.core.places import SANDBOX_MODELS
from guardrail.core.steps import DONE, FAILED, Status
from guardrail.data.rows import load_rows, response
from guardrail.sandbox.controls import WORLDS
from guardrail.study.config import Models
from guardrail.study.dag import make_jobs
from guardrail.study.grid import Grid
from guardrail.study.trajectories import Trajectory
from guardrail.training.config import SFTConfig, build_parser
from guardrail.training.trainers import OUR_TRAINER

POSITIVE = str(REPOSITORY / "configs" / "studies" / "control_positive.yaml")
PROBES = (0, 1, 2, 4, 8, 16)


@pytest.fixture(scope="module")
def instrument():
    return SimpleNamespace(**runpy.run_path(str(REPOSITORY / "benchmarks" / "instrument.py"), run_name="instrument"))


@pytest.fixture(scope="module")
def study(instrument, tmp_path_factory):
    """A control in a world of its own, below a temporary folder."""
    return instrument.control_study(POSITIVE, {"near_refused": 0.5}, 1, "", tmp_path_factory.mktemp("outputs"))


def arms(effect: float, R: int = 6, P: int = 60, seed: int = 0) -> tuple[Trajectory, Trajectory]:
    """High and low: the hazard of high is ``effect`` times that of low, and the end is the ceiling for both."""
    rng = np.random.default_rng(seed)
    made = []
    for subset, rate in (("high", effect), ("low", 1.0)):
        times = rng.exponential(3.0 / rate, size=(R, P)) * np.exp(0.1 * rng.normal(size=(R, 1)))
        harmful = (times[:, :, None] <= np.array(PROBES))[:, :, None, :]
        place = ("continued", "task", subset, 120)
        names = tuple(f"p{i}" for i in range(P))
        made.append(Trajectory(place, tuple(range(R)), names, PROBES, harmful, None))
    return made[0], made[1]


def test_a_world_of_its_own_keeps_the_analysis(study, instrument):
    shipped = instrument.load_study(POSITIVE)
    assert study.name == "control_positive.near_refused-0.5" and study.safety_pool.source.endswith(study.name)
    changed = {"name", "seeds", "instruct", "safety_pool", "tasks", "evaluation"}
    assert {name: getattr(study, name) for name in vars(study) if name not in changed} == {
        name: getattr(shipped, name) for name in vars(shipped) if name not in changed
    }
    for text in ("overlaps=0.5", "overlap"):
        with pytest.raises(UserError, match="knob of the world"):
            instrument.parse_knobs(text)
    with pytest.raises(UserError, match="is no control"):
        instrument.control_study(str(REPOSITORY / "configs/studies/quickstart.yaml"), {}, None, "", Path("unused"))


def test_trainings_get_exactly_the_options_of_their_keys(study, instrument, tmp_path):
    """The script's variables are left out: what decides is the key, and the parsed flags say the same."""
    grid = Grid(study, tmp_path)
    jobs = make_jobs(grid, OUR_TRAINER)
    trainings = [job for job in jobs.values() if job.is_script]
    assert {job.stage for job in trainings} == {"align", "fine_tune"}
    for job in trainings:
        step = instrument.step_of(grid.folder, job)
        args, _ = build_parser().parse_known_args(list(step.arguments))
        config = read_options(SFTConfig, args)
        expected = {n: v for n, v in job.products[0].key.parts["options"].items() if n not in ("trainer", "ranks")}
        found = decisive(config)
        assert {name: found[name] for name in expected} == expected
        assert config.train_split == job.variables["SPLIT"] and config.train_datasets == job.variables["DATASET"]


def test_what_is_done_is_not_done_again(study, instrument, tmp_path, monkeypatch):
    model = tmp_path / "model"  # whatever is there: its contents are in the keys, and nothing is done without a key
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").touch()
    study = dataclasses.replace(study, models=Models(str(model), str(model), str(model)))
    grid = Grid(study, tmp_path / "outputs")
    jobs = make_jobs(grid, OUR_TRAINER)
    targets = [name for name in jobs if name.startswith("select.")]
    ran: list[str] = []

    def fake(broken: str | None):
        def run_steps(steps, report):
            for step in steps:
                if step.name == broken:
                    report(Status(step=step.name, state=FAILED, reason="out of luck"))
                for product in jobs[step.name].products:
                    for file in product.files:
                        (grid.folder / file).parent.mkdir(parents=True, exist_ok=True)
                        (grid.folder / file).write_text(step.name)
                ran.append(step.name)
                report(Status(step=step.name, state=DONE, cpu_sec=1.0))

        return run_steps

    for module in (instrument.run_jobs.__globals__,):
        monkeypatch.setitem(module, "run_steps", fake(targets[0]))
        with pytest.raises(UserError, match="out of luck"):
            instrument.run_jobs(grid, jobs, targets)
        done = list(ran)
        assert done == ["representations.safety_pool", "representations.task"]
        monkeypatch.setitem(module, "run_steps", fake(None))
        assert instrument.run_jobs(grid, jobs, targets) == 1.0 and ran == [*done, *targets]
        (grid.folder / jobs[targets[0]].products[0].files[0]).write_text("changed")
        assert instrument.run_jobs(grid, jobs, targets) == 1.0
        assert instrument.run_jobs(grid, jobs, targets) == 0.0 and len(ran) == 4


def test_a_shorter_life_is_found_where_both_end_at_the_ceiling(instrument):
    row = instrument.compare(arms(effect=4.0))
    assert row["life"]["p_value"] < 0.01 and row["life"]["difference"] < 0 and row["log_rank_p_value"] < 0.01
    assert row["final"]["p_value"] > 0.05
    same = instrument.compare(arms(effect=1.0))
    assert same["life"]["p_value"] > 0.05
    found = instrument.summary([row, same])
    assert found["life"] == {
        "p_below_0.05": 1,
        "p_below_0.01": 1,
        "high_lasts_longer": int(same["life"]["difference"] > 0),
    }


def test_shares_of_the_difference_compare_endpoints(instrument):
    """A share of one means: exactly the difference that is there is found with 80% power."""
    found = instrument.sensitivity(arms(effect=4.0), 3)["endpoints"]
    for one in found.values():
        assert one["detectable_share"] == pytest.approx(one["detectable"] / abs(one["difference"]))
    assert found["life"]["detectable_share"] < 1 < found["final"]["detectable_share"]
    assert found["life"]["seeds_needed"] <= 3
    weaker = instrument.sensitivity(arms(effect=2.0), 3)["endpoints"]
    assert weaker["life"]["detectable_share"] > found["life"]["detectable_share"]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(WORLDS))
def test_selection_by_similarity_separates_the_marks(instrument, name, tmp_path):
    """The study's own representations and selection: one mark is high and the other low, without exception."""
    if not (SANDBOX_MODELS / "chat" / "config.json").is_file():
        pytest.skip("needs the sandbox's models: python datasets/sandbox/train_models.py")
    file = str(REPOSITORY / "configs" / "studies" / f"{name}.yaml")
    grid = Grid(instrument.control_study(file, {}, 1, "", tmp_path), tmp_path)
    jobs = make_jobs(grid, OUR_TRAINER)
    (target,) = [job for job in jobs.values() if job.stage == "select"]
    instrument.run_jobs(grid, jobs, [target.name])
    texts = []
    for product, mark in zip(("high", "low"), WORLDS[name].marks, strict=True):
        rows = load_rows(grid.folder / target.product(product).files[0])
        assert len(rows) == grid.study.subset_sizes[0] and all(response(row).endswith(mark) for row in rows)
        texts.append(sorted((row["messages"][0]["content"], response(row).removesuffix(mark)) for row in rows))
    assert (texts[0] == texts[1]) == WORLDS[name].twins
