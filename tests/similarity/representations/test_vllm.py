"""vLLM's pooling mode gives the transformers backend's hidden states, every position, within floating-point noise."""

import json
import os
import subprocess
import sys

import pytest
import torch
from toys import REPOSITORY, make_llama
from vllm_python import vllm_python

from guardrail.core.errors import UserError
from guardrail.similarity.representations.read import read_representations

from .conftest import make_rows

SCRIPT = REPOSITORY / "similarity" / "get_representation.py"


@pytest.mark.slow
@pytest.mark.vllm
def test_vllm_equals_the_default_backend(tmp_path, tiny_tokenizer):
    """Width 128: vLLM's CPU attention has no kernel for a head of 8."""
    python = vllm_python()
    model = make_llama(tmp_path / "model", tiny_tokenizer, width=128)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(20)))
    command = [str(SCRIPT), "--dataset_data", str(tmp_path / "rows.jsonl"), "--model_id", "m"]
    command += ["--model_name_or_path", str(model), "--position", "eos,completion_last,prompt_last"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    for backend, interpreter in (("hf", sys.executable), ("vllm", python)):
        done = subprocess.run(
            [interpreter, *command, "--dataset_folder", str(tmp_path / backend), "--backend", backend],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads(done.stdout.strip().splitlines()[-1])["n_rows"] == 20
    for view in ("layer2_eos", "layer2_completion_last", "layer2_prompt_last"):
        hf, vllm = (read_representations(tmp_path / name / "reps" / "m", view).matrix for name in ("hf", "vllm"))
        torch.testing.assert_close(vllm, hf, atol=1e-4, rtol=1e-3)


def test_without_vllm_the_backend_is_refused_before_a_model_loads(monkeypatch):
    from guardrail.generation import vllm_engine

    monkeypatch.setattr(vllm_engine.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="install_vllm"):
        vllm_engine.require_vllm()
