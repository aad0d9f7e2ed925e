"""What only a GPU can show, written so that a CPU runs the same bodies on tiny shapes.

On a GPU (marker `gpu`): the same tests with bf16 kernels, device placement and torch's memory counters, and those that
need more than one process or vLLM. Sizes are small enough for any GPU; the speed goals take a large one.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from bench.tiny import BUCKETS, GEMMA2, LLAMA, settings_for
from toys import REPOSITORY, make_llama
from vllm_python import vllm_python

from guardrail.bench.build import build
from guardrail.bench.estimate import estimate
from guardrail.bench.measure import measure, measured_peak
from guardrail.bench.workloads import WORKLOADS, random_ids
from guardrail.models.loading import load_causal_lm, pick_device
from guardrail.training.batches import enable_packed_attention, packed_batch, padded_batch, summed_loss
from guardrail.training.data import TokenisedRows

CUDA = torch.cuda.is_available()
NO_GPU = pytest.mark.skipif(not CUDA, reason="needs a GPU; torch sees none here")
ON_GPU = (pytest.mark.gpu, NO_GPU)
DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=ON_GPU)]
FLASH = importlib.util.find_spec("flash_attn") is not None
NO_FLASH = pytest.mark.skipif(not (CUDA and FLASH), reason="needs a GPU and the package flash-attn")
PATHS = [  # device, dtype, attention
    pytest.param("cpu", "bfloat16", "sdpa", id="cpu-sdpa"),
    pytest.param("cpu", "bfloat16", "eager", id="cpu-eager"),
    pytest.param("cuda", "bfloat16", "sdpa", id="cuda-sdpa", marks=ON_GPU),
    pytest.param("cuda", "bfloat16", "eager", id="cuda-eager", marks=ON_GPU),
    pytest.param("cuda", "bfloat16", "flash_attention_2", id="cuda-flash", marks=(pytest.mark.gpu, NO_FLASH)),
]
LENGTHS = (7, 33, 20, 40, 12)
WIDE = dataclasses.replace(LLAMA, hidden=256, intermediate=688, heads=4, kv_heads=2, head_size=64, name="wide-llama")


def same_weights(shape: Any, stage: str, dtype: str, device: str, attention: str | None) -> Any:
    """A model with the weights that every other call of the same shape and stage gets."""
    torch.manual_seed(0)
    model = build(shape, stage, "float32", "cpu", attention)
    return model.to(getattr(torch, dtype)).to(device)


def rows_of(shape: Any) -> TokenisedRows:
    ids = random_ids(shape, 1, sum(LENGTHS))[0]
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int64)
    spans = np.array([(row, length // 2, length) for row, length in enumerate(LENGTHS)], dtype=np.int64)
    return TokenisedRows(ids, offsets, spans, np.array(LENGTHS), tuple(map(str, range(len(LENGTHS)))))


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0))


def hidden_states(device: str, dtype: str, attention: str | None) -> torch.Tensor:
    """(rows, D) of rows of different lengths through the extraction's own forward pass."""
    from guardrail.similarity.representations.hidden_states import HfRunner
    from guardrail.similarity.representations.options import ExtractionOptions, ModelFacts
    from guardrail.similarity.representations.sequences import TokenSequence

    layers = (WIDE.layers,)
    options = ExtractionOptions("causal", layers, ("eos",), "full", None, 64, "cut", True, dtype, "float32", "hf")
    model = same_weights(WIDE, "extract", dtype, device, attention)
    runner = HfRunner.from_module(model, options, ModelFacts("causal", WIDE.layers, 512), 0, 96)
    rows = rows_of(WIDE)
    sequences = [TokenSequence(rows.input_ids(i).tolist(), {"eos": (n - 1, n)}, n) for i, n in enumerate(LENGTHS)]
    out = torch.zeros((len(LENGTHS), WIDE.hidden))
    for places, values in runner.run(list(enumerate(sequences))):
        out[places] = values[options.views[0]]
    return out


def gradients(device: str, dtype: str, attention: str | None, packed: bool) -> tuple[float, torch.Tensor]:
    """Loss per label and the gradient of every weight, from the trainer's own batches and loss."""
    data = rows_of(WIDE)
    model = same_weights(WIDE, "sft", dtype, device, attention).train()
    rows, flags = tuple((i,) for i in range(len(LENGTHS))), (False,) * len(LENGTHS)
    if packed:
        enable_packed_attention(model)
        batch = packed_batch(data, rows, flags, device)
    else:
        batch = padded_batch(data, rows, flags, 0, device)
    loss = summed_loss(model, batch) / len(batch.targets)
    loss.backward()
    return loss.item(), torch.cat([p.grad.float().cpu().flatten() for p in model.parameters()])


@pytest.mark.parametrize(("device", "dtype", "attention"), PATHS)
def test_extraction_in_bf16_agrees_with_float32_on_a_cpu(device, dtype, attention):
    reference = hidden_states("cpu", "float32", "eager")
    found = hidden_states(device, dtype, attention)
    each = torch.nn.functional.cosine_similarity(found, reference, dim=1)
    assert each.min() > 0.999, each
    assert not torch.equal(found, reference)  # it is another precision


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize(("device", "dtype", "attention"), PATHS)
def test_training_in_bf16_agrees_with_float32_on_a_cpu(device, dtype, attention, packed):
    loss, wanted = gradients("cpu", "float32", "eager", False)
    other, found = gradients(device, dtype, attention, packed)
    assert other == pytest.approx(loss, rel=0.01)
    assert cosine(found, wanted) > 0.99


@pytest.mark.parametrize("device", DEVICES)
def test_answers_in_float32_are_those_of_a_cpu(device):
    """Greedy decoding through the in-place cache, rows of different lengths, on the device against whole passes."""
    from guardrail.generation import Request, SamplingOptions
    from guardrail.generation.hf import HFBackend

    class Backend(HFBackend):
        model = same_weights(LLAMA, "generate", "float32", device, None)
        tokenizer = type("T", (), {"pad_token_id": 0, "eos_token_id": None, "decode": lambda *_, **__: ""})()
        eos_ids = ()
        context_tokens = None

    rows = rows_of(LLAMA)
    requests = [Request(str(i), 0, rows.input_ids(i).tolist()) for i in range(len(LENGTHS))]
    found = Backend("x", "float32", device).generate(requests, SamplingOptions(max_new_tokens=6))
    model = same_weights(LLAMA, "generate", "float32", "cpu", "eager")
    for completion in found:
        ids = list(requests[int(completion.id)].prompt_ids)
        for _ in range(6):
            with torch.inference_mode():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert completion.token_ids == ids[-6:]


def test_models_are_placed_where_this_machine_computes(tiny_model):
    wanted = "cuda" if CUDA else "cpu"
    assert pick_device().type == wanted
    model = load_causal_lm(str(tiny_model))
    assert {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]} == {wanted}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stage", ["extract", "generate", "moderate"])
@pytest.mark.parametrize("shape", [LLAMA, GEMMA2], ids=lambda s: s.family)
def test_peak_memory_is_within_15_percent_of_the_estimate(shape, stage, device):
    """On a GPU the shape is larger, so that its allocator's 512-byte blocks and kernels' work spaces do not decide."""
    sizes = {"batch_size": 4, "row_tokens": 64, "new_tokens": 4}
    if device == "cuda":
        changes = {"hidden": 1024, "intermediate": 2752, "heads": 16, "kv_heads": 8, "head_size": 64, "layers": 8}
        shape = dataclasses.replace(shape, **changes, vocabulary=32000)
        sizes = {"batch_size": 16, "row_tokens": 512, "new_tokens": 16}
    found = estimate(shape, stage, settings_for(shape, stage, dtype="bfloat16", **sizes))
    peak, _ = measured_peak(found, torch.device(device))
    assert found.peak_bytes == pytest.approx(peak, rel=0.15)


def command_environment(device: str) -> dict[str, str]:
    """Of a process that uses the device: tests keep DeepSpeed on the CPU otherwise."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    if device == "cuda":
        environment.pop("DS_ACCELERATOR", None)
    else:
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return environment


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_a_training_s_peak_is_within_15_percent_of_the_estimate(device):
    """The command itself, in a process of its own, with DeepSpeed on the device."""
    flags = {"shape": "sandbox", "dtype": "float32", "batch_size": 4, "row_tokens": 64, "zero_stage": 2, **BUCKETS}
    if device == "cuda":
        flags = {"shape": "llama-1.3b", "batch_size": 4, "row_tokens": 1024, "zero_stage": 3}
    command = [sys.executable, "-m", "guardrail.bench", "--stage", "sft", "--run", "always", "--steps", "2"]
    command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=command_environment(device), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    measured = json.loads(done.stdout.splitlines()[-1])["measured"]
    assert measured["estimate_over_peak"] == pytest.approx(1, rel=0.15)
    assert measured["tokens_per_sec"] > 0 and 0 < measured["share_of_matrix_product_rate_fraction"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_weights_trained_under_zero_3_are_saved_whole(device, tmp_path, tiny_model):
    """Partitioned weights are gathered into a plain folder that loads, and that differs from what was loaded."""
    rows = [{"instruction": f"Paint boat {i}", "output": f"Take colour {i}."} for i in range(8)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    flags = {
        "model_name_or_path": tiny_model,
        "train_datasets": tmp_path / "rows.json",
        "train_template": "Alpaca",
        "output_dir": tmp_path / "out",
        "ds_cfgs": "ds_z3_config.json",
        "bf16": device == "cuda",
        "per_device_train_batch_size": 4,
        "model_max_length": 128,
        "learning_rate": 1e-3,
        "log_type": "none",
    }
    command = [sys.executable, "-m", "guardrail.training.sft"]
    command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    done = subprocess.run(
        command, cwd=tmp_path, env=command_environment(device), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = (load_causal_lm(str(f), device="cpu").state_dict() for f in (tiny_model, tmp_path / "out"))
    assert {name: tensor.shape for name, tensor in before.items()} == {n: t.shape for n, t in after.items()}
    assert any(not torch.equal(before[name], after[name]) for name in before)


PARITY = """
import json, sys
from guardrail.generation import Request, SamplingOptions, make_backend
backend, model, dtype, ids, output = sys.argv[1:6]
requests = [Request(str(i), 0, row) for i, row in enumerate(json.loads(ids))]
done = make_backend(backend, model, torch_dtype=dtype).generate(requests, SamplingOptions(max_new_tokens=12))
json.dump({c.id: c.token_ids for c in done}, open(output, "w"))
"""


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_vllm_answers_as_the_hugging_face_backend(device, tmp_path, tiny_tokenizer):
    """float32 and greedy: equal ids, on a GPU through vLLM's paged attention and CUDA graphs."""
    python = vllm_python()
    model = make_llama(tmp_path / "llama", tiny_tokenizer, width=128)  # heads of 32: vLLM has no kernel for 8
    ids = json.dumps([[1, *random_ids(LLAMA, 1, n)[0].clip(3, 399).tolist()] for n in (5, 9, 17)])
    environment = {**command_environment(device), "VLLM_LOGGING_LEVEL": "ERROR"}
    if device == "cpu":
        environment["VLLM_CPU_KVCACHE_SPACE"] = "1"
    for backend, interpreter in (("hf", sys.executable), ("vLLM", python)):
        out = tmp_path / f"{backend}.json"
        command = [interpreter, "-c", PARITY, backend, str(model), "float32", ids, str(out)]
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "hf.json").read_text()) == json.loads((tmp_path / "vLLM.json").read_text())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stage", ["extract", "generate", "moderate"])
def test_a_run_is_measured_against_the_matrix_product_rate(stage, device):
    settings = settings_for(LLAMA, stage, dtype="float32", batch_size=4, row_tokens=16, new_tokens=4)
    found = measure(estimate(LLAMA, stage, settings), torch.device(device), steps=2)
    assert found["tokens_per_sec"] == pytest.approx(WORKLOADS_TOKENS[stage] / found["step_sec"])
    assert found["matrix_product_flops_per_sec"] > 1e8
    assert 0 < found["share_of_matrix_product_rate_fraction"] < 1
    assert found["times_one_row_at_a_time"] > 0
    assert set(WORKLOADS) == {"sft", "extract", "generate", "moderate"}


WORKLOADS_TOKENS = {"extract": 4 * 16, "moderate": 4 * 16, "generate": 4 * 20}


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(
    not CUDA or torch.cuda.get_device_properties(0).total_memory < 70 * 2**30,
    reason="the goals are for one GPU of 80 GB or more (an H200); torch sees none here",
)
def test_the_goals_are_reached(tmp_path):
    command = [sys.executable, "benchmarks/gpu_goals.py", "--output", str(tmp_path / "goals.json")]
    if importlib.util.find_spec("vllm") is None:
        command += ["--only", "sft,extract,moderate"]
    done = subprocess.run(command, cwd=REPOSITORY, env=command_environment("cuda"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    goals = json.loads((tmp_path / "goals.json").read_text())["goals"]
    assert all(goal["reached"] for goal in goals.values()), goals
