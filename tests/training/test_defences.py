"""Defences: called in the order that the interface promises, what they change takes effect, `none` changes nothing."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import runs
import toy
from plain_engine import PlainEngine, train
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.core.options import option
from guardrail.data.rows import normalise_rows
from guardrail.training.config import check_config, parse_config
from guardrail.training.data import tokenise
from guardrail.training.defences import DEFENCES, Defence, NoDefence, make_defence


@pytest.fixture(scope="module")
def data(golden_tokenizer):
    rows = normalise_rows(toy.golden_rows()[:32])
    return tokenise(rows, golden_tokenizer, style="llama2_base", max_length=toy.MAX_LENGTH)


@dataclass(kw_only=True)
class Recorder(Defence):
    """Writes down what it is asked, and changes nothing."""

    calls: list = field(default_factory=list)

    def begin(self, engine):
        self.calls.append("begin")

    def loss(self, loss, engine, batch):
        self.calls.append(f"loss {loss.requires_grad} {len(batch.inputs['input_ids'])}")
        return loss

    def gradients(self, engine):
        norms = [float(parameter.grad.norm()) for parameter in engine.module.parameters()]
        self.calls.append(f"gradients {max(norms) > 0}")

    def after_step(self, engine, step):
        self.calls.append(f"after {step}")


def test_methods_are_called_in_order_and_watching_changes_nothing(golden_model, data):
    import torch

    watched = Recorder()
    losses, weights = train(golden_model, data, watched)
    micro = "loss True 4"
    step = [micro, micro, "gradients True"]
    assert watched.calls == ["begin", *step, "after 1", *step, "after 2"]
    same, other = train(golden_model, data, NoDefence())
    assert losses == same and all(torch.equal(weights[name], other[name]) for name in weights)


def test_what_a_defence_changes_takes_effect(golden_model, data):
    import torch

    class Double(Defence):
        def loss(self, loss, engine, batch):
            return 2 * loss

    class Frozen(Defence):
        def gradients(self, engine):
            for parameter in engine.module.parameters():
                parameter.grad.zero_()

    class Zero(Defence):
        def after_step(self, engine, step):
            with torch.no_grad():
                engine.module.lm_head.weight.zero_()

    plain, _ = train(golden_model, data, NoDefence())
    doubled, _ = train(golden_model, data, Double())
    assert doubled[0] == pytest.approx(2 * plain[0], rel=1e-6)
    before = PlainEngine(golden_model).module.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in train(golden_model, data, Frozen())[1].items())
    assert float(train(golden_model, data, Zero())[1]["lm_head.weight"].abs().max()) == 0


@dataclass(kw_only=True)
class Weak(Defence):
    share: float = option(0.5, "a number")


REQUIRED = ["--model_name_or_path", "m", "--train_datasets", "d", "--train_template", "UltraChat", "--output_dir", "o"]


def test_options_of_a_defence_are_read_and_misspelt_ones_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "weak_defence", SimpleNamespace(Weak=Weak))
    DEFENCES.add("weak", "weak_defence:Weak")
    try:
        assert make_defence("weak").share == 0.5 and make_defence("weak", ("share=0.25",)).share == 0.25
        config = parse_config([*REQUIRED, "--defence", "weak", "--defence_options", "share=0.1"])
        assert (config.defence, config.defence_options) == ("weak", ("share=0.1",))
        for options, message in (("shar=1", "did you mean '--share'"), ("share", "name=value"), ("share=x", "invalid")):
            with pytest.raises(UserError, match=message):
                parse_config([*REQUIRED, "--defence", "weak", "--defence_options", options])
        with pytest.raises(UserError, match="cannot go on after a kill"):
            check_config(toy.config(defence="weak", save_checkpoint=True))
    finally:
        DEFENCES.remove("weak")
    with pytest.raises(UserError, match="did you mean 'none'"):
        parse_config([*REQUIRED, "--defence", "non"])


PLUGGED = """
import sys
from dataclasses import dataclass
from guardrail.training.defences import DEFENCES, Defence
from guardrail.training.sft import main

class Half(Defence):
    def rows(self, rows):
        return rows[: len(rows) // 2]

    def weights(self, state):
        return {name: tensor * 0 for name, tensor in state.items()}

sys.modules["half_defence"] = sys.modules["__main__"]
DEFENCES.add("half", "half_defence:Half")
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_rows_and_saved_weights_of_a_deepspeed_run_are_the_defence_s(tmp_path, golden_model):
    from safetensors.torch import load_file

    arguments = runs.arguments(tmp_path / "out", golden_model, max_steps=2, defence="half", ds_cfgs="ds_z3_config.json")
    process = runs.start([sys.executable, "-c", PLUGGED, *arguments])
    _, stderr = process.communicate(timeout=400)
    assert process.returncode == 0, stderr
    record = runs.record(tmp_path / "out")
    assert record["n"] == 50 and record["config"]["defence"] == "half"
    assert all(not tensor.any() for tensor in load_file(tmp_path / "out" / "slice_end" / "model.safetensors").values())


def test_names_are_known_without_torch():
    code = "import sys; from guardrail.training.defences import DEFENCES; DEFENCES.check('none')"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], cwd=REPOSITORY, check=True)
