"""A training reads its model and data; it never deletes them, and it takes no half-written folder with it."""

from __future__ import annotations

import shutil
import sys

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


def test_the_key_holds_what_the_prompt_style_makes_and_not_the_file(golden_model, monkeypatch):
    """A comment in configs/template.py trains nothing again; another style, or another text of it, does."""
    first = sft._template_hash(toy.config(model_name_or_path=str(golden_model)))
    other = toy.config(model_name_or_path=str(golden_model), prompt_style="gemma")
    assert sft._template_hash(other) != first
    monkeypatch.setattr(sft, "hash_file", lambda _: "another file")
    assert sft._template_hash(toy.config(model_name_or_path=str(golden_model))) == first
    upstream = toy.config(model_name_or_path=str(golden_model), label_mask="align_anything")
    assert sft._template_hash(upstream) == "another file"  # its texts are rendered by that file's own code


def test_a_new_run_takes_away_what_an_old_one_left(tmp_path):
    """Intermediate weights and a half-written folder of a process that is gone; a resumed run keeps its own slices."""
    gone = tmp_path / f".slice_end.tmp-{2**22 + 1}-abcdef"  # above the largest process number
    for resume, left in ((True, ["slice_3"]), (False, [])):
        for folder in ("slice_end", "slice_3", gone.name):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / "model.safetensors").write_text("x")
        (tmp_path / "run.json").write_text("{}")
        sft.make_room(tmp_path, resume)
        assert [file.name for file in tmp_path.iterdir()] == left


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 3])
def test_a_model_with_a_missing_tensor_is_refused_and_the_old_result_stays(stage, tmp_path, golden_model):
    """Its place would be filled with random numbers, also where ZeRO 3 loads piece by piece."""
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(golden_model, broken)
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "out" / "slice_end").mkdir(parents=True)
    (tmp_path / "out" / "run.json").write_text('{"run": {}, "summary": {}}')
    arguments = runs.arguments(tmp_path / "out", broken, ds_cfgs=f"ds_z{stage}_config.json")
    process = runs.start([sys.executable, "-m", "guardrail.training.sft", *arguments])
    _, stderr = process.communicate(timeout=400)
    assert process.returncode == 2 and "Traceback" not in stderr
    assert "1 tensors missing: model.layers.1.mlp.down_proj.weight" in stderr.splitlines()[-1]
    assert (tmp_path / "out" / "slice_end").is_dir() and (tmp_path / "out" / "run.json").is_file()
