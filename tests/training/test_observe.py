"""Looking at a model in training changes nothing: bit-equal losses and weights; which steps are looked at."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import pytest
import runs
from hypothesis import given
from hypothesis import strategies as st
from toys import REPOSITORY

from guardrail.training.observe import log_steps


@given(st.integers(1, 5000), st.integers(2, 40))
def test_log_steps_are_distinct_sorted_and_hold_both_ends(n_steps: int, n_probes: int) -> None:
    steps = log_steps(n_steps, n_probes)
    assert steps[0] == 0 and steps[-1] == n_steps
    assert steps == sorted(set(steps))
    assert len(steps) >= min(n_probes, n_steps + 1)
    assert len(steps) <= n_probes + 1  # rounding can give one step more than was asked for, never fewer
    gaps = [b - a for a, b in itertools.pairwise(steps[1:])]
    assert all(later >= earlier - 1 for earlier, later in itertools.pairwise(gaps))  # denser at the start


def test_log_steps_of_a_hundred() -> None:
    assert log_steps(100, 13) == [0, 1, 2, 3, 5, 7, 10, 15, 22, 32, 46, 68, 100]
    assert log_steps(3, 9) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="at least 2 probes"):
        log_steps(10, 1)


PAIR = """
import json, random, sys
import numpy as np, torch
from guardrail.generation.hf import HFBackend
from guardrail.generation.interface import Request
from guardrail.generation.options import SamplingOptions
from guardrail.training.sft import parse_config, run_training

plain, observed = json.loads(sys.argv[1])
seen = []

class Curious:
    def begin(self, mark):
        pass

    def steps(self, n_steps):
        return (0, 1, 3, n_steps)

    def is_complete(self):
        return bool(seen)

    def look(self, step, model, tokenizer):
        backend = HFBackend("")
        backend.use(model, tokenizer)
        options = SamplingOptions(max_new_tokens=8, do_sample=True)
        (answer,) = backend.generate([Request("a", 0, [1, 5, 9, 11])], options)
        noise = [torch.rand(3).tolist(), np.random.rand(), random.random()]  # as careless as an observer can be
        seen.append({"step": step, "training": model.training, "tokens": answer.token_ids, "noise": noise})

run_training(parse_config(plain))
run_training(parse_config(observed), Curious())
again = run_training(parse_config(observed), Curious())
print(json.dumps({"seen": seen, "skipped": again.get("skipped")}))
"""


@pytest.mark.slow
def test_losses_and_weights_are_bit_equal_with_an_observer(tmp_path, golden_model) -> None:
    """With LoRA's dropout, so that a random number taken by the observer would show."""
    folders = {name: tmp_path / name for name in ("plain", "observed")}
    common = {**runs.LORA, "max_steps": 6, "gradient_checkpointing": True}
    both = [runs.arguments(folder, golden_model, **common) for folder in folders.values()]
    done = runs.start([sys.executable, "-c", PAIR, json.dumps(both)])
    out, err = done.communicate(timeout=300)
    assert done.returncode == 0, err
    found = json.loads(out.strip().splitlines()[-1])
    assert [look["step"] for look in found["seen"]] == [0, 1, 3, 6]
    assert not any(look["training"] for look in found["seen"])
    assert found["skipped"] is True  # nothing left to see: the finished run is not repeated
    assert len({json.dumps(look["tokens"]) for look in found["seen"]}) > 1  # it did see the model change
    one, two = ((folder / "losses.jsonl").read_bytes() for folder in folders.values())
    assert one == two
    weights = [sorted((folder / "slice_end").glob("*.safetensors")) for folder in folders.values()]
    for first, second in zip(*weights, strict=True):
        assert subprocess.run(["cmp", first, second], cwd=REPOSITORY, check=False).returncode == 0
