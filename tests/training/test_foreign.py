"""Another project's trainer in the place of ours: what is refused, what is read from its output, what is recorded.

Made-up output everywhere; the tests at the end run the real align-anything where it is installed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import foreign_toy
import pytest
import runs
import toy
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.training import foreign, trainers
from guardrail.training import foreign_output as output_of
from guardrail.training.trainers import ALIGN_ANYTHING_TRAINER, OUR_TRAINER

RUN = {"bf16": False, "ds_cfgs": "ds_z3_config.json"}


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A folder that stands for the installed package: DeepSpeed files, our template, one source file."""
    folder = tmp_path / "package" / "align_anything"
    (folder / "configs").mkdir(parents=True)
    shutil.copytree(REPOSITORY / "configs" / "deepspeed", folder / "configs" / "deepspeed")
    shutil.copyfile(REPOSITORY / "configs" / "template.py", folder / "configs" / "template.py")
    (folder / "trainer.py").write_text("print('hello')\n")
    monkeypatch.setattr(trainers, "package_folder", lambda module: folder)
    monkeypatch.delenv("SFT_MODULE", raising=False)
    trainers.trainer_hash.cache_clear()
    yield folder
    trainers.trainer_hash.cache_clear()


# ---- what align-anything cannot do


def test_the_padded_steps_of_align_anything_are_those_of_padding_free(package):
    config = toy.config(**{**RUN, "batching": "padding_free"})
    trainers.refuse(ALIGN_ANYTHING_TRAINER, config, {"batching"})
    assert trainers.as_trained(ALIGN_ANYTHING_TRAINER, config).batching == "padded"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label_mask": "exact"}, "label_mask is always 'align_anything', not 'exact'"),
        ({"batching": "packed"}, "batching is always 'padded'"),
        ({"train_on": "all_assistant_turns"}, "train_on is always"),
        ({"loss_average": "tokens"}, "loss_average is always 'micro_batch'"),
        ({"reshuffle": True}, "reshuffle is always False"),
        ({"data_seed": 7}, "data_seed is always 0, not 7"),
        ({"max_grad_norm": 0.5}, "max_grad_norm is always 1.0"),
        ({"adam_betas": (0.9, 0.99)}, "adam_betas is always (0.9, 0.95)"),
        ({"defence": "lisa"}, "defence is always 'none'"),
        ({"max_steps": 3}, "max_steps is always None"),
        ({"resume": True}, "resume is always False"),
        ({"save_full_model": False, "use_lora": True}, "save_full_model is always True"),
        ({"bf16": False, "ds_cfgs": "ds_z0_config.json"}, "float32 under ZeRO 3 only and ds_z0_config.json is ZeRO 0"),
        ({"bf16": False, "ds_cfgs": "ds_z2_config.json"}, "is ZeRO 2"),
        ({"ds_cfgs": "ds_z3_config.json", "use_lora": True}, "take ds_z2_config.json for LoRA"),
        ({"ds_cfgs": "mine.json"}, "no DeepSpeed file 'mine.json'; it has ds_z0_config.json, "),
        ({"train_datasets": "a,b"}, "splits train_datasets at the comma"),
    ],
)
def test_what_align_anything_cannot_do_is_refused_in_one_line(package, options, words):
    config = toy.config(**{**RUN, **options})
    with pytest.raises(UserError, match=r"train with SFT_MODULE=guardrail\.training\.sft") as caught:
        trainers.refuse(ALIGN_ANYTHING_TRAINER, config, set(options))
    assert words in str(caught.value) and "\n" not in str(caught.value)
    trainers.refuse(OUR_TRAINER, config, set(options))  # ours has no such limits


def test_every_option_is_honoured_recorded_or_known_to_decide_nothing():
    """A new option of ours is refused until somebody has looked what align-anything does with it."""
    names = [item.name for item in foreign.options_of(foreign.SFTConfig)]
    assert [name for name in names if not trainers.is_known(ALIGN_ANYTHING_TRAINER, name)] == []
    known = trainers.ALIGN_ANYTHING
    sorted_in = [*known.reads, *known.actual, *known.ignored, *known.environment]
    assert sorted(sorted_in) == sorted(names)  # each once, none that is not ours


def test_defaults_that_it_does_not_share_are_recorded_as_what_it_does(package):
    config = toy.config(**RUN, seed=5, data_seed=5)  # the scripts pass SEED as both
    trainers.refuse(ALIGN_ANYTHING_TRAINER, config, {"seed", "data_seed", "bf16", "ds_cfgs"})
    changed = trainers.not_honoured(ALIGN_ANYTHING_TRAINER, config)
    assert changed["data_seed"] == {"asked": 5, "done": 0}
    assert set(changed) == {"label_mask", "data_seed", "reshuffle", "loss_average", "trust_remote_code"}
    done = trainers.as_trained(ALIGN_ANYTHING_TRAINER, config)
    assert (done.label_mask, done.data_seed, done.seed) == ("align_anything", 0, 5)
    assert trainers.as_trained(OUR_TRAINER, config) is config
    assert trainers.not_honoured("other.sft", config) == {}


def test_the_default_is_align_anything_where_it_can_and_ours_with_a_reason_elsewhere(package, monkeypatch):
    can, cannot = toy.config(**RUN), toy.config(bf16=False, ds_cfgs="ds_z0_config.json")
    choose = lambda *configs: trainers.choose_trainer([(c, ()) for c in configs], import_it=False)  # noqa: E731
    assert choose(can) == (ALIGN_ANYTHING_TRAINER, "align-anything is importable")
    module, reason = choose(can, cannot)  # one training of a study that it cannot do: none is its
    assert module == OUR_TRAINER and "ZeRO 3 only" in reason
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1))
    module, reason = trainers.choose_trainer([(can, ())])
    assert (module, reason) == (OUR_TRAINER, "align-anything is installed but does not import")
    monkeypatch.setenv("SFT_MODULE", "other.sft")
    assert choose(cannot) == ("other.sft", "set by SFT_MODULE")


def test_a_package_without_the_drop_in_template_is_refused(package):
    trainers.check_package(ALIGN_ANYTHING_TRAINER)
    (package / "configs" / "template.py").write_text("# its own\n")
    with pytest.raises(UserError, match=r"run: bash scripts/install_template\.sh"):
        trainers.check_package(ALIGN_ANYTHING_TRAINER)


def test_a_module_that_is_not_installed_is_one_line():
    with pytest.raises(UserError, match=r"no package nowhere_to_be_found in this environment"):
        trainers.check_package("nowhere_to_be_found.sft")


def test_the_hash_of_a_trainer_follows_its_code_and_not_our_template(package):
    before = trainers.trainer_hash(ALIGN_ANYTHING_TRAINER)
    trainers.trainer_hash.cache_clear()
    (package / "configs" / "template.py").write_text("# another comment\n")
    assert trainers.trainer_hash(ALIGN_ANYTHING_TRAINER) == before
    trainers.trainer_hash.cache_clear()
    (package / "trainer.py").write_text("print('good bye')\n")
    assert trainers.trainer_hash(ALIGN_ANYTHING_TRAINER) != before
    assert trainers.trainer_hash(OUR_TRAINER) is None


def test_only_what_was_given_and_is_read_is_passed_on_as_pairs(tmp_path, golden_model):
    flags = runs.arguments(tmp_path / "out", golden_model, ds_cfgs="ds_z3_config.json", seed=3, data_seed=3, r=4)
    flags = [*flags, "--target_modules=[q_proj,k_proj]", "--prompt_style=llama2"]
    config, given = foreign.parse_flags(flags)
    passed = foreign.foreign_flags(ALIGN_ANYTHING_TRAINER, config, given, tmp_path / "here", "tensorboard")
    pairs = dict(zip(passed[::2], passed[1::2], strict=True))
    assert pairs["--output_dir"] == str(tmp_path / "here") and pairs["--log_type"] == "tensorboard"
    assert pairs["--target_modules"] == "[q_proj,k_proj]" and pairs["--r"] == "4" and pairs["--seed"] == "3"
    assert pairs["--save_checkpoint"] == "False"  # its default is True
    assert not {"--data_seed", "--prompt_style", "--ds_cfgs", "--label_mask", "--lora_alpha"} & set(pairs)


def test_lora_is_asked_for_by_the_name_that_peft_knows(tmp_path, golden_model):
    flags = runs.arguments(tmp_path / "out", golden_model, ds_cfgs="ds_z2_config.json", bf16=True, use_lora=True)
    config, given = foreign.parse_flags(flags)
    passed = foreign.foreign_flags(ALIGN_ANYTHING_TRAINER, config, given, tmp_path / "here", "tensorboard")
    assert dict(zip(passed[::2], passed[1::2], strict=True))["--task_type"] == "CAUSAL_LM"
    assert "--task_type" not in foreign.foreign_flags("other.sft", config, given, tmp_path / "here", "tensorboard")


# ---- losses


def test_micro_batches_become_optimizer_steps():
    logged = {i: float(i) for i in range(1, 8)}
    assert output_of.step_losses(logged, 1, 7, "x") == [1, 2, 3, 4, 5, 6, 7]
    assert output_of.step_losses(logged, 3, 7, "x") == [2, 5]  # the seventh updated nothing


@pytest.mark.parametrize(
    ("losses", "expected", "words"),
    [
        ({1: 1.0, 2: 1.0}, 3, r"no loss for step 3 of 3: it ended too early"),
        ({1: 1.0, 3: 1.0}, 3, r"no loss for step 2 of 3"),
        ({1: 1.0, 2: 1.0, 3: 1.0}, 2, r"has 3 steps where the data make 2"),
        ({1: 1.0, 2: float("nan")}, 2, r"the loss became nan at step 2 of 2"),
        ({1: float("inf")}, 0, r"the loss became inf at step 1 of 1"),
    ],
)
def test_a_log_that_is_no_whole_run_is_refused(losses, expected, words):
    with pytest.raises(UserError, match=words):
        output_of.step_losses(losses, 1, expected, "tensorboard")
    with pytest.raises(UserError, match="fewer than gradient_accumulation_steps 4"):
        output_of.step_losses({1: 1.0}, 4, 1, "tensorboard")


def test_losses_from_tensorboard(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    assert output_of.tensorboard_losses(tmp_path) == {}
    writer = SummaryWriter(str(tmp_path))
    for step in range(1, 2001):  # more than TensorBoard keeps by default
        writer.add_scalar("train/loss", 1 / step, step)
        writer.add_scalar("train/lr", 0.1, step)
    writer.close()
    name, losses = output_of.find_losses(tmp_path)
    assert name == "tensorboard" and len(losses) == 2000
    assert losses[2000] == pytest.approx(1 / 2000)


def wandb_file(folder: Path, records: list[bytes]) -> Path:
    """A run file: records in blocks of 32 KiB, those that do not fit cut in parts (LevelDB's log format)."""
    data = bytearray(output_of.WANDB_MAGIC)
    for record in records:
        first = True
        while True:
            left = output_of.WANDB_BLOCK - len(data) % output_of.WANDB_BLOCK
            if left < 7:
                data += bytes(left)
                continue
            part, record = record[: left - 7], record[left - 7 :]
            kind = (1 if first else 4) if not record else (2 if first else 3)
            data += bytes(4) + len(part).to_bytes(2, "little") + bytes([kind]) + part
            first = False
            if not record:
                break
    file = folder / "wandb" / "offline-run-20260101_000000-abc" / "run-abc.wandb"
    file.parent.mkdir(parents=True)
    file.write_bytes(data)
    return file


def test_losses_from_weights_and_biases(tmp_path):
    from wandb.proto import wandb_internal_pb2

    records = []
    for step in range(1, 200):
        record = wandb_internal_pb2.Record()
        record.history.step.num = step
        for key, value in (("train/loss", 1 / step), ("train/step", step), ("noise", "x" * 997)):
            item = record.history.item.add()
            item.nested_key.append(key)
            item.value_json = json.dumps(value)
        records.append(record.SerializeToString())
    records.insert(7, b"")
    records.insert(9, wandb_internal_pb2.Record(num=1).SerializeToString() * 30000)  # several blocks long
    file = wandb_file(tmp_path, records)
    name, losses = output_of.find_losses(tmp_path)
    assert name == "wandb" and losses == {step: 1 / step for step in range(1, 200)}
    file.write_bytes(file.read_bytes()[:-500])  # killed while it was written
    assert output_of.wandb_losses(tmp_path) == {step: 1 / step for step in range(1, 199)}
    file.write_bytes(b"something else")
    with pytest.raises(UserError, match="use LOG_TYPE=tensorboard"):
        output_of.wandb_losses(tmp_path)


# ---- arguments


def test_a_trainer_that_understood_something_else_is_refused(tmp_path):
    text = "train_cfgs: {learning_rate: 0.001, bf16: false, adam_betas: [0.9, 0.95]}\ndata_cfgs: {train_name: {}}\n"
    (tmp_path / "arguments.yaml").write_text(text)
    arguments = output_of.read_arguments(tmp_path)
    assert arguments["train_name"] is None
    wanted = {"learning_rate": 1e-3, "bf16": False, "adam_betas": (0.9, 0.95), "prompt_style": "llama2"}
    output_of.check_arguments(arguments, wanted)
    with pytest.raises(UserError, match=r"used learning_rate 0\.001 where 0\.002 was asked for"):
        output_of.check_arguments(arguments, {"learning_rate": 2e-3})
    with pytest.raises(UserError, match="used bf16 False where True"):
        output_of.check_arguments(arguments, {"bf16": True})
    (tmp_path / "arguments.yaml").write_text("a: [")
    with pytest.raises(UserError, match="cannot read"):
        output_of.read_arguments(tmp_path)


# ---- weights


@pytest.fixture
def saved(tmp_path, golden_model) -> Path:
    """A folder as align-anything saves it at ZeRO 2 and 3: torch's format, the configuration of training."""
    import torch
    from safetensors.torch import load_file

    folder = tmp_path / "slice_end"
    shutil.copytree(golden_model, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config.pop("torch_dtype", None)
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16", "use_cache": False}))
    return folder


def test_torch_weights_become_safetensors_and_the_configuration_says_their_type(saved, golden_model):
    from safetensors.torch import load_file

    from guardrail.models.loading import load_causal_lm

    facts = output_of.finish_weights(saved, golden_model)
    assert facts == {"format": "torch", "dtype": "float32", "config_said_dtype": "bfloat16", "n_tensors": 21}
    assert not list(saved.glob("*.bin"))
    before, after = load_file(golden_model / "model.safetensors"), load_file(saved / "model.safetensors")
    assert before.keys() == after.keys() and all((before[name] == after[name]).all() for name in before)
    config = json.loads((saved / "config.json").read_text())
    assert (config["dtype"], config["use_cache"]) == ("float32", True)
    assert (saved / "generation_config.json").is_file()  # from the base model: it says what ends an answer
    load_causal_lm(str(saved))
    assert output_of.finish_weights(saved, golden_model)["format"] == "safetensors"  # again: nothing to do


def test_weights_that_lie_in_one_buffer_become_safetensors(saved, golden_model):
    """As DeepSpeed leaves bfloat16 weights under ZeRO 2: parts of one flat tensor."""
    import torch
    from safetensors.torch import load_file

    state = torch.load(saved / "pytorch_model.bin", weights_only=True)
    buffer = torch.cat([tensor.flatten() for tensor in state.values()])
    parts = buffer.split([tensor.numel() for tensor in state.values()])
    views = {name: part.view(state[name].shape) for name, part in zip(state, parts, strict=True)}
    torch.save(views, saved / "pytorch_model.bin")
    assert output_of.finish_weights(saved, golden_model)["n_tensors"] == len(state)
    after = load_file(saved / "model.safetensors")
    assert state.keys() == after.keys() and all((state[name] == after[name]).all() for name in state)


def test_a_tied_head_is_saved_once(saved, golden_model):
    import torch
    from safetensors.torch import load_file

    state = torch.load(saved / "pytorch_model.bin", weights_only=True)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    torch.save(state, saved / "pytorch_model.bin")
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    output_of.finish_weights(saved, golden_model)
    assert set(state) - set(load_file(saved / "model.safetensors")) == {"lm_head.weight"}


@pytest.mark.parametrize("harm", ["no_config", "no_weights", "cut", "no_tensor", "code"])
def test_weights_that_are_incomplete_are_one_line(saved, golden_model, harm):
    import torch

    file = saved / "pytorch_model.bin"
    if harm == "no_config":
        (saved / "config.json").unlink()
    elif harm == "no_weights":
        file.unlink()
    elif harm == "cut":
        file.write_bytes(file.read_bytes()[:-1000])
    else:
        torch.save({"a": 1} if harm == "no_tensor" else {"a": Path("x")}, file)  # a class that only pickle would load
    with pytest.raises(UserError) as caught:
        output_of.finish_weights(saved, golden_model)
    assert str(saved) in str(caught.value) and "\n" not in str(caught.value)
    assert not list(saved.glob("*.safetensors"))


EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


def test_a_grown_vocabulary_and_old_tables_are_no_other_model():
    base = {EMBEDDING: (100, 8), HEAD: (100, 8), NORM: (8,)}
    output_of.check_tensors({**base, EMBEDDING: (101, 8), HEAD: (101, 8)}, base, False)
    output_of.check_tensors(base, {**base, "model.layers.0.self_attn.rotary_emb.inv_freq": (4,)}, False)
    output_of.check_tensors({EMBEDDING: (100, 8), NORM: (8,)}, base, True)
    output_of.check_tensors({"any": (1,)}, {}, False)  # a base in torch's format is not read


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({NORM: (0,)}, "saved 1 tensors without a value, the first: model.norm.weight"),  # ZeRO 3 kept its parts
        ({"base_model.model.lm_head.weight": (100, 8)}, "added the tensor base_model.model.lm_head.weight"),
        ({HEAD: None}, "left out the tensor lm_head.weight"),
        ({NORM: (4,)}, r"saved model.norm.weight as \(4,\), and the model has \(8,\)"),
        ({NORM: (9,)}, "saved model.norm.weight as"),
        ({EMBEDDING: (90, 8)}, "saved model.embed_tokens.weight as"),
    ],
)
def test_tensors_of_another_model_are_one_line(changes, words):
    base = {EMBEDDING: (100, 8), HEAD: (100, 8), NORM: (8,)}
    shapes = {name: shape for name, shape in {**base, **changes}.items() if shape is not None}
    with pytest.raises(UserError, match=words) as caught:
        output_of.check_tensors(shapes, base, False)
    assert "\n" not in str(caught.value) and f"SFT_MODULE={OUR_TRAINER}" in str(caught.value)


# ---- a whole run of a made-up trainer


@pytest.fixture
def trained(tmp_path, golden_model, monkeypatch):
    """Runs the toy trainer through `guardrail.training.foreign`; counts how often it was started."""
    monkeypatch.setattr(foreign, "launch", lambda command: started.append(command) or subprocess.call(command))
    monkeypatch.syspath_prepend(str(Path(foreign_toy.__file__).parent))
    monkeypatch.setenv("GUARDRAIL_JOB_KEY", "the-key")
    started: list[list[str]] = []

    def train(**flags):
        flags = runs.arguments(tmp_path / "out", golden_model, **flags)
        return foreign.main([sys.executable, foreign_toy.__file__, "--module", "foreign_toy", "--", *flags])

    train.started, train.out = started, tmp_path / "out"
    return train


def test_a_foreign_run_leaves_what_ours_leaves(trained):
    old = trained.out / f".trainer.tmp-{2**22 + 1}-abcdef"  # of a killed run: no process has this number
    (old / "slice_end").mkdir(parents=True)
    summary = trained()
    names = ["losses.jsonl", "run.json", "slice_end"]
    assert sorted(path.name for path in trained.out.iterdir()) == names  # no environ.txt, no second copy of the weights
    assert runs.losses(trained.out) == [3, 2, 1]
    assert summary == json.loads((trained.out / "run.json").read_text())["summary"]
    assert set(summary) == {"output_dir", "checkpoint", "losses", "n_rows", "n_steps", "final_loss"}
    record = runs.record(trained.out)
    assert record["job_key"] == "the-key" and record["trainer"]["module"] == "foreign_toy"
    assert record["losses_from"] == "losses.jsonl" and record["n"] == len(toy.golden_rows())
    assert str(old.parent / ".trainer") not in json.dumps(record)  # no temporary path in the record
    assert trained()["skipped"] and len(trained.started) == 1  # done: not run again
    trained(learning_rate=2e-3)
    assert len(trained.started) == 2


@pytest.mark.parametrize(
    ("mischief", "words"),
    [
        ("crash", "foreign_toy ended with exit code 3; its own messages are above this line"),
        ("no_weights", "the trainer left no weights"),
        ("no_losses", "the trainer left no losses"),
        ("cut_weights", "model.safetensors is cut off or damaged"),
        ("nan", "the loss became inf at step 3 of 3"),
    ],
)
def test_a_run_that_ended_badly_is_one_line_and_no_result(trained, mischief, words):
    trained()
    before = (trained.out / "run.json").read_bytes()
    with pytest.raises(UserError) as caught:
        trained(train_name=mischief)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert (trained.out / "run.json").read_bytes() == before  # what was there is as it was
    assert sorted(path.name for path in trained.out.iterdir()) == ["losses.jsonl", "run.json", "slice_end"]


def test_rows_without_an_answer_are_refused_because_no_row_is_left_out(trained, tmp_path):
    rows = [*toy.golden_rows(), {"id": "open", "messages": [{"role": "user", "content": "And?"}]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"1 rows of .* have no answer \(the first: open\)"):
        trained(train_datasets=tmp_path / "rows.jsonl", max_dropped_fraction=0.5)
    assert trained.started == []


# ---- the real align-anything


@pytest.mark.align_anything
@pytest.mark.slow
@pytest.mark.parametrize("log_type", ["tensorboard", "wandb"])
def test_align_anything_through_the_script_gives_the_golden_losses(tmp_path, golden_model, log_type):
    """One epoch of the 52 golden steps, started as a user starts it; weights load as safetensors."""
    runs.needs_align_anything()
    settings = {
        "SFT_MODULE": ALIGN_ANYTHING_TRAINER,
        "BASE_MODEL": str(golden_model),
        "DATASET": str(toy.GOLDEN / "rows.jsonl"),
        "OUTPUT_DIR": str(tmp_path / "out"),
        "LEARNING_RATE": "1e-3",
        "MAX_LENGTH": str(toy.MAX_LENGTH),
        "BF16": "False",
        "GRADIENT_CHECKPOINTING": "False",
        "LOG_TYPE": log_type,
        "DEVICE": "cpu",
    }
    done = subprocess.run(
        ["bash", "scripts/sft.sh"], cwd=REPOSITORY, env={**os.environ, **settings}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    golden = json.loads((toy.GOLDEN / "losses.json").read_text())["losses"]
    assert runs.losses(tmp_path / "out") == pytest.approx(golden[:13], rel=1e-5)
    record = runs.record(tmp_path / "out")
    assert record["losses_from"] == log_type and record["arguments"]["learning_rate"] == 1e-3
    assert record["weights"]["dtype"] == "float32" and record["not_honoured"]["data_seed"]["done"] == 0
    assert (tmp_path / "out" / "slice_end" / "model.safetensors").is_file()
    assert not list((tmp_path / "out").rglob("environ.txt"))
    from guardrail.models.loading import load_causal_lm

    load_causal_lm(str(tmp_path / "out"))
