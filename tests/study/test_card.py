"""Cards say what was measured, in text and in the metadata that the hub reads; a push arrives whole."""

from __future__ import annotations

import os
import re

import pytest
import yaml
from hub_server import HubServer
from hub_worker import Refused, Worker

from guardrail.core.errors import UserError
from guardrail.core.files import read_json, write_json, write_text
from guardrail.study import card

from .fake_study import finished_study, write_results

CELL = "pure_bad__pure_bad_high_sim_20"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    grid, config = finished_study(tmp_path_factory.mktemp("card"), subsets=["high", "low"])
    patch = pytest.MonkeyPatch()
    try:
        write_results(patch, grid, config)
    finally:
        patch.undo()
    return grid.folder


def metadata(text):
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)[1])


def test_a_checkpoint_s_card_has_its_numbers_in_text_and_metadata(written, tmp_path):
    for flags, moment in (([f"--cell={CELL}"], "final"), (["--alignment=pure_bad_high_sim_20"], "initial")):
        out = card.main([str(written), *flags, "--seed=2", f"--out={tmp_path / moment}"])
        text = (tmp_path / moment / "README.md").read_text(encoding="utf-8")
        assert out == {"card": str(tmp_path / moment / "README.md")}
        rows = read_json(written / "study.json")["cells"]
        (row,) = [r for r in rows if (r["task"], r["subset"], r["seed"]) == ("pure_bad", "high", 2)]
        value = row[moment]["harmfulness_score_percent"]
        assert f"| {value:.1f} [" in text and "One checkpoint is one training seed" in text
        (model,) = metadata(text)["model-index"]
        values = [metric["value"] for result in model["results"] for metric in result["metrics"]]
        assert values == [round(value, 2), 4.0, round(row["utility"][moment], 2)]
        assert metadata(text)["base_model"] == "m/base"
        assert ("Before this fine-tuning" in text) == (moment == "final")


def test_a_subset_s_card_says_what_its_rows_are_and_how_its_arms_fared(written, tmp_path):
    card.main([str(written), "--subset=list/high", f"--out={tmp_path}"])
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    (row,) = [r for r in read_json(written / "study.json")["subsets"] if (r["task"], r["subset"]) == ("list", "high")]
    assert f"{row['n']} rows; similarity to the task {row['similarity']:.3f}" in text
    assert "(3 seeds)" in text and metadata(text)["pretty_name"] == "high safety rows for list"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--cell=pure_bad__pure_bad_hihg_sim_20", "--seed=1"], "did you mean"),
        ([f"--cell={CELL}", "--seed=9"], "has no seed 9; it has 1, 2, 3"),
        ([f"--cell={CELL}"], "--seed says which checkpoint"),
        (["--subset=list/hihg"], "did you mean 'list/high'"),
        ([f"--cell={CELL}", "--seed=1", "--push=me/m"], "holds no weights to push"),
        (["--subset=list/high", "--push=me/m"], "needs --out FOLDER"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(written, flags, told):
    with pytest.raises(UserError) as error:
        card.main([str(written), *flags])
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_checkpoint_of_a_failed_cell_has_no_card(written, tmp_path):
    study = read_json(written / "study.json")
    row = next(r for r in study["cells"] if r["task"] == "pure_bad" and r["subset"] == "high" and r["seed"] == 1)
    row |= {"status": "failed", "reason": "boom"}
    write_json(tmp_path / "study.json", study)
    with pytest.raises(UserError, match="is failed: boom; finish the study first"):
        card.main([str(tmp_path), f"--cell={CELL}", "--seed=1"])


@pytest.mark.slow
def test_a_push_arrives_on_the_hub_with_its_card(written, tmp_path):
    rows = tmp_path / "rows"
    write_text(rows / "rows.jsonl", '{"prompt": "a", "response": "b"}\n')
    with (
        HubServer() as hub,
        Worker({**os.environ, **hub.environment(tmp_path / "home", "granted")}) as worker,
    ):
        hub.tokens["granted"] = {"*"}
        flags = [str(written), "--subset=list/high", f"--out={rows}", "--push=me/list-high"]
        out = worker.call("guardrail.study.card:main", flags)
        commit, files = hub.repos["dataset", "me/list-high"].at("main")
        assert commit == out["commit"] and {"README.md", "rows.jsonl"} <= set(files)
        with pytest.raises(Refused, match="list-high"):
            worker.call("guardrail.study.card:main", [*flags[:-1], "--push=not a name/list-high"])
