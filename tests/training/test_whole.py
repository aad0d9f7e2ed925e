"""A model under ZeRO 3 in one piece: looked at on two ranks, the training is bit-equal; where it does not fit."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import runs
import torch
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.training import whole

DRIVER = """
import json, random, sys
import numpy as np, torch
import torch.nn.functional as F
from guardrail.core.ranks import is_main
from guardrail.generation.hf import HFBackend
from guardrail.generation.interface import Request
from guardrail.generation.options import SamplingOptions
from guardrail.training.sft import parse_config, run_training

torch_linear = F.linear

class Curious:
    def __init__(self):
        self.seen = []

    def begin(self, mark):
        pass

    def steps(self, n_steps):
        return (0, 1, 2, n_steps)

    def is_complete(self):
        return False

    def look(self, step, model, tokenizer):
        answers = []
        if not is_main():  # alone: the other rank does not come along
            backend = HFBackend("")
            backend.use(model, tokenizer)
            options = SamplingOptions(max_new_tokens=6, do_sample=True)
            requests = [Request(str(i), 0, ids) for i, ids in enumerate(([1, 5, 9, 11], [1, 7], [1, 2, 3]))]
            answers = [one.token_ids for one in backend.generate(requests, options)]
        noise = [torch.rand(3).tolist(), np.random.rand(), random.random()]  # as careless as an observer can be
        sums = {name: one.double().sum().item() for name, one in model.named_parameters()}
        plain = F.linear is torch_linear
        self.seen.append({"step": step, "training": model.training, "answers": answers, "sums": sums, "plain": plain})

seen = {}
for name, argv, looked_at in json.load(open(sys.argv[1])):
    observer = Curious() if looked_at else None
    run_training(parse_config(argv), observer)
    if looked_at:
        seen[name] = observer.seen
print(json.dumps(seen))
"""
ADAPTED = {"use_lora": True, "gradient_checkpointing": True, "learning_rate": 5e-3}
CASES = {  # with LoRA's dropout, so that a random number taken by the observer would show
    "full": {"eval_datasets": runs.toy.GOLDEN / "rows.jsonl", "eval_size": 4, "eval_strategy": "steps"},
    "lora": ADAPTED,
    "defended": {"defence": "freeze"},
    "offload": {"gradient_checkpointing": True},
}


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory, golden_model):
    """Every case without and with an observer, on two ranks: the folder, and what rank 1 saw."""
    folder = tmp_path_factory.mktemp("whole")
    plan = []
    for name, flags in CASES.items():
        file = REPOSITORY / "configs" / "deepspeed" / f"ds_z3{'_offload' * (name == 'offload')}_config.json"
        settings = json.loads(file.read_text())
        settings["zero_optimization"] |= {  # so small that weights of this model go and come back, too
            "stage3_param_persistence_threshold": 100,
            "stage3_prefetch_bucket_size": 20_000,
            "stage3_max_live_parameters": 30_000,
        }
        (folder / f"{name}.json").write_text(json.dumps(settings))
        common = {"max_steps": 4, "train_size": 48, "ds_cfgs": folder / f"{name}.json", "epochs": 2, **flags}
        for kind in ("plain", "seen"):
            argv = runs.arguments(folder / f"{name}-{kind}", golden_model, **common)
            plan.append((name, argv, kind == "seen"))
    (folder / "plan.json").write_text(json.dumps(plan))
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = str(server.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-c", DRIVER, str(folder / "plan.json")]
    ranks = [runs.start(command, RANK=str(i), LOCAL_RANK=str(i), **shared) for i in range(2)]
    done = [rank.communicate(timeout=400) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(err for _, err in done)
    return folder, json.loads(done[1][0].strip().splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_losses_and_weights_are_bit_equal_with_an_observer_under_zero_3(looked_at, case) -> None:
    folder, seen = looked_at
    plain, observed = (folder / f"{case}-{kind}" for kind in ("plain", "seen"))
    assert (plain / "losses.jsonl").read_bytes() == (observed / "losses.jsonl").read_bytes()
    assert runs.record(plain)["eval_losses"] == runs.record(observed)["eval_losses"]
    weights = [sorted((one / "slice_end").glob("*.safetensors")) for one in (plain, observed)]
    assert weights[0]
    for first, second in zip(*weights, strict=True):
        assert subprocess.run(["cmp", first, second], check=False).returncode == 0
    looks = seen[case]
    assert [look["step"] for look in looks] == [0, 1, 2, 4]
    assert not any(look["training"] for look in looks) and all(look["plain"] for look in looks)
    assert all(all(look["answers"]) for look in looks)
    assert looks[0]["sums"] != looks[1]["sums"]  # it did see the model change


@pytest.mark.slow
def test_every_weight_is_whole_at_a_look(looked_at, golden_model) -> None:
    from guardrail.models.loading import load_causal_lm

    (first, *_) = looked_at[1]["full"]
    model = load_causal_lm(str(golden_model), "float32")
    assert first["sums"] == {name: one.double().sum().item() for name, one in model.named_parameters()}


def engine(stage: int = 3, n_numbers: int = 2**29) -> SimpleNamespace:
    parameter = torch.nn.Parameter(torch.zeros(0, dtype=torch.bfloat16))  # spread: nothing of it is here
    parameter.ds_numel = n_numbers
    return SimpleNamespace(
        zero_optimization_stage=lambda: stage,
        device=torch.device("cpu"),
        module=SimpleNamespace(parameters=lambda: [parameter]),
    )


def test_a_model_that_does_not_fit_is_refused_with_what_would(monkeypatch) -> None:
    """1 GiB of weights and 1.5 GiB free: two hosts can hold it, two ranks of one host, which share that, cannot."""
    monkeypatch.setattr(whole, "free_bytes", lambda _device: 3 * 2**29)
    monkeypatch.setattr(whole, "gather", lambda mine: [("a", mine[1]), ("b", mine[1])])
    whole.check_room(engine())
    monkeypatch.setattr(whole, "gather", lambda mine: [("a", mine[1])] * 2)
    with pytest.raises(UserError, match=r"1\.0 GiB, and 0\.8 GiB are free .* ds_z3_offload_config\.json, or leave"):
        whole.check_room(engine())
    whole.check_room(engine(stage=2))  # it is whole on every rank anyway


def test_hooks_come_back_in_their_places() -> None:
    """Those of others stay, before and behind, and keep working meanwhile."""
    layer, order = torch.nn.Linear(2, 2), []
    register = layer.register_forward_pre_hook
    names = ("first", "own", "between", "own", "last")
    handles = [register(lambda *_, name=name: order.append(name)) for name in names]
    after = layer.register_forward_hook(lambda *_: None)
    offload = SimpleNamespace(fwd_pre_hook=handles[1], forward_hooks=[handles[3]], backward_hooks=[after])
    with pytest.raises(KeyError), whole._without_hooks(offload):
        layer(torch.zeros(1, 2))
        assert order == ["first", "between", "last"] and not layer._forward_hooks
        raise KeyError  # also when the look fails
    order.clear()
    layer(torch.zeros(1, 2))
    assert tuple(order) == names and len(layer._forward_hooks) == 1
