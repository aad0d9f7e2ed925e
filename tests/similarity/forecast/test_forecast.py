"""A forecast on planted studies: it finds what is there, keeps silent where it should, and refuses in one line."""

import json
import math

import numpy as np
import pytest

from guardrail.core.errors import UserError
from guardrail.similarity.forecast import model as models
from guardrail.similarity.forecast.command import main, parse_before
from guardrail.similarity.forecast.file import answer, read_forecast
from guardrail.similarity.forecast.observations import Observation, read_study

NAMES = ("similarity", "diversity", "response_chars", "list_share_percent")


def study(name, tasks, rng, slope=400.0, pool="pool", extraction="models/chat", probes=True):
    """A study.json whose change is ``slope`` times similarity (spread over tasks and arms) plus a little noise."""
    observations, arms = [], []
    for task in tasks:
        level = rng.normal(scale=0.05)
        for number, subset in enumerate(("high", "low", "random", "length_high")):
            row = {"task": task, "subset": subset, "subset_size": 1000, "n": 1000}
            row["similarity"] = 0.7 + level + 0.02 * rng.normal()
            row |= {"diversity": 50 + 5 * rng.normal(), "response_chars": 300 + 30 * rng.normal()}
            row["list_share_percent"] = 20 + 4 * rng.normal()
            delta = 30 + slope * (row["similarity"] - 0.7) + rng.normal()
            row |= {"initial_percent": 5 + rng.normal(), "final_percent": 35.0, "delta_points": delta}
            observations.append(row)
            life = min(99.0, max(1.0, 60 - delta))
            arms.append({"task": task, "subset": subset, "subset_size": 1000, "training_steps": 200})
            arms[-1] |= {"life_steps": 2 * life, "n_units": 100, "n_harmful_before": 4, "n_fallen": 48 + number}
    config = {"models": {"extraction": extraction}, "safety_pool": {"source": pool, "split": None}}
    out = {"study": name, "statistics": {"observations": observations}, "run": {"config": config}, "cells": []}
    return out | ({"survival": {"arms": arms}} if probes else {})


def write(folder, *documents):
    paths = []
    for number, document in enumerate(documents):
        paths.append(folder / f"study{number}.json")
        paths[-1].write_text(json.dumps(document))
    return [str(path) for path in paths]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A forecast of two studies of five tasks each, every task another one."""
    folder = tmp_path_factory.mktemp("forecast")
    rng = np.random.default_rng(0)
    files = write(
        folder,
        study("one", [f"a{i}" for i in range(5)], rng),
        study("two", [f"b{i}" for i in range(5)], rng, pool="other"),
        study("three", [f"c{i}" for i in range(5)], rng, pool="third"),
    )
    result = main(["fit", *files[:2], "--out", str(folder / "forecast.json")])
    return folder, files, result


def test_it_finds_what_was_planted_and_says_from_what(fitted):
    folder, _, result = fitted
    document = read_forecast(folder / "forecast.json")
    assert result["n_studies"] == 2 and result["n_arms"] == 40
    assert [one["study"] for one in document["studies"]] == ["one", "two"]
    assert all(len(one["hash"]) >= 16 for one in document["studies"])
    model = document["models"][0]
    assert model["outcome"] == "delta_points" and model["constant"].keys() == {"log_rows"}
    slope = dict(zip(model["properties"], model["coefficients"], strict=True))["similarity"]
    assert slope == pytest.approx(400, rel=0.1)
    for scheme, n_groups in (("task", 10), ("pool", 2), ("study", 2)):
        assert model["skill"][scheme]["n_groups"] == n_groups and model["skill"][scheme]["value"] > 0.9
    assert model["order_right_fraction"] > 0.8 and model["n_pairs"] == 60


def test_a_study_that_it_has_not_seen_is_forecast(fitted, tmp_path):
    folder, files, _ = fitted
    out = tmp_path / "forecasts.json"
    main(["predict", files[2], "--forecast", str(folder / "forecast.json"), "--out", str(out)])
    rows = json.loads(out.read_text())["forecasts"]
    assert len(rows) == 20
    answered = [row for row in rows if "forecast" in row["delta_points"]]
    assert len(answered) >= 14
    inside = [
        row["delta_points"]["interval"][0] <= row["measured"]["delta_points"] <= row["delta_points"]["interval"][1]
        for row in answered
    ]
    assert np.mean(inside) > 0.7
    assert answered[0]["delta_points"]["interval_from"] == "Student's t over 10 tasks"


def test_an_interval_says_what_it_assumes(tmp_path):
    rng = np.random.default_rng(1)
    files = write(tmp_path, study("one", ["a", "b", "c", "d", "e"], rng))
    main(["fit", *files, "--out", str(tmp_path / "f.json")])
    found = read_forecast(tmp_path / "f.json")
    values = read_study(files[0]).observations[2].properties
    assert answer(found, values)["delta_points"]["interval_from"] == "Student's t over 5 tasks"
    many = [Observation("s", "p", f"t{i}", "x", {"similarity": i / 19}, {"delta_points": i % 3}) for i in range(19)]
    found = models.estimate(models.fit_outcome(many, "delta_points", NAMES), {"similarity": 0.5})
    assert found["interval_from"] == "jackknife+ over tasks"


def test_outside_what_it_has_seen_it_abstains_and_says_where(fitted):
    folder, files, _ = fitted
    found = read_forecast(folder / "forecast.json")
    values = dict(read_study(files[0]).observations[1].properties)
    assert "forecast" in answer(found, values)["delta_points"]
    for change, words in (
        ({"response_chars": 900.0}, "response_chars is 900"),
        ({"log_rows": math.log(100)}, "every arm seen had 6.908"),
    ):
        assert words in answer(found, values | change)["delta_points"]["abstains"]
    # each value was seen, this combination was not: the properties of arms vary together within tasks
    del values["similarity"]
    assert "similarity not known" in answer(found, values)["delta_points"]["abstains"]


def test_a_combination_that_was_never_seen_is_outside():
    rng = np.random.default_rng(2)
    observations = []
    for task in range(20):
        for arm in range(3):
            x = rng.normal()
            values = {"similarity": x, "diversity": x + 0.05 * rng.normal()}
            observations.append(Observation("s", "p", f"t{task}", f"{arm}", values, {"delta_points": 10 * x}))
    found = models.fit_outcome(observations, "delta_points", NAMES)
    assert models.range_reason(found, {"similarity": 1.5, "diversity": 1.5}) is None
    assert "together" in models.range_reason(found, {"similarity": 1.5, "diversity": -1.5})


def test_no_skill_no_forecast(tmp_path):
    rng = np.random.default_rng(3)
    files = write(tmp_path, study("one", [f"a{i}" for i in range(6)], rng, slope=0.0, probes=False))
    main(["fit", *files, "--out", str(tmp_path / "f.json")])
    found = answer(read_forecast(tmp_path / "f.json"), read_study(files[0]).observations[0].properties)
    assert "no skill is shown when whole tasks are left out" in found["delta_points"]["abstains"]
    assert "0 tasks were measured" in found["life_percent"]["abstains"], "no probes, no life"


def test_the_value_before_is_used_where_it_is_known(fitted):
    folder, files, _ = fitted
    found = read_forecast(folder / "forecast.json")
    values = dict(read_study(files[0]).observations[1].properties)
    del values["initial_percent"]
    assert "forecast" in answer(found, values)["delta_points"]


def test_life_and_hazard_by_hand(tmp_path):
    document = study("one", ["a"], np.random.default_rng(4))
    document["survival"]["arms"][0] |= {"life_steps": 50.0, "n_fallen": 48, "n_units": 100, "n_harmful_before": 4}
    (path,) = write(tmp_path, document)
    outcomes = read_study(path).observations[0].outcomes
    assert outcomes["life_percent"] == 25.0
    assert outcomes["log_hazard"] == pytest.approx(math.log(48 / (96 * 0.25))), "falls by time at risk"


def test_wrong_files_are_refused_in_one_line(fitted, tmp_path):
    folder, files, _ = fitted
    forecast = folder / "forecast.json"
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"format": "guardrail forecast", "version": 99}))
    values = tmp_path / "values.json"
    values.write_text('{"similarty": 0.4}')
    gemma = study("gemma", ["x"], np.random.default_rng(5), extraction="models/gemma")
    (gemma_file,) = write(tmp_path, gemma)
    for arguments, words in (
        (["fit", str(other), "--out", str(tmp_path / "f.json")], "is no study.json"),
        (["fit", files[0], files[0], "--out", str(tmp_path / "f.json")], "hold the same study"),
        (["fit", files[0], gemma_file, "--out", str(tmp_path / "f.json")], "different models"),
        (["fit", files[0], "--out", files[0]], "out"),
        (["predict", files[0], "--forecast", files[1]], "is no forecast"),
        (["predict", files[0], "--forecast", str(other)], "version 99, this code reads version 1"),
        (["predict", str(values), "--forecast", str(forecast)], "did you mean 'similarity'"),
        (["predict", files[0], "--forecast", str(forecast), "--before", "a=3"], "names sets of an audit"),
        (["fit", files[0], "--level", "1"], "between 0 and 1"),
        (["fti"], "did you mean 'fit'"),
        ([], "expected fit or predict"),
    ):
        with pytest.raises(UserError, match=words):
            main(arguments)
    assert not (tmp_path / "f.json").exists()
    with pytest.raises(UserError, match="NAME=PERCENT"):
        parse_before(["a=101"])


def test_another_extraction_model_has_no_forecast(fitted):
    folder, files, _ = fitted
    found = read_forecast(folder / "forecast.json")
    values = read_study(files[0]).observations[1].properties
    same = {"model": "/elsewhere/models/chat", "model_hash": None, "view": None}
    assert "forecast" in answer(found, values, same)["delta_points"]
    assert "representations of" in answer(found, values, same | {"model": "models/base"})["delta_points"]["abstains"]
