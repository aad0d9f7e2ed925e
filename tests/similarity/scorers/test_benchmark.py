"""benchmarks/scorers.py runs whole at a small scale: every scorer has its ratio, the steps their correlation."""

from __future__ import annotations

import importlib.util
import json

import pytest
from toys import REPOSITORY

from guardrail.core.files import read_json

from .conftest import make_rows


@pytest.mark.slow
def test_a_smoke_run_of_the_benchmark(tmp_path, tiny_model):
    spec = importlib.util.spec_from_file_location("scorers_benchmark", REPOSITORY / "benchmarks" / "scorers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    splits = {"alpaca": 4, "samsum": 3, "list": 2, "pure_bad": 3, "safety_pool": 3}
    (tmp_path / "data").mkdir()
    for name, n in splits.items():
        text = "".join(json.dumps(row) + "\n" for row in make_rows(n, f"{name} sure, the"))
        (tmp_path / "data" / f"{name}.jsonl").write_text(text)
    output = tmp_path / "scorers.json"
    flags = {"model_name_or_path": tiny_model, "data": tmp_path / "data", "scorers": "length,self_influence"}
    flags |= {"rows": 9, "set_rows": 3, "rounds": 1, "steps": 4, "output": output}
    module.main([f"--{name}={value}" for name, value in flags.items()])
    result = read_json(output)
    assert result["n"] == 9 and result["steps"]["n"] == 4 and -1 <= result["steps"]["spearman"] <= 1
    deep, shallow = result["scorers"]["self_influence"], result["scorers"]["length"]
    assert deep["ratio"] > shallow["ratio"] and deep["peak_bytes"] > result["forward_peak_bytes"] > 0
    assert shallow["peak_bytes"] == 0
