"""The resumable runner: kills, ranks and reruns change nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.core.units import clear_units
from guardrail.generation import Request, SamplingOptions, generate_resumable, make_backend

# argv: model, folder, output, units after which the process kills itself (0: never)
WORKER = """
import dataclasses, json, os, signal, sys
from guardrail.core.ranks import is_main, process_group
from guardrail.generation import Request, SamplingOptions, generate_resumable, make_backend
model, folder, output, kill_after = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
import torch
torch.set_num_threads(1)
backend = make_backend("hf", model, torch_dtype="float32", batch_rows=3)
real, count = backend.generate, 0
def generate(*args):
    global count
    if kill_after and count == kill_after:
        os.kill(os.getpid(), signal.SIGKILL)
    count += 1
    return real(*args)
backend.generate = generate
prompts = [[0] + [5 + (i * 7 + k) % 90 for k in range(4 + i % 5)] for i in range(9)]
requests = [Request(f"r{i}", s, ids) for i, ids in enumerate(prompts) for s in (0, 1)]
requests.append(Request("twin", 0, requests[0].prompt_ids))
with process_group():
    done = generate_resumable(backend, requests, SamplingOptions(True, 1.0, 0.9, 50, 8, 1), folder, "key")
if is_main():
    with open(output, "w") as handle:
        json.dump({"units": count, "rows": [dataclasses.asdict(c) for c in done]}, handle)
"""


def run_worker(tiny_model, folder, output, kill_after=0, launcher=()):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(folder.parent / "worker.py"), str(tiny_model), str(folder), str(output)]
    (folder.parent / "worker.py").write_text(WORKER)
    return subprocess.run([*command, str(kill_after)], env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_killed_and_resumed_on_two_ranks_equals_one_uninterrupted_process(tiny_model, tmp_path, free_port):
    whole = run_worker(tiny_model, tmp_path / "a", tmp_path / "a.json")
    assert whole.returncode == 0, whole.stderr
    expected = json.loads((tmp_path / "a.json").read_text())
    assert expected["units"] == 7  # 19 rows, at most 3 a unit
    assert len(expected["rows"]) == 19

    killed = run_worker(tiny_model, tmp_path / "b", tmp_path / "b.json", kill_after=4)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "b.json").exists()
    # resumed on two ranks: the parts do not depend on the number of processes
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port))
    resumed = run_worker(tiny_model, tmp_path / "b", tmp_path / "b.json", launcher=launcher)
    assert resumed.returncode == 0, resumed.stderr
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["rows"] == expected["rows"]
    assert found["units"] == 2  # three units were missing, rank 0 did two of them; nothing finished was repeated


@pytest.fixture
def requests():
    return [Request(f"r{i}", 0, [0, 5 + i, 9]) for i in range(5)]


def test_finished_work_is_read_back_and_other_options_are_not(tiny_model, tmp_path, requests):
    backend = make_backend("hf", str(tiny_model), torch_dtype="float32")
    calls = []
    real = backend.generate
    backend.generate = lambda *args: calls.append(1) or real(*args)
    options = SamplingOptions(max_new_tokens=4)
    first = generate_resumable(backend, requests, options, tmp_path, "key")
    assert generate_resumable(backend, requests, options, tmp_path, "key") == first
    assert len(calls) == 1
    generate_resumable(backend, requests, options, tmp_path, "another model")
    generate_resumable(backend, requests, SamplingOptions(max_new_tokens=5), tmp_path, "key")
    changed = [Request("r0", 0, [0, 99]), *requests[1:]]
    generate_resumable(backend, changed, options, tmp_path, "key")
    assert len(calls) == 4
    clear_units(tmp_path, "key")
    generate_resumable(backend, requests, options, tmp_path, "another model")
    assert len(calls) == 4, "a run beside it keeps its units"
    clear_units(tmp_path, "another model")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_loaded_when_nothing_is_missing(tiny_model, tmp_path, requests):
    options = SamplingOptions(max_new_tokens=4)
    generate_resumable(make_backend("hf", str(tiny_model), torch_dtype="float32"), requests, options, tmp_path, "key")
    backend = make_backend("hf", str(tiny_model), torch_dtype="float32")
    generate_resumable(backend, requests, options, tmp_path, "key")
    assert "model" not in backend.__dict__


def test_double_ids_are_refused(tiny_model, tmp_path):
    backend = make_backend("hf", str(tiny_model), torch_dtype="float32")
    with pytest.raises(UserError, match="unique"):
        generate_resumable(backend, [Request("a", 0, [5]), Request("a", 0, [6])], SamplingOptions(), tmp_path, "key")


def test_engines_with_their_own_parallelism_refuse_several_processes(tiny_model, tmp_path, requests, monkeypatch):
    backend = make_backend("hf", str(tiny_model), torch_dtype="float32")
    backend.many_processes = False
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match=r"4 processes.*tensor_parallel_size"):
        generate_resumable(backend, requests, SamplingOptions(max_new_tokens=4), tmp_path, "key")
