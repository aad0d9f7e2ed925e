"""Clusters on planted groups: found, described, chosen by the stated rule, written completely or not at all."""

import importlib.util
import json
import tracemalloc

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, silhouette_score
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.data.rows import load_rows, normalise_rows
from guardrail.similarity.clustering import clusters as cl
from guardrail.similarity.clustering import pipeline as clustering_pipeline
from guardrail.similarity.clustering.options import ALGORITHMS
from guardrail.similarity.figures import principal_components

SCRIPT = REPOSITORY / "similarity" / "get_high_similarity_group.py"
CENTRES, PER_CENTRE, WIDTH = 4, 25, 16
TRUTH = np.repeat(np.arange(CENTRES), PER_CENTRE)


def planted(noise=0.15):
    """Four directions with 25 rows each; the third group is the tightest. Lengths vary: cosine must not see them."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(CENTRES, WIDTH))
    spread = np.asarray([1.0, 1.0, 0.3, 1.0])[TRUTH][:, None]
    x = centres[TRUTH] + noise * spread * generator.normal(size=(len(TRUTH), WIDTH))
    return torch.from_numpy((x * generator.uniform(0.1, 10, size=(len(x), 1))).astype(np.float32))


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("cluster_entry", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def folder(tmp_path):
    rows = [
        {"id": f"r{i}", "instruction": f"Do {i}", "output": "1. a\n2. b" if group == 1 else "prose " * (1 + i % 7)}
        for i, group in enumerate(TRUTH)
    ]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    torch.save(planted(), tmp_path / "reps-full.pt")
    return tmp_path


def paper(folder, *extra, n_clusters=4):
    """The paper's own command line."""
    return [
        *("--dataset_folder", str(folder), "--model_id", "m", "--clustering", "kmeans", "--stack_vector_tf", "False"),
        *("--n_clusters", str(n_clusters), "--dataset_data", str(folder / "train.json")),
        *("--dataset_reps_dir", str(folder / "reps-full.pt"), *extra),
    ]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_planted_groups_are_found_whatever_their_vectors_lengths(algorithm):
    labels = cl.fit_labels(cl.unit_array(planted()), algorithm, CENTRES, seed=0)
    assert adjusted_rand_score(TRUTH, labels) > 0.95


def test_numbers_go_by_size_then_first_row_and_noise_stays():
    assert cl.renumber(np.asarray([7, 7, 3, -1, 3, 3, 5, 5])).tolist() == [1, 1, 0, -1, 0, 0, 2, 2]


def test_labels_from_a_sample_agree_with_labels_from_all():
    matrix = planted()
    whole = cl.label_rows(matrix, CENTRES, 0, sample=1000)
    part = cl.label_rows(matrix, CENTRES, 0, sample=60)
    assert len(part) == len(matrix) and adjusted_rand_score(whole, part) > 0.95


def test_description_equals_its_definitions():
    unit = cl.unit_array(planted())
    rows = normalise_rows([{"prompt": "a", "response": "b" * (i + 1)} for i in range(len(unit))])
    entries = cl.describe_clusters(unit, TRUTH, rows, 0)
    inside = unit[TRUTH == 1] @ unit[TRUTH == 1].T
    expected = (inside.sum() - np.trace(inside)) / (PER_CENTRE * (PER_CENTRE - 1))
    assert entries[1]["mean_pairwise_cosine"] == pytest.approx(expected, abs=1e-5)
    weighted = sum(entry["silhouette"] * entry["size"] for entry in entries) / len(unit)
    assert weighted == pytest.approx(silhouette_score(unit, TRUTH, metric="cosine"), abs=1e-4)
    centre = unit[TRUTH == 1].mean(axis=0)
    nearest = np.argmax(unit[TRUTH == 1] @ centre) + PER_CENTRE
    assert entries[1]["nearest_to_centre"][0]["id"] == rows[nearest]["id"]


def test_choice_follows_its_rule():
    clusters = [
        {"cluster": 0, "size": 50, "mean_pairwise_cosine": 0.5, "list_fraction": 0.1},
        {"cluster": 1, "size": 30, "mean_pairwise_cosine": 0.7, "list_fraction": 0.0},
        {"cluster": 2, "size": 3, "mean_pairwise_cosine": 0.9, "list_fraction": 1.0},
        {"cluster": -1, "size": 99, "mean_pairwise_cosine": 0.99, "list_fraction": 1.0},
    ]
    assert cl.choose_cluster(clusters, "similarity", 20)[0] == 1, "the tighter one is too small, noise is no group"
    assert cl.choose_cluster(clusters, "similarity", 2)[0] == 2
    assert cl.choose_cluster(clusters, "list", 20)[0] == 0
    assert cl.choose_cluster(clusters, "0", 20) == (0, "named with --select")
    with pytest.raises(UserError, match="the largest has 50"):
        cl.choose_cluster(clusters, "similarity", 51)
    with pytest.raises(UserError, match="no such cluster"):
        cl.choose_cluster(clusters, "7", 2)


def test_principal_components_are_numpys():
    unit = cl.unit_array(planted())
    points, share = principal_components(unit)
    _, singular, axes = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(points), np.abs((unit - unit.mean(axis=0)) @ axes[:2].T), atol=1e-4)
    np.testing.assert_allclose(share, (singular**2 / (singular**2).sum())[:2], atol=1e-4)


@pytest.mark.parametrize("measure", [principal_components, cl.mean_pairwise_cosine])
def test_a_pool_is_never_copied_as_float64(measure):
    unit = np.random.default_rng(0).normal(size=(30_000, 32)).astype(np.float32)
    tracemalloc.start()
    try:
        measure(unit)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < unit.nbytes  # a copy as float64 is twice that; the points of the map are an eighth


def test_the_papers_command(main, folder):
    result = main(paper(folder))
    out = folder / "clusters" / "m"
    report = json.loads((out / "clusters.json").read_text())
    assert result["n"] == PER_CENTRE and "highest mean pairwise cosine" in report["chosen"]["rule"]
    group = load_rows(out, split="high_similarity_group")
    assert {row["id"] for row in group} == {f"r{i}" for i in np.flatnonzero(TRUTH == 2)}
    assert [row["id"] for row in group] == [json.loads(x)["id"] for x in (out / "group.jsonl").read_text().splitlines()]
    files = [load_rows(out / entry["file"]) for entry in report["clusters"]]
    assert sorted(row["id"] for rows in files for row in rows) == sorted(f"r{i}" for i in range(100))
    assert report["stability"]["adjusted_rand_index"]["mean"] == 1 and len(report["stability"]["seeds"]) == 3
    assert np.load(out / "labels.npy").shape == (100,)
    assert (out / "clusters.png").read_bytes()[:4] == b"\x89PNG"


def test_select_list_and_group_size(main, folder):
    result = main(paper(folder, "--select", "list", "--group_size", "5", "--split_name", "list_group"))
    assert result["list_fraction"] == 1 and result["n"] == 5
    rows = load_rows(folder / "clusters" / "m", split="list_group")
    assert all(TRUTH[int(row["id"][1:])] == 1 for row in rows) and len(rows) == 5


def test_unchanged_is_reused(main, folder, monkeypatch):
    main(paper(folder))
    with monkeypatch.context() as patch:
        patch.setattr(clustering_pipeline, "_compute", lambda *_: pytest.fail("computed again"))
        assert main(paper(folder))["reused"] is True
    assert main(paper(folder, "--seed", "1"))["reused"] is False
    assert main(paper(folder, n_clusters=3))["reused"] is False
    assert len(list((folder / "clusters" / "m").glob("cluster-*.jsonl"))) == 3, "files of the earlier run are gone"


def test_hdbscan_has_noise_and_no_number_of_clusters(main, folder):
    command = paper(folder)
    command[command.index("kmeans")] = "hdbscan"
    with pytest.raises(UserError, match="leave --n_clusters out"):
        main(command)
    del command[command.index("--n_clusters") : command.index("--n_clusters") + 2]
    result = main([*command, "--min_group_size", "10"])
    assert result["n"] >= 10 and result["stability"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--n_clusters": "101"}, "101 is more than the 100 rows"),
        ({"--n_clusters": "1"}, "at least 2"),
        ({"--clustering": "kmean"}, "did you mean 'kmeans'"),
        ({"--select": "lists"}, "did you mean 'list'"),
        ({"--min_group_size": "99"}, "lower it"),
        ({"--model_id": "a/b"}, "plain name"),
        ({"--split_name": "a b"}, "letters, digits"),
        ({"--dataset_data": "/nowhere.json"}, "no such file"),
    ],
)
def test_bad_input(main, folder, change, message):
    command = paper(folder)
    for flag, value in change.items():
        if flag in command:
            command[command.index(flag) + 1] = value
        else:
            command += [flag, value]
    with pytest.raises(UserError, match=message):
        main(command)
    assert not (folder / "clusters" / "m" / "clusters.json").exists()


def test_wrong_row_count_and_nan(main, folder):
    torch.save(planted()[:-1], folder / "reps-full.pt")
    with pytest.raises(UserError, match=r"has 100 rows, .* has 99"):
        main(paper(folder))
    broken = planted()
    broken[3, 0] = float("nan")
    torch.save(broken, folder / "reps-full.pt")
    with pytest.raises(UserError, match="NaN or infinity"):
        main(paper(folder))
