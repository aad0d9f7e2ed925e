"""Rates from two tiny copies of a study: the arithmetic, what is copied, when a calibration counts."""

from __future__ import annotations

import dataclasses

import hypothesis
import hypothesis.strategies as st
import pytest

from guardrail.core.errors import UserError
from guardrail.core.files import read_jsonl, write_json, write_jsonl
from guardrail.study.config import Study, build
from guardrail.study.planning import calibrate as module
from guardrail.study.planning.calibrate import SIZES, calibrate, tiny
from guardrail.study.planning.devices import kind
from guardrail.study.planning.node import Node
from guardrail.study.planning.rates import Sample, cache_file, find_calibration, fit, line

from ..fake_study import study

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
