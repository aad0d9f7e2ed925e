"""The trainer against independent references: a plain PyTorch loop, other ZeRO stages, ranks, accumulation, resume."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import runs
import toy

from guardrail.data.rows import load_rows
from guardrail.training.data import tokenise
from guardrail.training.steps import plan_epoch

STEPS = 6
LOG_TYPE = "tensorboard" if importlib.util.find_spec("tensorboard") else "none"


def plain_loop(model_folder: Path, steps: int, batch_size: int = 8, learning_rate: float = 1e-3) -> list[float]:
    """The same run written down independently: transformers' own loss, an attention mask, torch's AdamW, clipping."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from guardrail.data.prompts import encode_supervised

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    examples = [
        encode_supervised(tokenizer, "llama2_base", row["messages"], toy.MAX_LENGTH)
        for row in load_rows(toy.GOLDEN / "rows.jsonl")
    ]
    sampler = torch.utils.data.DistributedSampler(examples, num_replicas=1, rank=0, shuffle=True, seed=0)
    order = list(sampler)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    losses = []
    model.train()
    for step in range(steps):
        batch = [examples[i] for i in order[step * batch_size : (step + 1) * batch_size]]
        width = max(len(example.input_ids) for example in batch)

        def padded(values: list[list[int]], fill: int, width: int = width):
            return torch.tensor([value + [fill] * (width - len(value)) for value in values])

        loss = model(
            input_ids=padded([example.input_ids for example in batch], tokenizer.pad_token_id),
            labels=padded([example.labels() for example in batch], -100),
            attention_mask=padded([[1] * len(example.input_ids) for example in batch], 0),
        ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
def test_zero_0_equals_a_plain_loop_and_is_not_repeated(single, golden_model):
    """`plain` was run twice; the second time there was nothing to do (else losses.jsonl would be younger than run.json
    of the first, and the log would have a second set of lines)."""
    folder = single / "plain"
    assert runs.losses(folder) == pytest.approx(plain_loop(golden_model, STEPS), rel=1e-5)
    assert (folder / "slice_end" / "model.safetensors").is_file()
    record = runs.record(folder)
    assert record["n"] == 100 and record["seeds"] == {"seed": 42, "data_seed": 0}
    assert record["config"]["logging_steps"] == 10  # of the first run
    assert not (folder / "checkpoint").exists()  # weights only by default
    assert len((folder / "train_log.jsonl").read_text().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_two_ranks_equal_one_rank_at_twice_the_batch(stage, single, double):
    """99 rows: the two ranks' last batch is filled up with a repeated row, which must not count."""
    two, one = runs.losses(double / f"z{stage}"), runs.losses(single / "large")
    assert len(two) == len(one) == 8
    assert two == pytest.approx(one, rel=1e-5)
    assert_same_weights(double / f"z{stage}", single / "large")


def assert_same_weights(one: Path, two: Path, tolerance: float = 2e-4) -> None:
    import torch
    from safetensors.torch import load_file

    first, second = (load_file(folder / "slice_end" / "model.safetensors") for folder in (one, two))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.allclose(tensor, second[name], atol=tolerance), name


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2])
def test_accumulation_equals_a_larger_batch(stage, single):
    """13 micro-batches an epoch: the last step has one micro-batch of four rows, and none is lost."""
    many, one = single / f"accumulated-z{stage}", single / "sixteen"
    assert runs.losses(many) == pytest.approx(runs.losses(one), rel=1e-5)
    assert_same_weights(many, one)


@pytest.mark.slow
def test_zero_3_with_offload_and_gradient_checkpointing_equals_zero_0(single):
    assert runs.losses(single / "offload") == pytest.approx(runs.losses(single / "plain"), rel=1e-5)
    assert_same_weights(single / "offload", single / "plain")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_follows_float32(dtype, single):
    if dtype == "fp16" and (reason := runs.lacks_fp16()):
        pytest.skip(reason)
    half, full = runs.losses(single / dtype), runs.losses(single / "plain")
    assert half == pytest.approx(full, rel=0.02) and half != full
    saved = json.loads((single / dtype / "slice_end" / "config.json").read_text())["dtype"]
    assert saved == {"bf16": "bfloat16", "fp16": "float16"}[dtype]


@pytest.mark.slow
def test_fp16_is_refused_in_one_line_where_deepspeed_refuses_it(tmp_path, golden_model):
    """Before the model is loaded, and before anything of an older run is removed."""
    if not runs.lacks_fp16():
        pytest.skip("this CPU trains in float16")
    (tmp_path / "out" / "slice_end").mkdir(parents=True)
    arguments = runs.arguments(tmp_path / "out", golden_model, fp16=True)
    process = runs.start([sys.executable, "-m", "guardrail.training.sft", *arguments])
    _, stderr = process.communicate(timeout=400)
    assert process.returncode == 2 and "Traceback" not in stderr
    assert "error: --fp16 True is not supported on this device" in stderr.splitlines()[-1]
    assert "use --bf16 True" in stderr and (tmp_path / "out" / "slice_end").is_dir()


@pytest.mark.slow
def test_one_failing_shared_run_fails_only_the_tests_that_use_it(tmp_path, golden_model):
    shared = runs.SharedRuns(tmp_path)
    names = {"bad": {"learning_rate": 2}, "good": {"max_steps": 1}, "twice": {"max_steps": 1}}
    wanted = [(name, runs.arguments(tmp_path / name, golden_model, **flags)) for name, flags in names.items()]
    shared.train([*wanted, ("twice", ["--epochs", "x"])])
    with pytest.raises(AssertionError, match=r"(?s)shared run bad failed.*--learning_rate 2\.0 is out of range"):
        _ = shared / "bad"
    with pytest.raises(AssertionError, match="shared run twice failed"):
        _ = shared / "twice"
    assert len(runs.losses(shared / "good")) == 1


@pytest.mark.slow
def test_a_packed_step_is_the_padded_step_on_the_same_rows(single):
    """24 rows in one step either way: the mean over all tokens is the same, so no row saw another."""
    packed, padded = single / "packed", single / "packed-as-padded"
    n_packed = len(runs.losses(packed))
    assert runs.record(packed)["padding_fraction"] == 0 < runs.record(padded)["padding_fraction"]
    assert runs.record(packed)["attention"] == "guardrail_packed"
    assert n_packed > 1  # two sequences of 224 tokens a step
    assert sum(runs.losses(packed)[:1]) == pytest.approx(runs.losses(padded)[0], rel=0.02)


@pytest.mark.slow
def test_padding_free_steps_are_the_padded_steps(single):
    """The same rows make a step; what is left is the order in which numbers are added."""
    free, padded = single / "padding-free", single / "exact"
    record, other = runs.record(free), runs.record(padded)
    assert record["padding_fraction"] == 0 < other["padding_fraction"]
    assert (record["n_steps"], record["attention"]) == (other["n_steps"], "guardrail_packed")
    assert runs.losses(free) == pytest.approx(runs.losses(padded), rel=1e-3)
    assert runs.losses(free)[0] == pytest.approx(runs.losses(padded)[0], rel=1e-6)
    pieces = single / "pieces-padding-free"
    assert runs.record(pieces)["attention"] == "guardrail_packed"
    assert runs.losses(pieces) == pytest.approx(runs.losses(single / "plain"), rel=1e-3)
    # adapters, weights in pieces and a second forward pass while going back see the same
    assert runs.record(single / "spread-padding-free")["attention"] == "guardrail_packed"
    assert runs.losses(single / "spread-padding-free") == pytest.approx(runs.losses(single / "spread"), rel=1e-3)


@pytest.mark.slow
def test_length_grouped_pads_less(single):
    grouped, padded = runs.record(single / "grouped"), runs.record(single / "exact")
    assert grouped["padding_fraction"] < 0.6 * padded["padding_fraction"]
    assert grouped["n"] == 100 and grouped["n_steps"] == 13


@pytest.mark.slow
def test_all_assistant_turns_train_more_tokens(single):
    turns, last = runs.record(single / "turns"), runs.record(single / "plain")
    assert turns["n_trained_tokens_per_epoch"] > last["n_trained_tokens_per_epoch"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 3])
def test_resume_after_kill_gives_the_uninterrupted_losses(stage, single):
    """Killed with -9 after a state was kept; LoRA dropout makes the random state count."""
    whole, cut = single / f"lora-z{stage}", single / f"resumed-z{stage}"
    assert runs.record(cut)["resumed_after_step"] >= 4
    assert len(runs.losses(cut)) == 20
    assert runs.losses(cut) == pytest.approx(runs.losses(whole), rel=1e-6)
    assert_same_weights(cut, whole, 1e-6)
    assert not (cut / "checkpoint").exists()  # of no use once the run is whole


@pytest.mark.slow
def test_merged_lora_changes_the_target_modules_only(single, golden_model):
    import torch
    from safetensors.torch import load_file

    before = load_file(golden_model / "model.safetensors")
    after = load_file(single / "lora-z3" / "slice_end" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name.rsplit(".", 2)[-2] for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"q_proj", "v_proj"}


def test_resume_refuses_another_run(tmp_path):
    from types import SimpleNamespace

    from guardrail.core.errors import UserError
    from guardrail.training import checkpoint

    config = SimpleNamespace(output_dir=str(tmp_path))
    assert checkpoint.load_state(None, config, "a") == (0, [])
    (tmp_path / "checkpoint").mkdir()
    state = {"fingerprint": "a", "tag": "step_4", "step": 4, "world_size": 1, "losses": []}
    (tmp_path / "checkpoint" / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match="other data, model or options"):
        checkpoint.load_state(None, config, "b")
    (tmp_path / "checkpoint" / "state.json").write_text(json.dumps({**state, "world_size": 2}))
    with pytest.raises(UserError, match="2 ranks"):
        checkpoint.load_state(None, config, "a")


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_the_run(tmp_path, golden_model):
    """Weights with an infinity: exit code 2, one line, nothing saved."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(golden_model, broken)
    weights = load_file(broken / "model.safetensors")
    weights["lm_head.weight"] = torch.full_like(weights["lm_head.weight"], float("nan"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    arguments = runs.arguments(tmp_path / "out", broken, max_steps=2)
    process = runs.start([sys.executable, "-m", "guardrail.training.sft", *arguments])
    _, stderr = process.communicate(timeout=400)
    assert process.returncode == 2
    assert "error: the loss became nan at step 1" in stderr
    assert not (tmp_path / "out" / "slice_end").exists() and not (tmp_path / "out" / "run.json").exists()


@pytest.mark.slow
def test_the_deepspeed_launcher_takes_the_paper_s_flags(tmp_path, golden_model, free_port):
    """bf16, ZeRO 3 and gradient checkpointing are the defaults; an evaluation split is accepted and used."""
    rows = toy.GOLDEN / "rows.jsonl"
    command = [
        *(str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "1", "--master_port", str(free_port)),
        *("--module", "guardrail.training.sft", "--log_run_name", "R", "--per_device_train_batch_size", "8"),
        *("--model_name_or_path", str(golden_model), "--train_datasets", str(rows), "--output_dir", str(tmp_path)),
        *("--train_template", "UltraChat", "--train_split", "train_list_high_sim_1k", "--eval_split", "test"),
        *("--max_steps", "2", "--log_type", LOG_TYPE, "--eval_datasets", str(rows), "--eval_size", "10"),
    ]
    process = runs.start(command)
    _, stderr = process.communicate(timeout=400)
    assert process.returncode == 0, stderr
    record = json.loads((tmp_path / "run.json").read_text())["run"]
    assert record["config"]["bf16"] and record["deepspeed"]["zero_optimization"]["stage"] == 3
    assert [point["step"] for point in record["eval_losses"]] == [0, 2]
    assert json.loads((tmp_path / "slice_end" / "config.json").read_text())["dtype"] == "bfloat16"
    assert LOG_TYPE == "none" or list(tmp_path.glob("events.out.tfevents.*"))


def test_the_plan_of_padded_is_the_distributed_sampler(golden_tokenizer):
    import torch

    rows = load_rows(toy.GOLDEN / "rows.jsonl")
    data = tokenise(rows, golden_tokenizer, style="llama2_base", max_length=toy.MAX_LENGTH)
    options = {"batching": "padded", "batch_size": 8, "accumulation": 1, "max_length": toy.MAX_LENGTH, "seed": 0}
    for world in (1, 2, 3):
        samplers = [torch.utils.data.DistributedSampler(rows, world, rank, seed=0) for rank in range(world)]
        for epoch in (0, 1):
            plan = plan_epoch(data.lengths, world_size=world, epoch=epoch, reshuffle=True, **options)
            for rank, sampler in enumerate(samplers):
                sampler.set_epoch(epoch)
                ours = [seq[0] for step in plan for micro in step for seq in micro.sequences[rank]]
                assert ours == list(sampler)
    first = plan_epoch(data.lengths, world_size=1, epoch=0, reshuffle=False, **options)
    assert first == plan_epoch(data.lengths, world_size=1, epoch=1, reshuffle=False, **options)
