"""Parity with the real align-anything 3f9decc: golden data (made by `golden/make.py`), and the package where it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import runs
import toy
from toys import REPOSITORY

from guardrail.training.data import encode_align_anything, encode_rows

GOLDEN_IDS = json.loads((toy.GOLDEN / "ids.json").read_text())
GOLDEN_LOSSES = json.loads((toy.GOLDEN / "losses.json").read_text())


@pytest.mark.parametrize("key", GOLDEN_IDS["ids"])
def test_ids_and_labels_equal_token_by_token(key, tmp_path):
    style, _, adds_bos = key.partition("+")
    tokenizer = toy.golden_tokenizer(tmp_path, bool(adds_bos), toy.CHATML)
    for golden, row in zip(GOLDEN_IDS["ids"][key], toy.golden_rows(), strict=False):
        assert golden["id"] == row["id"]
        ids, span, _ = encode_align_anything(tokenizer, style, row["messages"], GOLDEN_IDS["max_length"])
        assert ids == golden["input_ids"]
        assert span == (golden["n_masked"], len(ids))
        # a ChatML template prints no BOS: there is one only where the tokenizer adds it
        assert ids.count(tokenizer.bos_token_id) == (0 if key == "chat_template" else 1)


@pytest.mark.parametrize("key", GOLDEN_IDS["ids"])
def test_the_exact_mask_differs_only_by_the_one_token_too_many(key, tmp_path):
    style, _, adds_bos = key.partition("+")
    tokenizer = toy.golden_tokenizer(tmp_path, bool(adds_bos), toy.CHATML)
    seen_off_by_one = False
    for golden, row in zip(GOLDEN_IDS["ids"][key], toy.golden_rows(), strict=False):
        encoded = encode_rows([row], tokenizer, style, GOLDEN_IDS["max_length"], "exact", "last_assistant_turn")
        ids, spans = encoded.input_ids(0).tolist(), encoded.spans[:, 1:].tolist()
        assert ids == golden["input_ids"]
        if not spans:  # the answer was cut away
            assert golden["n_masked"] == len(ids)
            continue
        eos_in_prompt = tokenizer.eos_token_id in ids[: spans[0][0]]
        assert golden["n_masked"] - spans[0][0] == (0 if eos_in_prompt else 1)
        seen_off_by_one |= not eos_in_prompt
    assert seen_off_by_one


@pytest.mark.slow
def test_52_steps_in_float32_give_the_same_losses(single):
    """Four epochs of 100 rows at batch 8: the last batch of an epoch has four rows. Tolerance asked for: 1e-3."""
    flags = GOLDEN_LOSSES["flags"]
    assert GOLDEN_LOSSES["parameter_dtype"] == "torch.float32"
    assert {key: runs.record(single / "golden")["config"][key] for key in flags} == flags
    ours, theirs = runs.losses(single / "golden"), GOLDEN_LOSSES["losses"]
    assert len(ours) == len(theirs) == 52
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert "first answer token" in runs.record(single / "golden")["label_mask_note"]
    other = runs.losses(single / "exact")
    assert max(abs(a - b) / b for a, b in zip(other, theirs, strict=True)) > 1e-3  # the test can fail


@pytest.mark.align_anything
def test_the_installed_package_uses_the_drop_in(tmp_path, monkeypatch):
    runs.needs_align_anything()
    monkeypatch.setenv("PROMPT_STYLE", "llama2_base")
    template = pytest.importorskip("align_anything.configs.template", reason="align-anything does not import here")
    if not hasattr(template, "render_supervised"):
        pytest.skip("the drop-in template is not installed: bash scripts/install_template.sh")
    from align_anything.datasets.text_to_text.supervised import SupervisedDataset
    from align_anything.utils import template_registry

    for name in ("UltraChat", "BeaverTails", "Alpaca", "PureBad", "SAMSum", "GSM8K", "ListGroup"):
        assert template_registry.get_template_class(name)
    tokenizer = toy.golden_tokenizer(tmp_path)
    tokenizer.model_max_length = GOLDEN_IDS["max_length"]
    data = SupervisedDataset(str(toy.GOLDEN / "rows.jsonl"), template.ChatTemplate(tokenizer, "UltraChat"), tokenizer)
    for i, row in enumerate(toy.golden_rows()):
        ids, span, _ = encode_align_anything(tokenizer, "llama2_base", row["messages"], GOLDEN_IDS["max_length"])
        sample = data[i]
        assert sample["input_ids"].tolist() == ids
        assert sample["labels"].tolist() == [-100] * span[0] + ids[span[0] :]


@pytest.mark.align_anything
@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "tolerance"),
    [
        ({"bf16": False, "ds_cfgs": "ds_z3_config.json"}, 1e-5),
        ({"bf16": True, "ds_cfgs": "ds_z2_config.json"}, 1e-3),
    ],
    ids=["float32", "bfloat16"],
)
def test_two_ranks_of_the_installed_package_give_our_losses(tmp_path, golden_model, free_port, flags, tolerance):
    """Its log holds the losses of rank 0 only; ours are means over the ranks, so both of its ranks are noted here."""
    runs.needs_align_anything()
    common = {**flags, "per_device_train_batch_size": 4, "epochs": 2}
    ours = {**common, "label_mask": "align_anything", "reshuffle": False, "loss_average": "micro_batch"}
    deepspeed = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port)]
    command = [
        *deepspeed,
        "--module",
        "guardrail.training.sft",
        *runs.arguments(tmp_path / "ours", golden_model, **ours),
    ]
    process = runs.start(command)
    _, said = process.communicate(timeout=1500)
    assert process.returncode == 0, said[-3000:]
    zero_file = common.pop("ds_cfgs")
    theirs = runs.arguments(tmp_path / "theirs", golden_model, **common, save_checkpoint=False)
    script = [str(REPOSITORY / "benchmarks" / "align_anything_reference.py"), "--record_out", str(tmp_path / "record")]
    environment = {"ZERO_STAGE_FILE": zero_file, "PROMPT_STYLE": "llama2_base", "WANDB_MODE": "offline"}
    process = runs.start([*deepspeed, *script, *theirs], **environment)
    _, said = process.communicate(timeout=1500)
    assert process.returncode == 0, said[-3000:]
    ranks = [json.loads((tmp_path / name).read_text())["losses"] for name in ("record", "record.1")]
    assert len(ranks[0]) == 2 * 13 and ranks[0] != ranks[1]
    means = [sum(pair) / 2 for pair in zip(*ranks, strict=True)]
    assert runs.record(tmp_path / "ours")["inputs"]["world_size"] == 2
    assert runs.losses(tmp_path / "ours") == pytest.approx(means, rel=tolerance)
