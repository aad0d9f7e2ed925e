"""Rates from two tiny copies of a study: the arithmetic, what is copied, when a calibration counts."""

from __future__ import annotations

import dataclasses

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import yaml
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.core.files import read_jsonl, write_json, write_jsonl
from guardrail.data import rows as rows_module
from guardrail.study.config import Study, build, load_study
from guardrail.study.grid import Grid
from guardrail.study.plan import describe, plan_parts, tasks_of
from guardrail.study.planning import answers
from guardrail.study.planning import calibrate as module
from guardrail.study.planning.calibrate import SIZES, calibrate, tiny
from guardrail.study.planning.devices import kind
from guardrail.study.planning.node import Node
from guardrail.study.planning.rates import Sample, Span, cache_file, find_calibration, fit, line
from guardrail.study.planning.simulate import simulate
from guardrail.study.planning.times import note_process

from ..fake_study import study

STUDIES = sorted((REPOSITORY / "configs" / "studies").glob("*.yaml"))
HERE = Node(None, 0, 2, here=True)


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(st.floats(0, 30), st.floats(0.1, 9), st.floats(0.1, 5), st.floats(6, 50))
def test_start_and_rate_come_back(start, factor, small, large):
    samples = [Sample("align", work, start + factor * work, 2 * (start + factor * work)) for work in (small, large)]
    rate = fit(samples, by_processor=False)["align"]
    assert (rate.start_sec, rate.factor) == (pytest.approx(start, abs=1e-6), pytest.approx(factor))
    assert (rate.cpu_start_sec, rate.cpu_factor) == (pytest.approx(2 * start, abs=1e-6), pytest.approx(2 * factor))


def test_nothing_is_below_zero_and_one_size_is_all_start():
    assert line([1, 2], [5, 3]) == (4, 0)
    assert line([1, 2], [1, 4]) == (0, pytest.approx(9 / 5))  # (1 x 1 + 2 x 4) / (1 + 4)
    assert line([1, 1], [5, 7]) == (6, 0)


def test_other_work_stretches_wall_times_of_a_cpu_machine_evenly():
    """Twice as slow as its processor time, and the larger copy disturbed: the line is that of processor times."""
    samples = [Sample("align", 1, 6, 3), Sample("align", 5, 14, 7), Sample("align", 5, 90, 7)]
    rate = fit(samples, by_processor=True)["align"]
    assert (rate.cpu_start_sec, rate.cpu_factor) == (pytest.approx(2), pytest.approx(1))
    assert (rate.start_sec, rate.factor) == (pytest.approx(4), pytest.approx(2))


def test_what_disturbed_one_kind_is_no_property_of_it():
    """Other work came while fine-tunings ran: their plan is stretched as everything else. A kind that keeps several
    cores busy has less wall than processor time by itself."""
    kinds = {"align": 1.1, "fine_tune": 2.4, "evaluate": 1.1, "subsets": 1.1, "parallel": 0.5}
    samples = [Sample(kind, work, ratio * work, work) for kind, ratio in kinds.items() for work in (2, 10)]
    rates = fit(samples, by_processor=True)
    assert {kind: round(rate.factor, 6) for kind, rate in rates.items()} == {
        **dict.fromkeys(("align", "fine_tune", "evaluate", "subsets"), 1.1),
        "parallel": 0.5,
    }


def test_one_slow_run_of_three_does_not_decide():
    times = [(1, 2.0), (1, 2.0), (1, 9.0), (5, 6.0), (5, 6.0), (5, 30.0)]
    rate = fit([Sample("evaluate", work, wall, wall) for work, wall in times], False)["evaluate"]
    assert (rate.start_sec, rate.factor) == (pytest.approx(1), pytest.approx(1))


@pytest.fixture
def with_rows(tmp_path) -> Study:
    rows = [{"id": str(i), "prompt": f"q{i}", "response": "a"} for i in range(300)]
    for name in ("pool", "instruct", "list", "pure_bad", "prompts", "benign"):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    return study(tmp_path)


def test_a_copy_is_a_study_of_few_rows_with_the_same_settings(with_rows, tmp_path):
    content = tiny(with_rows, tmp_path, SIZES[0], "calibration1")
    copy = build(Study, content, "")
    assert len(copy.tasks) == len(copy.seeds) == len(copy.subsets) == 1 and copy.subsets == ("high",)
    assert copy.alignment == with_rows.alignment and copy.models == with_rows.models
    assert len(read_jsonl(copy.instruct.source)) == SIZES[0]["instruct"]
    assert copy.evaluation.limit == SIZES[0]["prompts"] and copy.subset_sizes == (SIZES[0]["subset"],)


@pytest.mark.parametrize("shipped", STUDIES, ids=lambda file: file.stem)
def test_the_copy_of_every_shipped_study_is_a_study_file(shipped, tmp_path, monkeypatch):
    """Whatever a study declares about arms, a copy has one arm."""
    found = [{"id": str(i), "prompt": f"Ask {i}", "response": "Say."} for i in range(max(SIZES[0].values()))]
    monkeypatch.setattr(rows_module, "load_rows", lambda _source, _split=None, limit=None: found[:limit])
    file = tmp_path / "calibration1.yaml"
    content = tiny(load_study(shipped), tmp_path, SIZES[0], "calibration1")
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    copy = load_study(file)
    n_designs = len(copy.designs)
    assert len(Grid(copy, tmp_path / "copy").cells) == n_designs and copy.primary is None


def test_a_copy_trains_each_kind_once_however_many_defences_there_are(with_rows, tmp_path):
    defended = dataclasses.replace(
        with_rows, defences={"frozen": {"method": "freeze", "share": 0.5}}, attacks={"sampled": {"method": "decoding"}}
    )
    assert len(Grid(defended, tmp_path / "whole").cells) == 2 * len(Grid(with_rows, tmp_path / "whole").cells)
    file = tmp_path / "calibration1.yaml"
    file.write_text(yaml.safe_dump(tiny(defended, tmp_path, SIZES[0], "calibration1")), encoding="utf-8")
    copy = load_study(file)  # a study file as somebody would write it
    assert len(Grid(copy, tmp_path / "copy").cells) == 1 and not copy.attacks


def test_a_calibration_counts_for_the_same_models_settings_and_machine_only(with_rows, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert find_calibration(with_rows, HERE) is None
    rate = {"start_sec": 1.0, "factor": 2.0, "cpu_start_sec": 1.0, "cpu_factor": 2.0}
    span = {"wall_sec": 0.5, "cpu_sec": 0.4}
    content = {"rates": {"align": rate}, "process": span, "study": span, "described": "made up"}
    write_json(cache_file(with_rows, HERE), content)
    found = find_calibration(with_rows, HERE)
    assert found is not None and found.rates["align"].factor == 2.0
    assert find_calibration(dataclasses.replace(with_rows, seeds=(7,)), HERE) is not None
    other = dataclasses.replace(with_rows.alignment, per_device_train_batch_size=3)
    assert find_calibration(dataclasses.replace(with_rows, alignment=other), HERE) is None
    assert find_calibration(with_rows, dataclasses.replace(HERE, jobs=1)) is None


def test_another_machine_cannot_be_measured_here(with_rows):
    with pytest.raises(UserError, match="leave PLAN_GPU out"):
        calibrate(with_rows, Node(kind("h100"), 4, 6))


def test_a_copy_that_fails_is_one_line(with_rows, tmp_path, monkeypatch):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "study.sh").write_text("echo 'error: no such model' >&2; exit 2\n")
    monkeypatch.setattr(module, "RESOURCES", tmp_path)
    with pytest.raises(UserError, match="tiny copy of the study failed: error: no such model"):
        calibrate(with_rows, HERE)
    assert find_calibration(with_rows, HERE) is None


TRUE = {"subsets": (4.0, 1.5), "align": (7.0, 0.8), "fine_tune": (6.0, 1.3), "evaluate": (5.0, 2.5), "mix": (1.0, 4.0)}
AROUND, PER_PROCESS = 20.0, 0.5


def truth(counter, process, rng) -> float:
    """Processor seconds of a process on a made-up machine: start, rate and some noise."""
    start, rate = TRUE.get(process.stage, (3.0, 1.0))
    return (start + rate * counter.work(process)[1]) * rng.normal(1, 0.03)


def write_answers(root, jobs, n: int) -> None:
    """Result files of ``n`` answers of 64 tokens: longer than a plan assumes."""
    row = {"n_prompt_tokens": 70, "n_completion_tokens": 64, "finish_reason": "length", "sample": 0}
    for job in jobs.values():
        if job.stage in answers.STAGES:
            write_json(root / job.products[0].files[0], {"results": [{**row, "id": str(i)} for i in range(n)]})


def test_steps_and_tokens_are_those_of_the_batches(tmp_path):
    """Batches of 64 rows, longest prompts first: the first ends after 9 + 1 steps, the second after the limit of 30."""
    row = {"n_prompt_tokens": 90, "n_completion_tokens": 9, "finish_reason": "eos", "sample": 0}
    rows = [{**row, "id": str(i)} for i in range(64)]
    rows += [{**row, "n_prompt_tokens": 50, "n_completion_tokens": 30, "finish_reason": "length", "id": "x"}]
    assert answers.count(rows[::-1]) == (10 + 30, 64 * 10 + 30)


def test_a_study_takes_what_its_plan_says_after_a_calibration(with_rows, tmp_path, monkeypatch):
    """On a machine that is 1.4 times as slow as its processor time says: the calibration sees two tiny copies only, the
    plan of the whole study is compared with what that machine takes for it, kind by kind, and for the schedule. The
    checkpoints of the copies answer at greater length than those of the study, which changes no rate."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)

    def pretended(content, folder):
        grid = Grid(build(Study, content, ""), folder / "outputs")
        grid.folder.mkdir(parents=True)
        parts = plan_parts(grid, HERE, whole=True)
        write_answers(grid.folder, parts.jobs, grid.study.evaluation.limit)
        counter = dataclasses.replace(parts.counter, answered=answers.answered(grid.folder, parts.jobs), counted={})
        cpu = {name: truth(counter, process, rng) for name, process in parts.processes.items()}
        for name, process in parts.processes.items():
            note_process(grid.folder, process, {"wall_sec": 1.4 * cpu[name], "cpu_sec": cpu[name]})
        costs = {name: dataclasses.replace(cost, seconds=1.4 * cpu[name]) for name, cost in parts.costs.items()}
        wall = simulate(tasks_of(parts.processes, costs, HERE, PER_PROCESS), HERE.limits).wall_sec
        return Span(wall + AROUND, sum(cpu.values()) + AROUND / 2 + PER_PROCESS * len(cpu))

    monkeypatch.setattr(module, "run_tiny", pretended)
    monkeypatch.setattr(module, "timed", lambda *_: (Span(PER_PROCESS, PER_PROCESS), None))
    calibrate(with_rows, HERE)
    parts = plan_parts(Grid(with_rows, tmp_path / "other"), HERE)
    plan = describe(parts)
    assert {row["source"] for row in plan["stages"]} == {"calibrated"}
    real = {name: truth(parts.counter, process, rng) for name, process in parts.processes.items()}
    for row in plan["stages"]:
        took = sum(real[name] for name, process in parts.processes.items() if process.stage == row["stage"])
        assert row["cpu_sec"] == pytest.approx(took, rel=0.1), row["stage"]
        assert row["seconds"] == pytest.approx(1.4 * took, rel=0.1), row["stage"]
    costs = {name: dataclasses.replace(cost, seconds=1.4 * real[name]) for name, cost in parts.costs.items()}
    wall = simulate(tasks_of(parts.processes, costs, HERE, PER_PROCESS), HERE.limits).wall_sec + AROUND
    assert plan["wall_sec"] == pytest.approx(wall, rel=0.1)
    assert plan["cpu_sec"] == pytest.approx(sum(real.values()) + AROUND / 2 + PER_PROCESS * len(real), rel=0.1)
    assert "wall time is 1.4 x processor time" in plan["calibration"]
