"""A training reads its model and data; it never deletes them, and it takes no half-written folder with it."""

from __future__ import annotations

import shutil

import pytest
import runs
import toy

from guardrail.core.errors import UserError
from guardrail.training import sft


@pytest.fixture
def places(tmp_path, golden_model):
    """A run's output folder with a model in `slice_end`, as align-anything leaves it, and data beside."""
    shutil.copytree(golden_model, tmp_path / "run" / "slice_end")
    shutil.copy(toy.GOLDEN / "rows.jsonl", tmp_path / "run" / "rows.jsonl")
    shutil.copy(toy.GOLDEN / "rows.jsonl", tmp_path / "rows.jsonl")
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "model-link").symlink_to(tmp_path / "run" / "slice_end")
    (tmp_path / "run-link").symlink_to(tmp_path / "run")
    (tmp_path / "sub").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"model_name_or_path": "run"}, "model_name_or_path"),
        ({"model_name_or_path": "run/slice_end"}, "model_name_or_path"),
        ({"model_name_or_path": "sub/../run/slice_end"}, "model_name_or_path"),
        ({"model_name_or_path": "model-link"}, "model_name_or_path"),
        ({"model_name_or_path": "run", "output_dir": "run/slice_end"}, "model_name_or_path"),
        ({"model_name_or_path": "run", "output_dir": "run-link/slice_end"}, "model_name_or_path"),
        ({"model_name_or_path": "run/slice_end", "output_dir": "run-link"}, "model_name_or_path"),
        ({"model_name_or_path": "run/slice_end", "output_dir": "."}, "model_name_or_path"),
        ({"train_datasets": "run/rows.jsonl"}, "train_datasets"),
        ({"train_datasets": ".", "train_data_files": "run/rows.jsonl"}, "train_data_files"),
        ({"eval_datasets": "run/rows.jsonl"}, "eval_datasets"),
    ],
)
def test_an_output_folder_with_an_input_in_it_is_refused_and_nothing_is_removed(
    flags, named, places, golden_model, monkeypatch
):
    monkeypatch.chdir(places)
    monkeypatch.setattr(sft, "train", lambda *_: pytest.fail("it would have begun"))
    before = sorted(places.rglob("*"))
    arguments = runs.arguments("run", golden_model, **{"train_datasets": "rows.jsonl", **flags})
    with pytest.raises(UserError, match=rf"is or holds --{named} .*; give another --output_dir"):
        sft.main(arguments)
    assert sorted(places.rglob("*")) == before
