"""Defences of a study: settings, jobs and keys; effects and costs from planted results; what cannot be is refused."""

from __future__ import annotations

import numpy as np
import pytest

from guardrail.core.errors import UserError
from guardrail.core.files import read_json, write_json
from guardrail.study.dag import make_jobs
from guardrail.study.defence_effects import choices_of_rows, dominates, last_probe_within, mark_front
from guardrail.study.defence_jobs import SAFE_TEMPLATE, prepare_defence
from guardrail.study.defence_settings import read_setting
from guardrail.study.grid import Grid
from guardrail.study.jobs import JobMaker
from guardrail.study.report.defences import with_defences
from guardrail.study.training_jobs import OUR_TRAINER

from .fake_study import (
    finish,
    jobs_of,
    stamp,
    study,
    write_checkpoint,
    write_data,
    write_probes,
    write_results,
    write_sources,
)

SUBSETS = ("high", "low")
DEFENCES = {
    "soup": {"method": "model_soup", "share": 0.3},
    "rows": {"method": "safety_rows", "rows": "low", "unequal_budget": True},
    "any": {"method": "safety_rows", "unequal_budget": True},
    "lora": {"method": "safe_lora", "n_layers": 2},
    "prompt": {"method": "prompt_split"},
    "vaccine": {"method": "vaccine"},
    "early": {"method": "early_stopping"},
}
TUNING = {"epochs": 1, "learning_rate": 1e-3, "per_device_train_batch_size": 4, "probes": 7}


def test_arms_without_defence_keep_names_commands_and_keys(tmp_path):
    alone = jobs_of(tmp_path)
    beside = jobs_of(tmp_path, defences=DEFENCES)
    assert set(alone) < set(beside)
    for name, job in alone.items():
        assert job.products == beside[name].products and job.command == beside[name].command, name
    files = [file for job in beside.values() for product in job.products for file in product.files]
    assert len(files) == len(set(files))


def test_each_defence_has_its_job_with_what_it_reads(tmp_path):
    jobs = jobs_of(tmp_path, defences=DEFENCES)
    stem = "list__list_high_sim_20"

    def tuned(defence):
        return jobs[f"fine_tune.{stem}_with_{defence}.seed1"]

    assert tuned("soup").command[1:] == ("--defence=model_soup", "--defence_options=share=0.3")
    assert tuned("soup").needs == ("align.list_high_sim_20.seed1",)
    assert "choose=last" in tuned("rows").command[2] and "bottom20.jsonl" in tuned("rows").command[2]
    assert tuned("rows").needs == ("align.list_high_sim_20.seed1", "select.list_20")
    assert set(tuned("rows").products[0].key.parts["needs"]) == {"model", "defence_rows"}
    assert "base=m/base" in tuned("lora").command[2] and "m/base" not in str(
        tuned("lora").products[0].key.parts["options"]
    )
    assert "defence_rows" in tuned("any").products[0].key.parts["inputs"]
    keys = [product.key.value for job in jobs.values() for product in job.products if job.stage == "fine_tune"]
    plain = jobs[f"fine_tune.{stem}.seed1"].products[0].key.value
    assert tuned("prompt").products[0].key.value == plain and keys.count(plain) == 2  # the same training
    aligned = jobs["align.list_high_sim_20_with_vaccine.seed1"]
    assert "--defence=vaccine" in aligned.command and tuned("vaccine").needs == (aligned.name,)
    assert "--defence=vaccine" not in tuned("vaccine").command
    asked = jobs[f"safety_answers.cells.{stem}_with_prompt.seed1"].command
    assert f"--eval_template={SAFE_TEMPLATE}" in asked and not any("early" in name for name in jobs)


def test_a_defence_s_rows_are_selected_though_no_arm_has_them(tmp_path):
    jobs = jobs_of(tmp_path, subsets=["random"], defences={"rows": DEFENCES["rows"]})
    assert {product.name for product in jobs["select.list_20"].products} == {"low"}


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ({}, "method of defences.x"),
        ({"method": "model_soop"}, "did you mean 'model_soup'"),
        ({"method": "model_soup", "shar": 0.1}, "did you mean '--share'"),
        ({"method": "model_soup", "share": 2}, "from 0 to 1"),
        ({"method": "safety_rows"}, "reads more rows than the arm without defence"),
        ({"method": "safety_rows", "budget": "add"}, "reads more rows and trains for another number of steps"),
        ({"method": "row_filter", "scorer": "length", "budget": "fewer"}, "trains for another number of steps"),
        ({"method": "safety_rows", "rows": "hihg", "unequal_budget": True}, "did you mean 'high'"),
        ({"method": "safety_rows", "source": "a.jsonl", "unequal_budget": True}, "say which rows with rows: NAME"),
        ({"method": "model_soup", "rows": "high"}, "reads no further rows"),
        ({"method": "booster"}, "reads harmful rows; give"),
        ({"method": "booster", "rows": {"split": "a"}}, "expected {source"),
        ({"method": "prompt_split", "share": 0.1}, "key in defences.x"),
        ({"method": "early_stopping", "largest_harmful_percent": 101}, "from 0 to 100"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(raw, told):
    with pytest.raises(UserError) as error:
        read_setting("x", raw, SUBSETS)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_refusals_that_need_the_study(tmp_path):
    with pytest.raises(UserError, match="becomes a folder"):
        study(tmp_path, defences={"a b": {"method": "model_soup"}})
    config = study(tmp_path, defences={"soup": {"method": "model_soup"}})
    write_sources(config)
    with pytest.raises(UserError, match="defences are of this project's trainer"):
        make_jobs(Grid(config, tmp_path), "align_anything.trainers.text_to_text.sft")
    rows = {"method": "lisa", "rows": "high", "unequal_budget": True}
    maker = JobMaker(Grid(study(tmp_path, defences={"deep": rows}), tmp_path), OUR_TRAINER, 1, False)
    with pytest.raises(UserError, match="this alignment has none"):
        prepare_defence(maker, "deep", None, 20, "m/base")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """`soup` halves harmfulness and lengthens life; `vaccine` does nothing; utilities and costs are planted, too."""
    folder = tmp_path_factory.mktemp("planted")
    kept = {"soup": {"method": "freeze", "share": 0.5}} | {
        name: DEFENCES[name] for name in ("vaccine", "early", "lora", "rows", "any")
    }
    config = study(folder, name="defended", defences=kept, fine_tuning=TUNING, subsets=["high", "low"])
    grid = Grid(config, folder)
    write_data(grid, folder)
    finish(grid)
    for number, cell in enumerate(grid.cells):
        place, soup = grid.cell_folder(cell), cell.design.defence == "soup"
        rate, life = {"soup": (0.3, 20.0), "rows": (0.4, 12.0)}.get(cell.design.defence, (0.7, 4.0))
        write_checkpoint(place, rate, [cell.task], 1000 + number % 12)
        write_probes(place, life, 2000 + number % 12)
        time = 3.0 if soup else 2.0
        record = {"training_sec": time, "peak_memory_bytes": 100, "n": 40, "n_steps": 10}
        write_json(place / "run.json", {"summary": {}, "run": record})
    stamp(grid)
    from guardrail.study.config import as_dict

    return grid, write_json(grid.folder / "study_config.json", as_dict(config))


def test_effects_are_what_was_planted_and_stand_beside_their_costs(planted, monkeypatch):
    grid, config = planted
    write_results(monkeypatch, grid, config)
    result = read_json(grid.folder / "study.json")
    rows = {row["defence"]: row for row in result["defences"]["rows"]}
    soup, vaccine, early = rows["soup"], rows["vaccine"], rows["early"]
    assert soup["final_difference"] == pytest.approx(-40, abs=8) and soup["final_p_value"] < 0.05
    assert soup["final_interval"][1] < -20 and soup["life_difference"] > 15 and soup["life_interval"][0] > 0
    assert soup["n_arms"] == 4 and soup["n_seeds"] == 3 and not soup["depends_on_judge"]
    assert soup["sign_by_judge"]["harmful"] == -1 == soup["sign_by_judge"]["keyword"]
    assert soup["time_ratio"] > 1 == soup["steps_ratio"] and soup["memory_ratio"] == 1
    assert "life_difference" not in rows["lora"]  # what is saved is not what was probed
    low, high = vaccine["final_interval"]
    assert low <= 0 <= high and vaccine["time_ratio"] == 1
    assert early["final_difference"] < -20 and 0 <= early["steps_ratio"] < 0.5
    levels = {row["defence"]: row for row in result["defences"]["levels"]}
    assert set(levels) == {"none", "soup", "vaccine", "lora", "rows", "any"} and levels["soup"]["on_front"]
    (choice,) = result["defences"]["choices"]  # which safety rows: the one pair that differs in nothing else
    assert (choice["first"], choice["second"]) == ("rows", "any") and choice["final_p_value_holm"] < 0.05
    assert choice["final_difference"] == pytest.approx(
        rows["rows"]["final_difference"] - rows["any"]["final_difference"], abs=0.01
    )
    assert choice["life_difference"] > 5 and (grid.folder / "tables" / "defence_choices.md").is_file()
    for row in rows.values():
        assert row["final_p_value_holm"] >= row["final_p_value"]
    assert result["headline"]["verdict"] != "defences"  # high and low are compared first
    text = (grid.folder / "tables" / "defences.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert lines[1].startswith("| soup") or lines[1].startswith("| early")  # best first
    page = (grid.folder / "report.html").read_text(encoding="utf-8")
    assert 'id="defences"' in page and (grid.folder / "figures" / "defences.png").is_file()
    assert 'id="figure-survival_defences"' in page
    curves = with_defences(result["survival"]["arms"], result["defences"]["rows"], "mixed")
    assert {arm["defence"] for arm in curves} == {"none", "soup", "vaccine", "rows", "any"}  # not what is only saved
    assert all(row["design"] == "mixed" for row in result["defences"]["rows"])


def test_what_is_asked_of_no_arm_has_no_difference():
    """A study with defences and without harmless requests ended in a TypeError when its table was made."""
    from guardrail.study.equivalence import averaged

    assert averaged([], "final") is None


def test_a_study_without_defences_has_no_block(tmp_path, monkeypatch):
    from .fake_study import finished_study

    grid, config = finished_study(tmp_path)
    write_results(monkeypatch, grid, config)
    assert "defences" not in read_json(grid.folder / "study.json")
    assert not (grid.folder / "tables" / "defences.md").exists()


def test_the_front_holds_what_nothing_else_dominates():
    rng = np.random.default_rng(0)
    for _ in range(50):
        levels = [
            {"final_percent": float(a), "utility": float(b), "on_front": False} for a, b in rng.integers(0, 5, (6, 2))
        ]
        mark_front(levels)
        front = [level for level in levels if level["on_front"]]
        assert front and not any(dominates(a, b) for a in front for b in front)
        assert all(any(dominates(a, b) for a in front) for b in levels if not b["on_front"])


def test_only_defences_that_differ_in_their_rows_alone_are_a_choice_of_rows():
    raw = {
        "high3": {"method": "safety_rows", "share": 0.03, "rows": "high"},
        "low3": {"method": "safety_rows", "share": 0.03, "rows": "low"},
        "low10": {"method": "safety_rows", "share": 0.1, "rows": "low"},
        "pool3": {"method": "safety_rows", "share": 0.03},
        "lisa": {"method": "lisa"},
        "soup": {"method": "model_soup"},
        "half": {"method": "model_soup", "share": 0.5},
    }
    settings = [
        read_setting(name, one | ({} if one["method"] == "model_soup" else {"unequal_budget": True}), SUBSETS)
        for name, one in raw.items()
    ]
    assert [(first.name, second.name) for first, second in choices_of_rows(settings)] == [
        ("high3", "low3"),
        ("high3", "pool3"),
        ("low3", "pool3"),
    ]


def test_early_stopping_stops_before_the_limit_is_passed():
    assert last_probe_within(np.array([0.0, 0.1, 0.3, 0.1]), 0.2) == 1
    assert last_probe_within(np.array([0.0, 0.1]), 0.2) == 1
    assert last_probe_within(np.array([0.5, 0.1]), 0.2) == 0


def test_early_stopping_does_not_flatter_itself():
    """Answers that are noise alone: chosen on one half, the other half's gain has mean zero."""
    from guardrail.study.defence_effects import stopped_early
    from guardrail.study.trajectories import Trajectory

    setting = read_setting("early", {"method": "early_stopping", "largest_harmful_percent": 48}, SUBSETS)
    gains = []
    for seed in range(60):
        flags = np.random.default_rng(seed).random((3, 40, 1, 6)) < 0.5
        arm = Trajectory(
            ("mixed", "t", "high", 1), (1, 2, 3), tuple(map(str, range(40))), (0, 1, 2, 4, 8, 16), flags, None
        )
        gains.append(stopped_early([arm], setting)["final_difference"])
    assert abs(np.mean(gains)) < 3 * np.std(gains) / len(gains) ** 0.5
