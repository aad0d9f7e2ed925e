"""Designs of alignment: names, keys and jobs of each; every number says its design; who may stand in for whom."""

from __future__ import annotations

import csv
import re

import pytest
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.core.files import read_json
from guardrail.study.config import load_study
from guardrail.study.designs import adapter_parameters, alignment_rows, n_adapters, training_operations
from guardrail.study.grid import Grid
from guardrail.study.training_jobs import OUR_TRAINER

from .fake_study import finished_study, jobs_of, study, write_results

MARGINS = {"harmfulness_points": 10, "utility_points": 3}
ALL = ["mixed", "continued", "adapter", "adapter+lora", "mixed+lora"]


def test_mixed_keeps_names_and_keys_beside_other_designs(tmp_path):
    alone = jobs_of(tmp_path)
    beside = jobs_of(tmp_path, designs=ALL, equivalence=MARGINS, replay_fraction=0.3, keep="none")
    assert set(alone) < set(beside)
    for name, job in alone.items():
        assert job.products == beside[name].products, name
        assert job.command == beside[name].command and job.variables == beside[name].variables


def test_every_design_has_checkpoints_of_its_own_and_shares_what_it_can(tmp_path):
    jobs = jobs_of(tmp_path, designs=ALL, equivalence=MARGINS)
    files = [name for job in jobs.values() for product in job.products for name in product.files]
    assert len(files) == len(set(files))
    keys = [product.key.value for job in jobs.values() for product in job.products if job.stage in ("align", "mix")]
    assert len(keys) == len(set(keys))
    continued, adapter = (jobs[f"align.list_high_sim_20_{name}.seed1"] for name in ("continued", "adapter"))
    assert continued.needs == adapter.needs == ("mix.list_high_sim_20_replay.seed1",)
    assert continued.variables["BASE_MODEL"] == adapter.variables["BASE_MODEL"] == "m/chat"
    assert jobs["align.list_high_sim_20.seed1"].variables["BASE_MODEL"] == "m/base"
    assert "--use_lora=True" in adapter.command and "--save_full_model=False" in adapter.command
    tuned = jobs["fine_tune.list__list_high_sim_20_adapter_lora.seed1"]
    assert tuned.needs == ("align.list_high_sim_20_adapter.seed1",) and "--use_lora=True" in tuned.command
    assert jobs["fine_tune.list__list_high_sim_20_lora.seed1"].needs == ("align.list_high_sim_20.seed1",)


def test_adapters_are_trained_by_the_trainer_that_stores_them(tmp_path):
    theirs = "align_anything.trainers.text_to_text.sft"
    jobs = jobs_of(tmp_path, theirs, designs=["mixed", "adapter"], equivalence=MARGINS)
    assert jobs["align.list_high_sim_20_adapter.seed1"].variables["SFT_MODULE"] == OUR_TRAINER
    assert jobs["align.list_high_sim_20.seed1"].variables["SFT_MODULE"] == theirs


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"designs": ["mixt"]}, "did you mean 'mixed'"),
        ({"designs": ["adapter+lore"]}, "did you mean 'lora'"),
        ({"designs": []}, "designs is empty"),
        ({"designs": ["mixed", "mixed+full"], "equivalence": MARGINS}, "holds a value twice"),
        ({"designs": ["mixed", "continued"]}, "margins are set beforehand"),
        ({"equivalence": {"harmfulness_points": 0, "utility_points": 3}}, "must be above 0"),
        ({"replay_fraction": 1.0}, "below 1"),
        ({"keep": "some"}, "keep 'some'"),
        ({"checkpoints_at_once": 1}, "make 2"),
        ({"fine_tuning": {"epochs": 1, "learning_rate": 1e-3, "per_device_train_batch_size": 4, "method": "x"}}, "x"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path, changes, told):
    with pytest.raises(UserError) as error:
        study(tmp_path, **changes)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_the_method_of_the_file_is_that_of_designs_that_name_none(tmp_path):
    block = {"epochs": 1, "learning_rate": 1e-3, "per_device_train_batch_size": 4, "method": "lora"}
    found = study(tmp_path, fine_tuning=block, designs=["mixed", "adapter+full"], equivalence=MARGINS)
    assert [design.name for design in found.all_designs] == ["mixed+lora", "adapter"]


def test_costs_of_the_paper_s_designs():
    adapter = load_study(REPOSITORY / "configs/studies/paper_llama2_7b_adapter.yaml")
    mixed = load_study(REPOSITORY / "configs/studies/paper_llama2_7b.yaml")
    assert adapter_parameters(adapter) == 32 * 16 * 4 * 4096  # layers, rank, two modules with two sides, width
    (design,) = adapter.all_designs
    assert n_adapters(design) == 2
    assert training_operations(adapter.alignment, "lora", adapter.lora) == 4
    assert training_operations(mixed.alignment, "full", mixed.lora) == 8
    rows = {a.name: alignment_rows(adapter, a, 200_000, 30_000) for a in Grid(adapter).alignments}
    assert rows["list_high_sim_1000_adapter"] == round(1000 / 0.9) == rows["none_adapter"]
    assert rows["full_adapter"] == round(30_000 / 0.9)
    assert alignment_rows(mixed, Grid(mixed).alignments[0], 200_000, 30_000) == 201_000


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A made-up study with two designs of the same rates, and what it wrote."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("designs")
        grid, config = finished_study(
            folder, designs=["mixed", "continued"], equivalence=MARGINS, subsets=["high", "low"], seeds=[1, 2, 3]
        )
        write_results(patch, grid, config)
        yield grid, read_json(grid.folder / "study.json")


def test_every_row_and_caption_says_its_design(compared):
    grid, result = compared
    assert result["designs"] == ["mixed", "continued"]
    assert {row["design"] for row in result["cells"]} == {"mixed", "continued"}
    for block in ("arms", "comparisons", "overall"):
        rows = result["statistics"][block]
        assert [row["design"] for row in rows].count("mixed") == len(rows) / 2
    for file in (grid.folder / "tables").glob("*.csv"):
        with open(file, newline="") as handle:
            named = "design" in next(csv.reader(handle))
        text = file.with_suffix(".md").read_text(encoding="utf-8")
        assert named or "Design: mixed." in text, file.name
    page = (grid.folder / "report.html").read_text(encoding="utf-8")
    captions = re.findall(r"<figcaption.*?</figcaption>", page, re.DOTALL)
    assert captions
    for caption in captions:
        assert "Design: mixed." in caption or "Designs: mixed, continued." in caption


def test_designs_are_compared_arm_by_arm_and_all_have_to_agree(compared):
    _, result = compared
    block = result["statistics"]["equivalence"]
    assert block["reference"] == "mixed" and block["margins"] == MARGINS
    tests = block["tests"]
    arms = {(row["task"], row["subset"]) for row in tests if row["scope"] == "arm"}
    assert arms == {(task, subset) for task in ("list", "pure_bad") for subset in ("high", "low")}
    assert {row["outcome"] for row in tests} == {"initial", "final", "change", "utility"}
    assert {row["scope"] for row in tests} == {"arm", "all arms", "high minus low"}
    for row in tests:
        low, high = row["interval_90_points"]
        inside = -row["margin_points"] < low and high < row["margin_points"]
        assert (row["verdict"] == "equivalent") == inside
    (summary,) = block["designs"]
    assert summary["stands_in"] == all(row["verdict"] == "equivalent" for row in tests)
    assert summary["n_tests"] == len(tests)
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(result, read_json(REPOSITORY / "configs/schemas/study.schema.json"))


def test_a_difference_is_the_design_minus_the_reference(compared):
    _, result = compared
    arms = {(row["design"], row["task"], row["subset"]): row for row in result["statistics"]["arms"]}
    for row in result["statistics"]["equivalence"]["tests"]:
        if row["scope"] == "arm" and row["outcome"] == "final":
            one, two = (arms[design, row["task"], row["subset"]] for design in ("continued", "mixed"))
            assert row["difference_points"] == pytest.approx(one["final_percent"] - two["final_percent"], abs=1e-3)
