"""benchmarks/similarity.py runs whole at a small scale: both sides agree on the numbers, ratios are in the JSON."""

import importlib.util

import pytest
from toys import REPOSITORY

from guardrail.core.files import read_json


@pytest.mark.slow
def test_a_smoke_run_of_the_benchmark(tmp_path):
    spec = importlib.util.spec_from_file_location("similarity_benchmark", REPOSITORY / "benchmarks" / "similarity.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    output = tmp_path / "similarity.json"
    module.main(["--scale", "0.02", "--repeats", "1", "--parts", "extraction,selection,gpu", "--output", str(output)])
    result = read_json(output)
    assert set(result["ratios"]) == {
        "extraction_over_reference",
        "selection_over_sklearn",
        "selection_time_over_matmul",
    }
    assert all(value > 0 for value in result["ratios"].values())
    assert result["extraction"]["largest_difference"] < 1e-5
    assert result["selection"]["same_order_first_1000_fraction"] >= 0.98  # float32 noise swaps near-equal neighbours
    assert "not_run" in result["gpu"] or "extraction" in result["gpu"]
