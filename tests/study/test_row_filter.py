"""A row filter as an arm of a study: its scores are a job, with a key of its own, a cost, and failures of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_world import NAME, finish, make_world, write_study

from guardrail.core.errors import UserError
from guardrail.core.files import read_json, read_jsonl, write_json, write_jsonl
from guardrail.similarity.scorers import SCORERS
from guardrail.similarity.scorers import options as scorer_options
from guardrail.study import score_jobs
from guardrail.study.check import keep_defences
from guardrail.study.config import load_study
from guardrail.study.dag import make_jobs
from guardrail.study.defence_effects import scoring_sec
from guardrail.study.defence_settings import read_setting
from guardrail.study.export import without_text
from guardrail.study.grid import Grid
from guardrail.study.plan import make_plan
from guardrail.study.planning.node import Node
from guardrail.study.results import collect
from guardrail.study.schedule import OUR_TRAINER
from guardrail.study.score_settings import OPTIONS

from .fake_study import jobs_of, study, write_sources
from .toy_jobs import ToyStudy

CPU = Node(None, 0, 2, here=True)
METHOD = {"method": "row_filter"}


def filters(folder: Path) -> dict[str, dict[str, Any]]:
    """By gradients at two shares, by the safety loss, by chance, by one model for all; and one that filters nothing."""
    anchors = {"source": str(folder / "anchors.jsonl")}
    by_gradient = {**METHOD, "scorer": "gradient_cosine", "anchors": anchors}
    return {
        "filter_10": {**by_gradient, "share": 0.1},
        "filter_30": {**by_gradient, "share": 0.3},
        "eroding": {**METHOD, "scorer": "safety_step", "share": 0.2},
        "chance": {**METHOD, "scorer": "random", "share": 0.1},
        "once": {**METHOD, "scorer": "similarity", "anchors": anchors, "scoring_model": "extraction", "share": 0.1},
        "nothing": {**METHOD, "scorer": "length", "share": 0},
    }


def write_anchors(folder: Path) -> None:
    rows = [{"id": f"h{i}", "prompt": f"Break the lamp {i}", "response": "Take it."} for i in range(3)]
    write_jsonl(folder / "anchors.jsonl", rows)


def with_filters(folder: Path, **changes: Any) -> dict[str, Any]:
    write_anchors(folder)
    return jobs_of(folder, **{"subsets": ["random"], "seeds": [1], "defences": filters(folder), **changes})


def test_rows_are_scored_by_the_model_that_is_fine_tuned(tmp_path):
    jobs = with_filters(tmp_path, seeds=[1, 2])
    scored = {name: job for name, job in jobs.items() if job.stage == "scores"}
    place = "random_sim_20.seed1"
    assert set(scored) == {
        *(f"scores.{t}.{d}.random_sim_20.seed{s}" for t in ("list", "pure_bad") for d in ("filter_10", "eroding")
          for s in (1, 2)),
        *(f"scores.{t}.{d}" for t in ("list", "pure_bad") for d in ("chance", "once")),
    }  # fmt: skip
    own, chance, once = (scored[f"scores.list.{name}"] for name in (f"filter_10.{place}", "chance", "once"))
    assert own.needs == ("align.random_sim_20.seed1",) and chance.needs == once.needs == ()
    assert f"--model_name_or_path={tmp_path / 'toy/aligned/random_sim_20/seed1'}" in own.command
    assert "--model_name_or_path=m/chat" in once.command and "--max_length=4096" in once.command
    assert not any(flag.startswith(("--model", "--max_length")) for flag in chance.command)
    assert set(own.products[0].key.parts["inputs"]) == {"rows", "anchors", "style"}
    step = scored[f"scores.list.eroding.{place}"]
    assert set(step.products[0].key.parts["inputs"]) == {"rows", "alignment", "style"}
    assert f"--alignment={tmp_path / 'pool.jsonl'}" in step.command
    assert (own.gpus, own.process) == ("one", "scores.random_sim_20.seed1") == (step.gpus, step.process)
    assert (chance.gpus, chance.process, chance.one_process) == ("none", "scores", True)
    for name, share in (("filter_10", 0.1), ("filter_30", 0.3)):  # a sweep over shares is scored once
        tuned = jobs[f"fine_tune.list__random_sim_20_with_{name}.seed1"]
        assert own.name in tuned.needs and tuned.products[0].key.parts["needs"]["scores"] == own.products[0].key.value
        place = tmp_path / "toy/scores/list/filter_10/random_sim_20/seed1/scores.jsonl"
        assert tuned.command[1] == "--defence=row_filter"
        assert set(tuned.command[2].partition("=")[2].split(",")) == {
            "scorer=gradient_cosine",
            f"share={share}",
            f"scores={place}",
        }
        assert str(place) not in str(tuned.products[0].key.parts)


def test_a_filter_of_nothing_is_scored_by_nobody_and_changes_nothing_else(tmp_path):
    jobs = with_filters(tmp_path)
    tuned = jobs["fine_tune.list__random_sim_20_with_nothing.seed1"]
    assert tuned.needs == ("align.random_sim_20.seed1",) and "scores" not in tuned.products[0].key.parts["needs"]
    alone = with_filters(tmp_path, defences={})
    assert all(jobs[name] == job for name, job in alone.items())


def test_rows_of_a_dose_are_scored_where_they_are_made(tmp_path):
    from .test_doses import tasks

    jobs = with_filters(tmp_path, tasks=tasks(tmp_path), seeds=[1, 2])
    own, chance = jobs["scores.mild_dose5.filter_10.random_sim_20.seed2"], jobs["scores.mild_dose5.chance.seed2"]
    assert set(own.needs) == {"dose.mild_dose5.seed2", "align.random_sim_20.seed2"}
    assert chance.needs == ("dose.mild_dose5.seed2",)
    assert any(flag.startswith("--rows=") and "doses/mild/seed2::" in flag for flag in own.command)
    assert set(chance.products[0].key.parts["needs"]) == {"rows"}


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ({}, "add scorer: NAME, one of similarity"),
        ({"scorer": "gradient_cosin"}, "did you mean 'gradient_cosine'"),
        ({"scorer": "gradient_cosine"}, "compares rows with harmful rows; add anchors"),
        ({"scorer": "gradient_cosine", "anchors": "a.jsonl"}, "expected {source"),
        ({"scorer": "length", "anchors": {"source": "a.jsonl"}}, "compares with no harmful rows; leave it out"),
        ({"scorer": "length", "scoring_model": "extraction"}, "looks at no model; leave it out"),
        ({"scorer": "perplexity", "scoring_model": "alinged"}, "did you mean 'aligned'"),
        ({"scorer": "length", "scoring": {"sed": 1}}, "did you mean 'seed'"),
        ({"scorer": "length", "scoring": {"torch_dtype": "float32"}}, "unknown key in defences.x.scoring"),
        ({"scorer": "length", "scoring": {"seed": "first"}}, "defences.x.scoring"),
        ({"scorer": "length", "scoring": 3}, "expected options of similarity/score_rows.py"),
        ({"scorer": "length", "scores": "a.jsonl"}, "the study scores the rows; say how with scorer: NAME"),
        ({"scorer": "length", "rows": "high"}, "reads no further rows"),
        ({"scorer": "length", "budget": "fewer"}, "trains for another number of steps"),
        ({"scorer": "length", "share": 2}, "from 0 to 1"),
        ({"scorer": "length", "share": 0, "scoring": {"seed": "first"}}, "defences.x.scoring"),
    ],
)
def test_a_wrong_filter_is_refused_in_one_line(raw, told):
    with pytest.raises(UserError) as error:
        read_setting("x", {**METHOD, **raw}, ())
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_scorer_whose_needs_a_study_does_not_have_is_refused():
    SCORERS.add("weather", "nowhere", needs=("model", "barometer"), cost="none")
    try:
        with pytest.raises(UserError, match="scorer weather needs barometer, which a study does not have"):
            read_setting("x", {**METHOD, "scorer": "weather"}, ())
    finally:
        SCORERS.remove("weather")
    with pytest.raises(UserError, match="did you mean '--share'"):
        read_setting("x", {"method": "model_soup", "share": 0.1, "shar": 1}, ())
    with pytest.raises(UserError, match="anchors"):  # they are of a filter alone
        read_setting("x", {"method": "model_soup", "anchors": {"source": "a"}}, ())
    assert "max_length" in OPTIONS and not {"anchors", "rows", "out", "scorers"} & set(OPTIONS)


def test_anchors_are_never_the_test_prompts(tmp_path, capsys):
    write_anchors(tmp_path)
    config = study(tmp_path, subsets=["random"], defences=filters(tmp_path))
    write_sources(config)
    anchors = [row for _, row in read_jsonl(tmp_path / "anchors.jsonl")]
    write_jsonl(tmp_path / "list.jsonl", [anchors[0]])
    score_jobs.check_anchors(config)
    assert "1 of its prompts are rows of tasks.list" in capsys.readouterr().err
    write_jsonl(tmp_path / "prompts.jsonl", [{"id": "p", "instruction": f" {anchors[1]['prompt']}\n"}])
    with pytest.raises(UserError, match=r"defences.filter_10.anchors: 1 of its prompts are asked by the safety bench"):
        score_jobs.check_anchors(config)
    (tmp_path / "anchors.jsonl").unlink()
    with pytest.raises(UserError, match="no such file"):
        score_jobs.check_anchors(config)
    hub = {"filter_10": {**filters(tmp_path)["filter_10"], "anchors": {"source": "LLM-Tuning-Safety/HEx-PHI"}}}
    asked = study(tmp_path, subsets=["random"], defences=hub, evaluation={"safety_bench": "hex-phi"})
    with pytest.raises(UserError, match="are the safety bench"):
        score_jobs.check_anchors(asked)


@pytest.fixture
def toy(tmp_path, monkeypatch) -> ToyStudy:
    """One task, random rows, one seed, all filters."""
    toy = ToyStudy(tmp_path, monkeypatch)
    write_anchors(tmp_path)
    toy.settings |= {"subsets": ["random"], "seeds": [1], "defences": filters(tmp_path)}
    toy.settings["tasks"].pop("pure_bad")
    toy.settings["evaluation"]["judges"] = {}
    return toy


def setting(value: Any, *path: str) -> Callable[[ToyStudy], None]:
    def change(toy: ToyStudy) -> None:
        place = toy.settings
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = value

    return change


def both(defence: str, **changes: Any) -> Callable[[ToyStudy], None]:
    return lambda toy: toy.settings["defences"][defence].update(changes)


def another_anchor(toy: ToyStudy) -> None:
    with open(toy.folder / "anchors.jsonl", "a", encoding="utf-8") as handle:
        handle.write('{"id": "new", "prompt": "Break it", "response": "Take it."}\n')


def anchors_elsewhere(toy: ToyStudy) -> None:
    os.rename(toy.folder / "anchors.jsonl", toy.folder / "moved.jsonl")
    for raw in toy.settings["defences"].values():
        if "anchors" in raw:
            raw["anchors"] = {"source": str(toy.folder / "moved.jsonl")}


def of(*defences: str) -> Callable[[str], bool]:
    """Scores and everything behind them of these filters."""
    tails = tuple(f"_with_{defence}" for defence in defences)
    return lambda name: (
        (name.startswith("scores.") and name.split(".")[2] in defences)
        or any(part.endswith(tails) for part in name.split("."))
    )


def arm_of(defence: str) -> Callable[[str], bool]:
    return lambda name: any(part.endswith(f"_with_{defence}") for part in name.split("."))


CHANGES: dict[str, tuple[Callable[[ToyStudy], None], Callable[[str], bool]]] = {
    "another scorer": (both("chance", scorer="length"), of("chance")),
    "an option of the scorer": (both("chance", scoring={"seed": 7}), of("chance")),
    "an option that is the default": (both("chance", scoring={"seed": 42}), lambda name: False),
    "an option of the model's scorer": (both("once", scoring={"avg_n": 3}), of("once")),
    "another model scores": (both("eroding", scoring_model="extraction"), of("eroding")),
    "an anchor": (another_anchor, of("filter_10", "filter_30", "once")),
    "where the anchors lie": (anchors_elsewhere, lambda name: False),
    "another share": (both("filter_30", share=0.4), arm_of("filter_30")),
    "the first of a sweep has other options": (
        both("filter_10", scoring={"gradient_tokens": 4}),
        # the scores of the other are now made under its own name; its arm stays as it is
        lambda name: of("filter_10")(name) or name.startswith("scores.list.filter_30."),
    ),
    "a filter less": (lambda toy: toy.settings["defences"].pop("once") and None, lambda name: False),
    "the extraction model": (
        lambda toy: (toy.folder / "extraction" / "model.safetensors").write_bytes(b"other") and None,
        of("once"),
    ),
    "learning rate of fine-tuning": (
        setting(5e-3, "fine_tuning", "learning_rate"),
        lambda name: name.startswith("fine_tune.") or ".cells." in name,
    ),
    "cap of the rows": (
        setting(128, "fine_tuning", "model_max_length"),
        lambda name: (
            (name.startswith(("fine_tune.", "scores.")) and not name.startswith("scores.list.chance"))
            or ".cells." in name
        ),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_exactly_the_scores_and_their_arm_run_again(toy, change):
    toy.run()
    assert toy.todo() == []
    apply, expected = CHANGES[change]
    apply(toy)
    wanted = {name for name in toy.jobs() if expected(name)}
    assert set(toy.todo()) == wanted
    assert set(toy.run()) == wanted and toy.todo() == []
    toy.shown_numbers_are_of_this_study()


def test_versions_of_scorers_are_in_the_keys_of_their_scores(toy, monkeypatch):
    toy.run()
    facts = SCORERS.facts("random")
    monkeypatch.setitem(facts, "version", 2)
    assert {name for name in toy.todo() if not arm_of("chance")(name)} == {"scores.list.chance"}
    monkeypatch.delitem(facts, "version")
    assert toy.todo() == []
    monkeypatch.setattr(score_jobs, "VERSION", scorer_options.VERSION + 1)
    assert {name for name in toy.todo() if name.startswith("scores.")} == {
        name for name in toy.jobs() if name.startswith("scores.")
    }


def test_scores_that_fail_take_their_arms_and_no_other(toy):
    name = next(name for name in toy.jobs() if name.startswith("scores.list.eroding."))
    toy.fail_at = name
    toy.run()
    rows = {row["design"]: row for row in collect(toy.results())["cells"]}
    broken = rows.pop("mixed with eroding")
    assert broken["status"] == "failed" and broken["reason"] == "the stage is broken" and Path(broken["log"]).is_file()
    assert {row["status"] for row in rows.values()} == {"done"} and len(rows) == 6
    toy.fail_at = None
    assert set(toy.run()) == {one for one in toy.jobs() if of("eroding")(one)}
    assert collect(toy.results())["n_failed"] == 0


def test_the_plan_says_what_runs_and_what_scores_cost(toy):
    plan = make_plan(toy.grid, CPU)
    stages = {stage["stage"]: stage for stage in plan["stages"]}
    assert plan["jobs_to_run"] == toy.todo() and stages["scores"]["n_run"] == 2
    assert "rows scored by" in stages["scores"]["basis"]
    assert set(toy.run()) == set(plan["jobs_to_run"])
    assert {stage["n_run"] for stage in make_plan(toy.grid, CPU)["stages"]} == {0}


def test_the_plan_counts_backward_passes_over_rows_and_anchors(tmp_path):
    """6 + 6 rows once, 3 anchors: (6 + 3) x 4.5 passes by gradients against (6 + 3) x 1 by cosines."""
    from guardrail.study.plan import plan_parts

    write_anchors(tmp_path)
    rows = [{"id": f"r{i}", "prompt": "Name a boat", "response": "The Swan."} for i in range(6)]
    write_jsonl(tmp_path / "list.jsonl", rows)
    config = study(tmp_path, subsets=["random"], seeds=[1], defences=filters(tmp_path))
    write_sources(config)
    counter = plan_parts(Grid(config, tmp_path), CPU).counter
    jobs = make_jobs(Grid(config, tmp_path), OUR_TRAINER)
    place = "random_sim_20.seed1"
    _, gradients, text = counter.count(jobs[f"scores.list.filter_10.{place}"])
    _, cosines, _ = counter.count(jobs["scores.list.once"])
    _, chance, _ = counter.count(jobs["scores.list.chance"])
    assert gradients == pytest.approx(4.5 * cosines) and chance == 0 and text.startswith("9 rows scored by")


def test_seconds_of_scoring_are_a_cost_of_the_arm(toy):
    toy.run()
    grid, results = toy.grid, toy.results()
    cells = {cell.design.defence: cell for cell in grid.cells}
    job = next(job for name, job in toy.jobs().items() if name.startswith("scores.list.eroding."))
    file = grid.folder / job.products[0].files[1]
    write_json(file, {"kind": "row_scores", "run": {"scoring_sec": 2.5, "config": {"rows": "a secret"}}})
    results.states[job.name]["scores"] = results.states[job.name]["scores"].__class__("done")
    assert scoring_sec(results, cells["eroding"]) == 2.5 and scoring_sec(results, cells["none"]) == 0
    assert without_text(file) == {"run": {"scoring_sec": 2.5}}


def test_only_some_defences_of_a_file(tmp_path):
    config = study(tmp_path, defences=filters(tmp_path))
    kept = keep_defences(config, ["chance", "filter_10"])
    assert list(kept.defences) == ["filter_10", "chance"] and kept.defence_settings.keys() == kept.defences.keys()
    with pytest.raises(UserError, match="unknown defence 'chanse'; did you mean 'chance'"):
        keep_defences(config, ["chanse"])


@pytest.mark.slow
def test_a_filtered_arm_through_the_real_scripts(tmp_path):
    """Rows are scored by the aligned model, the riskiest quarter is not trained on, a share of 0 is as without."""
    world = make_world(tmp_path)
    write_anchors(tmp_path)
    by_gradient = {**METHOD, "scorer": "gradient_cosine", "anchors": {"source": str(tmp_path / "anchors.jsonl")}}
    settings = {
        "subsets": ["none"],
        "evaluation": {**world["evaluation"], "judges": {}},
        "defences": {"quarter": {**by_gradient, "share": 0.25}, "nothing": {**by_gradient, "share": 0}},
    }
    path = write_study(tmp_path / f"{NAME}.yaml", world, **settings)
    result = finish(path, tmp_path / "outputs")
    assert (result["code"], result.get("n_failed")) == (0, 0), result["stderr"]
    grid = Grid(load_study(path), tmp_path / "outputs")
    jobs = make_jobs(grid, OUR_TRAINER)
    (job,) = [job for job in jobs.values() if job.stage == "scores"]
    scores, record = (grid.folder / file for file in job.products[0].files)
    values = {row["id"]: row["scores"]["gradient_cosine"] for _, row in read_jsonl(scores)}
    assert len(values) == 8 and len(set(values.values())) == 8
    assert read_json(record)["run"]["job_key"] == job.products[0].key.value
    run = {cell.design.defence: read_json(grid.cell_folder(cell) / "run.json")["run"] for cell in grid.cells}
    assert run["quarter"]["n"] == run["none"]["n"] == 8 and run["quarter"]["n_steps"] == run["none"]["n_steps"]
    weights = {
        cell.design.defence: next((grid.cell_folder(cell) / "slice_end").glob("*.safetensors")).read_bytes()
        for cell in grid.cells
    }
    assert weights["nothing"] == weights["none"] != weights["quarter"]
    shown = {row["defence"]: row for row in read_json(grid.folder / "study.json")["defences"]["rows"]}
    assert shown["quarter"]["rows_ratio"] == shown["quarter"]["steps_ratio"] == 1
    assert shown["quarter"]["time_ratio"] > 0
