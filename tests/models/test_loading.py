"""A checkpoint is complete or refused: in one line, before it is used, whoever loads it."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import make_llama

from guardrail.core.errors import UserError
from guardrail.models.checkpoints import check_checkpoint_files
from guardrail.models.fetch import read_config
from guardrail.models.loading import (
    check_loadable,
    load_backbone,
    load_causal_lm,
    load_classifier,
    load_complete,
    load_tokenizer,
)

LOADERS = {"causal": load_causal_lm, "backbone": load_backbone, "classifier": load_classifier}
DOWN = "model.layers.1.mlp.down_proj.weight"


def copied(folder: Path, out: Path, drop=(), extra=None, config=None, only_files=False) -> Path:
    """A copy of a checkpoint with tensors taken out or put in and configuration values replaced."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, out)
    if not only_files:
        weights = load_file(out / "model.safetensors")
        for name in drop:
            del weights[name]
        save_file({**weights, **(extra or {})}, out / "model.safetensors", metadata={"format": "pt"})
    if config:
        values = json.loads((out / "config.json").read_text())
        (out / "config.json").write_text(json.dumps({**values, **config}))
    return out


@pytest.fixture(scope="session")
def classifier(tmp_path_factory, tiny_model) -> Path:
    """A tiny sequence classifier with 14 labels."""
    from transformers import AutoModelForSequenceClassification

    folder = tmp_path_factory.mktemp("classifier")
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=14)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sharded(tmp_path_factory, tiny_model) -> Path:
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("sharded")
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(folder, max_shard_size="50KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.mark.parametrize("kind", ["causal", "backbone"])
def test_a_model_without_one_tensor_is_refused(tiny_model, tmp_path, kind):
    folder = copied(tiny_model, tmp_path / "m", drop=[DOWN])
    with pytest.raises(UserError, match=r"no complete Llama.*1 tensors missing: \S*layers\.1\.mlp\.down_proj"):
        LOADERS[kind](str(folder))
    with pytest.raises(UserError, match="1 tensors missing"):
        check_loadable(str(folder))  # lm_eval loads by itself


def test_a_moderation_model_without_its_score_is_refused(classifier, tmp_path):
    assert load_classifier(str(classifier)).config.num_labels == 14
    with pytest.raises(UserError, match=r"1 tensors missing: score\.weight"):
        load_classifier(str(copied(classifier, tmp_path / "m", drop=["score.weight"])))


def test_a_causal_lm_is_no_classifier_and_a_classifier_no_causal_lm(tiny_model, classifier):
    with pytest.raises(UserError, match=r"score\.weight.*no place for: lm_head\.weight"):
        load_classifier(str(tiny_model))
    with pytest.raises(UserError, match=r"missing: lm_head\.weight.*no place for: score\.weight"):
        load_causal_lm(str(classifier))


def test_the_trainer_refuses_an_incomplete_model(tiny_model, tmp_path):
    from guardrail.training.config import SFTConfig
    from guardrail.training.engine import load_model

    folder = copied(tiny_model, tmp_path / "m", drop=[DOWN])
    options = {"train_datasets": "x", "train_template": "Alpaca", "output_dir": str(tmp_path / "out")}
    config = SFTConfig(model_name_or_path=str(folder), **options)
    with pytest.raises(UserError, match="1 tensors missing"):
        load_model(config, {"zero_optimization": {"stage": 0}})


def test_left_over_and_misshapen_tensors_are_refused(tiny_model, tmp_path):
    import torch

    third = {"model.layers.2.mlp.down_proj.weight": torch.zeros(3, 3)}
    folder = copied(tiny_model, tmp_path / "more", extra=third)
    for loader in (load_causal_lm, load_backbone):
        with pytest.raises(UserError, match=r"no place for: \S*layers\.2\.mlp"):
            loader(str(folder))
    folder = copied(tiny_model, tmp_path / "shape", extra={"model.norm.weight": torch.zeros(7)})
    for loader in (load_causal_lm, load_backbone):
        with pytest.raises(UserError, match=r"another shape: \S*norm\.weight( \[7\] instead of \[32\])?"):
            loader(str(folder))


@pytest.mark.parametrize(
    ("version", "zero3", "asked"), [("4.57.3", True, False), ("4.57.3", False, True), ("5.1.0", True, True)]
)
def test_transformers_4_does_not_make_spread_tensors_anew(tiny_model, monkeypatch, version, zero3, asked):
    """Under ZeRO 3 it takes a parameter without values for one of another shape, if it may ignore that."""
    import transformers

    options = {}

    class Kind:
        @staticmethod
        def from_pretrained(path, **given):
            options.update(given)
            raise RuntimeError("Error(s) in loading:\n\tsize mismatch for a.weight")

    monkeypatch.setattr(transformers, "__version__", version)
    monkeypatch.setattr("transformers.integrations.is_deepspeed_zero3_enabled", lambda: zero3)
    with pytest.raises(UserError, match=r"RuntimeError: Error\(s\) in loading: size mismatch for a.weight") as caught:
        load_complete(Kind, str(tiny_model), "float32")
    assert options["ignore_mismatched_sizes"] is asked and "\n" not in str(caught.value)


def test_heads_may_be_left_out_and_a_pooler_may_be_missing(tiny_model, classifier, tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    assert load_backbone(str(tiny_model)).config.num_hidden_layers == 2
    assert load_backbone(str(classifier)).config.num_hidden_layers == 2
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=50, **sizes)).save_pretrained(tmp_path / "bert")
    assert load_backbone(str(tmp_path / "bert")).config.model_type == "bert"


def test_tied_and_sharded_checkpoints_load(tiny_model, sharded, tmp_path):
    import torch

    tied = copied(tiny_model, tmp_path / "tied", drop=["lm_head.weight"], config={"tie_word_embeddings": True})
    model = load_causal_lm(str(tied))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    whole, parts = load_causal_lm(str(tiny_model)).state_dict(), load_causal_lm(str(sharded)).state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_loading_a_backbone_leaves_the_logs_as_they_were(tiny_model):
    """`load_backbone` used to silence every later report of the process."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    try:
        logging.set_verbosity_warning()
        logging.enable_progress_bar()
        load_backbone(str(tiny_model))
        assert logging.get_verbosity() == logging.WARNING and logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity(before)


def test_shards_that_an_index_names_must_be_there_and_hold_what_it_says(sharded, tmp_path):
    folder = copied(sharded, tmp_path / "m", only_files=True)
    last = sorted(folder.glob("*.safetensors"))[-1]
    kept = last.read_bytes()
    last.unlink()
    with pytest.raises(UserError, match=rf"index\.json names {last.name}, which is not there"):
        check_checkpoint_files(folder)
    last.write_bytes(sorted(folder.glob("*.safetensors"))[0].read_bytes())
    with pytest.raises(UserError, match=rf"{last.name} lacks .*which model\.safetensors\.index\.json says"):
        check_checkpoint_files(folder)
    last.write_bytes(kept)
    check_checkpoint_files(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ["a"]}')
    with pytest.raises(UserError, match="expected weight_map"):
        check_checkpoint_files(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"a": 1}}', "\x00", "[" * 5000])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_broken_json_files_name_the_file(tiny_model, tmp_path, name, text):
    folder = copied(tiny_model, tmp_path / "m", only_files=True)
    (folder / name).write_text(text)
    for check in (check_checkpoint_files, lambda folder: load_tokenizer(str(folder))):
        with pytest.raises(UserError, match=name):
            check(folder)
    if name == "config.json":
        with pytest.raises(UserError, match=name):
            read_config(folder)


def test_an_absent_or_senseless_tokenizer_is_one_line(tiny_model, tmp_path):
    cases = [("tokenizer.json", None), ("tokenizer.json", "{}")]
    if not (tiny_model / "special_tokens_map.json").is_file():  # transformers 4 finds the special tokens there
        cases.append(("tokenizer_config.json", None))
    for number, (name, text) in enumerate(cases):
        folder = copied(tiny_model, tmp_path / str(number), only_files=True)
        (folder / name).unlink()
        if text is not None:
            (folder / name).write_text(text)
        with pytest.raises(UserError, match="tokenizer of"):
            load_tokenizer(str(folder))


def test_torch_weight_files_are_looked_at_too(tiny_model, tmp_path):
    import torch

    folder = copied(tiny_model, tmp_path / "m", only_files=True)
    (folder / "model.safetensors").unlink()
    torch.save(load_causal_lm(str(tiny_model)).state_dict(), folder / "pytorch_model.bin")
    check_checkpoint_files(folder)
    file = folder / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=r"pytorch_model\.bin .* is cut off"):
        check_checkpoint_files(folder)


def test_the_check_costs_milliseconds(tmp_path, tiny_tokenizer):
    folder = make_llama(tmp_path / "deep", tiny_tokenizer, layers=32)
    check_checkpoint_files(folder)
    started = time.perf_counter()
    check_checkpoint_files(folder)
    assert time.perf_counter() - started < 0.1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_truncation_of_any_file_is_one_line(sharded, tmp_path_factory, data):
    """Cut a weight file or a JSON file anywhere, or take it away: refused before torch reads anything."""
    folder = copied(sharded, tmp_path_factory.mktemp("cut") / "m", only_files=True)
    names = sorted(f.name for f in folder.iterdir() if f.name != "generation_config.json")
    file = folder / data.draw(st.sampled_from(names))
    content = file.read_bytes()
    size = data.draw(st.integers(-1, len(content.rstrip()) - 1))
    if size < 0:
        file.unlink()
    else:
        file.write_bytes(content[:size])
    with pytest.raises(UserError) as caught:
        check_checkpoint_files(folder)
        assert file.suffix != ".json" or "index" in file.name  # without an index there is nothing to read
        load_causal_lm(str(folder))
    assert len(str(caught.value).splitlines()) == 1


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_model_is_loaded_without_any_one_of_its_tensors(tiny_model, tmp_path_factory, data):
    from safetensors import safe_open

    with safe_open(tiny_model / "model.safetensors", framework="pt") as file:
        names = sorted(file.keys())
    dropped = data.draw(st.sets(st.sampled_from(names), min_size=1, max_size=3))
    folder = copied(tiny_model, tmp_path_factory.mktemp("drop") / "m", drop=dropped)
    with pytest.raises(UserError, match=f"{len(dropped)} tensors missing"):
        check_loadable(str(folder))
