"""Any pool, any options: exact budgets, no repeats, files that agree - or one line that says what to do."""

import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guardrail.core.errors import UserError
from guardrail.similarity.selection.options import DUPLICATES, MERGES, SELECTORS
from guardrail.similarity.selection.pipeline import main

from .conftest import make_pool, random_matrix


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_pool_and_options(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("any")
    n, m = data.draw(st.integers(0, 25), "pool"), data.draw(st.integers(1, 40), "anchors")
    rows = make_pool(n) if n else []
    copies = data.draw(st.integers(0, n), "copies of the first row")
    matrix = random_matrix(n, 5, data.draw(st.integers(0, 99)))
    for i in range(1, copies):
        rows[i], matrix[i] = {**rows[0], "id": f"copy{i}"}, matrix[0]
    (folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    torch.save(matrix, folder / "pool.pt")
    torch.save(random_matrix(m, 5, 7), folder / "anchors.pt")
    selectors = data.draw(st.lists(st.sampled_from([*SELECTORS, "hihg"]), min_size=1, max_size=3, unique=True))
    options = {
        "dataset_folder": folder,
        "dataset_dir": folder / "pool.jsonl",
        "dataset_reps_dir": folder / "pool.pt",
        "anchoring_reps_dir": folder / "anchors.pt",
        "anchoring_dataset_dir": folder / "pool.jsonl",
        "selector": ",".join(selectors),
        "select_n": data.draw(st.integers(1, 30)),
        "avg_n": data.draw(st.integers(1, 45)),
        "merge": data.draw(st.sampled_from(MERGES)),
        "duplicates": data.draw(st.sampled_from(DUPLICATES)),
        "save_folder": "out",
    }
    if any(name.startswith("bi_") for name in selectors):
        options["safe_anchoring_reps_dir"] = folder / "anchors.pt"
    try:
        result = main([f"--{name}={value}" for name, value in options.items()])
    except UserError as error:
        assert "\n" not in str(error)
        assert not (folder / "out" / "selection.json").exists(), "nothing is half-written"
        return
    for name in selectors:
        lines = (folder / "out" / result["files"][name].rpartition("/")[2]).read_text().splitlines()
        stem = result["files"][name].removesuffix(".jsonl")
        indices, scores = np.load(f"{stem}_indices.npy"), np.load(f"{stem}_scores.npy")
        assert len(lines) == len(indices) == len(scores) == result["n"][name] and len(set(indices.tolist())) == len(
            indices
        )
        assert [json.loads(line)["id"] for line in lines] == [rows[i]["id"] for i in indices]
        assert (np.abs(scores) <= 1).all()


def test_an_empty_pool_is_refused(files):
    (files / "pool.jsonl").write_text("")
    with pytest.raises(UserError, match=r"pool\.jsonl"):
        main(["--dataset_folder", str(files), "--dataset_dir", str(files / "pool.jsonl"), "--selector", "random"])


def test_a_pool_of_one_row_and_more_anchors_than_rows(files):
    (files / "pool.jsonl").write_text(json.dumps(make_pool(1)[0]) + "\n")
    torch.save(random_matrix(1, 16, 1), files / "pool.pt")
    result = main(
        [
            *("--dataset_folder", str(files), "--dataset_dir", str(files / "pool.jsonl"), "--select_n", "1"),
            *("--dataset_reps_dir", str(files / "pool.pt"), "--anchoring_reps_dir", str(files / "anchors.pt")),
        ]
    )
    assert result["n"] == {"high": 1, "low": 1} and result["mean_score"]["high"] == result["mean_score"]["low"]
