"""The entry point on disk: the paper's flags, files and order, reuse, bad input, several processes."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.core.files import read_json
from guardrail.similarity.selection import compute
from guardrail.similarity.selection.options import SELECTORS

from .conftest import make_pool, random_matrix

SCRIPT = REPOSITORY / "similarity" / "get_top_similarity_dataset_reps_general.py"


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("select_entry", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def paper(files, *extra, n=10):
    """The paper's own command line."""
    return [
        *("--dataset_folder", str(files), "--stack_vector_tf", "False", "--select_n", str(n)),
        *("--dataset_dir", str(files / "pool.jsonl"), "--dataset_reps_dir", str(files / "pool.pt")),
        *("--anchoring_reps_dir", str(files / "anchors.pt"), *extra),
    ]


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_papers_command_writes_the_papers_files(main, files):
    result = main(paper(files))
    folder = files / os.path.basename(result["folder"])
    pool, anchors = (torch.load(files / f"{name}.pt", weights_only=True).numpy() for name in ("pool", "anchors"))
    scores = cosine_similarity(pool, anchors).max(axis=1)
    order = np.argsort(-scores, kind="stable")
    rows = make_pool()
    for stem, expected in (("top10", order[:10]), ("bottom10", order[-10:])):
        indices, values = (np.load(folder / f"{stem}_{what}.npy") for what in ("indices", "scores"))
        assert indices.dtype == np.int64 and values.dtype == np.float32
        assert indices.tolist() == expected.tolist()
        np.testing.assert_allclose(values, scores[expected], atol=1e-6)
        assert read_rows(folder / f"{stem}.jsonl") == [rows[i] for i in expected]


def test_selection_json_says_what_was_done(main, files):
    folder = files / os.path.basename(main(paper(files, "--save_folder", "s", n=40))["folder"])
    report = json.loads((folder / "selection.json").read_text())
    top = report["subsets"]["top40"]
    assert top["overlap"] == {"bottom40": 20}, "40 + 40 of 60 rows must share 20"
    assert top["n"] == 40 and sum(top["composition"]["categories"].values()) == 40
    assert 1 <= top["anchors"]["effective_number"] <= top["anchors"]["n_used"] <= 7
    assert top["diversity"]["cluster_entropy"] <= 1 and top["run"]["seed"] == 42
    assert -1 <= report["scores"]["spearman_score_length"] <= 1
    assert report["pool"]["n"] == 60 and "could not be checked" in report["notes"][0]


def test_unchanged_is_reused_changed_is_not(main, files, monkeypatch):
    assert main(paper(files))["reused"] is False
    with monkeypatch.context() as patch:
        patch.setattr(compute, "compute_subsets", lambda *_: pytest.fail("computed again"))
        assert main(paper(files))["reused"] is True
    assert main(paper(files, "--avg_n", "2"))["reused"] is False
    assert main(paper(files))["reused"] is False, "the files on disk are those of --avg_n 2"
    torch.save(random_matrix(7, 16, 5), files / "anchors.pt")
    assert main(paper(files))["reused"] is False


def test_a_damaged_file_is_written_again(main, files):
    folder = files / os.path.basename(main(paper(files))["folder"])
    good = (folder / "top10.jsonl").read_text()
    (folder / "top10.jsonl").write_text("")
    assert main(paper(files))["reused"] is False and (folder / "top10.jsonl").read_text() == good


def test_subsets_of_several_runs_live_together(main, files):
    folder = files / "s"
    main(paper(files, "--save_folder", "s"))
    main(paper(files, "--save_folder", "s", "--selector", "random,full"))
    main(paper(files, "--save_folder", "s", n=20))
    subsets = json.loads((folder / "selection.json").read_text())["subsets"]
    assert set(subsets) == {"top10", "bottom10", "random10", "full60", "top20", "bottom20"}
    assert main(paper(files, "--save_folder", "s"))["reused"] is True


def test_random_needs_no_representations(main, files):
    result = main(
        [
            *("--dataset_folder", str(files), "--dataset_dir", str(files / "pool.jsonl"), "--select_n", "9"),
            *("--selector", "random,longest", "--seed", "7"),
        ]
    )
    assert result["n"] == {"random": 9, "longest": 9} and result["folder"].endswith("selected")
    scores = np.load(files / "selected" / "random9_scores.npy")
    assert np.isnan(scores).all() and scores.dtype == np.float32


def test_every_selector_from_the_command_line(main, files):
    from guardrail.similarity.selection.options import SELECTORS, file_stem

    result = main(
        paper(
            files,
            *("--selector", ",".join(SELECTORS), "--safe_anchoring_reps_dir", str(files / "safe.pt")),
            *("--anchoring_dataset_dir", str(files / "anchors.jsonl"), "--save_folder", "all"),
        )
    )
    for name in SELECTORS:
        stem = file_stem(name, 60 if name == "full" else 10)
        assert len(read_rows(files / "all" / f"{stem}.jsonl")) == result["n"][name]


def ordered(files, name, order, rows, matrix):
    """The same pool with its representations in another order, in a folder of its own."""
    folder = files / name
    folder.mkdir()
    (folder / "pool.jsonl").write_text("".join(json.dumps(rows[i]) + "\n" for i in order))
    torch.save(matrix[torch.tensor(order)], folder / "pool.pt")
    for same in ("anchors.pt", "safe.pt", "anchors.jsonl"):
        (folder / same).write_bytes((files / same).read_bytes())
    return folder


@pytest.mark.parametrize("merge", ["score", "union", "round_robin"])
@pytest.mark.parametrize("duplicates", ["keep", "drop"])
def test_permuting_the_pool_changes_nothing(main, files, merge, duplicates):
    """Ties everywhere (every representation occurs four times), also at the borders, and conversations that repeat."""
    rows, matrix = make_pool(), random_matrix(15, 16, 1).repeat(4, 1)
    for i in range(40, 50):
        rows[i]["messages"] = rows[i - 40]["messages"]
    selectors = ["high", "low"] if merge != "score" else [n for n in SELECTORS if not n.startswith("bi_anchor")]
    found = []
    mixed = np.random.default_rng(0).permutation(60)
    for name, order in (("plain", range(60)), ("turned", range(59, -1, -1)), ("mixed", mixed)):
        folder = ordered(files, name, list(map(int, order)), rows, matrix)
        anchor_rows = ["--anchoring_dataset_dir", str(folder / "anchors.jsonl")] if merge == "score" else []
        more = ["--selector", ",".join(selectors), "--merge", merge, "--duplicates", duplicates]
        result = main([*paper(folder, *more, *anchor_rows, n=10), "--save_folder", "s"])
        subsets = json.loads((folder / "s" / "selection.json").read_text())["subsets"]
        chosen = {key: read_rows(folder / "s" / entry["files"]["rows"]) for key, entry in subsets.items()}
        indices = {key: np.load(folder / "s" / entry["files"]["indices"]) for key, entry in subsets.items()}
        pool = read_rows(folder / "pool.jsonl")
        assert all([pool[i] for i in indices[key]] == chosen[key] for key in chosen)
        measured = {key: [entry["diversity"], entry["scores"], entry["anchors"]] for key, entry in subsets.items()}
        found.append((chosen, measured, result["n"]))
    assert found[0] == found[1] == found[2]


def test_duplicates_are_counted_and_dropped_on_request(main, files):
    rows = make_pool()
    for i in (5, 9):
        rows[i] = {**rows[0], "id": f"copy{i}"}
    (files / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pool = torch.load(files / "pool.pt", weights_only=True)
    pool[[5, 9]] = pool[0].clone()
    torch.save(pool, files / "pool.pt")
    result = main(paper(files, "--duplicates", "drop", n=58))
    chosen = np.load(f"{result['folder']}/top58_indices.npy").tolist()
    kept = [i for i in range(60) if i not in (0, 9)]  # of three that are alike the smallest id, copy5, stays
    assert sorted(chosen) == kept, "row numbers are those of the data file"
    report = read_json(result["selection"])
    assert report["pool"]["composition"]["duplicate_rows"] == 2 and report["pool"]["n_used"] == 58
    with pytest.raises(UserError, match=r"more than the pool's 58 rows .2 duplicates dropped"):
        main(paper(files, "--duplicates", "drop", n=59))


def test_he_style_folders(main, files):
    for name in ("pool", "anchors"):
        matrix = torch.load(files / f"{name}.pt", weights_only=True)
        folder = files / name / "reps" / "m"
        folder.mkdir(parents=True)
        for number, start in ((20, 0), (100, 20), (120, 40)):
            if start < len(matrix):
                torch.save(matrix[start : start + 20].clone(), folder / f"reps-{number}.pt")
    plain = main(paper(files))
    command = paper(files, "--save_folder", "he")
    command[command.index("False")] = "True"
    command[command.index("--dataset_reps_dir") + 1] = str(files / "pool" / "reps" / "m" / "reps-full.pt")
    command[command.index("--anchoring_reps_dir") + 1] = str(files / "anchors" / "reps" / "m" / "reps-full.pt")
    for _ in range(2):
        result = main(command)
        for what in ("indices", "scores"):
            a, b = (np.load(f"{r['folder']}/top10_{what}.npy") for r in (plain, result))
            assert a.tolist() == b.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--select_n", "61"], "61 is more than the pool's 60 rows"),
        (["--selector", "hihg"], "did you mean 'high'"),
        (["--merge", "unoin"], "did you mean 'union'"),
        (["--merge", "mean", "--avg_n", "2"], "only concerns --merge score"),
        (["--merge", "union", "--selector", "random"], "only concerns the selectors high and low"),
        (["--avg_n", "8"], "number of anchor rows, 7"),
        (["--selector", "bi_anchor_high"], "--safe_anchoring_reps_dir"),
        (["--safe_anchoring_reps_dir", "x.pt"], "bi_anchor selectors only"),
        (["--selector", "length_high"], "--anchoring_dataset_dir"),
        (["--view", "layer1_eos"], "bare tensor"),
        (["--sweep", "layers"], "not bare tensors"),
        (["--sweep", "layer"], "did you mean 'layers'"),
        (["--stack_vector_tf", "maybe"], "not a boolean"),
        (["--selct_n", "5"], "did you mean '--select_n'"),
        (["--anchoring_reps_dir", "/nowhere/reps-full.pt"], "no such file"),
        (["--anchoring_split", "x"], "--anchoring_dataset_dir"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(main, files, change, message):
    before = sorted(files.iterdir())
    command = paper(files)
    if change[0] in command:
        command[command.index(change[0]) + 1] = change[1]
        change = change[2:]
    with pytest.raises(UserError, match=message):
        main([*command, *change])
    assert sorted(files.iterdir()) == before


def test_wrong_shapes_name_both_numbers(main, files):
    torch.save(random_matrix(59, 16, 0), files / "pool.pt")
    with pytest.raises(UserError, match=r"has 60 rows, .* has 59"):
        main(paper(files))
    torch.save(random_matrix(60, 15, 0), files / "pool.pt")
    with pytest.raises(UserError, match=r"width 15, .*width 16"):
        main(paper(files))
    bad = random_matrix(60, 16, 0)
    bad[7, 3] = float("nan")
    torch.save(bad, files / "pool.pt")
    with pytest.raises(UserError, match=r"1 of 60 .*\(rows 7,"):
        main(paper(files))


def test_rows_that_are_read_are_never_overwritten(main, files):
    """The best 10 of a selection of 60, into the folder that the 60 came from: the pool would become its own subset."""
    first = main(paper(files))
    folder = files / os.path.basename(first["folder"])
    (folder / "top10.jsonl").write_bytes((files / "pool.jsonl").read_bytes())
    (files / "link.jsonl").symlink_to(folder / "top10.jsonl")
    before = (folder / "top10.jsonl").read_bytes()
    for pool in (folder / "top10.jsonl", files / "link.jsonl"):
        arguments = [str(pool) if part == str(files / "pool.jsonl") else part for part in paper(files)]
        with pytest.raises(UserError, match=r"top10\.jsonl is read by this selection and would be overwritten"):
            main(arguments)
    assert (folder / "top10.jsonl").read_bytes() == before


def test_a_store_of_other_rows_is_refused(main, files, tiny_model):
    from guardrail.similarity.representations import options as o
    from guardrail.similarity.representations.extract import extract_representations

    facts = o.model_facts(str(tiny_model))
    options = o.resolve_options(facts, layer="1,2", position="eos,prompt_last")
    for name, rows in (("pool", make_pool()), ("anchors", make_pool(7, seed=9)), ("other", make_pool(60, seed=1))):
        source = {"path": name, "split": None, "name": None, "limit": None}
        extract_representations(rows, source, str(tiny_model), options, facts, files / "reps" / name)

    def command(pool):
        out = paper(files, "--sweep", "layers,positions", "--save_folder", "sweep")
        out[out.index("--dataset_reps_dir") + 1] = str(files / "reps" / pool)
        out[out.index("--anchoring_reps_dir") + 1] = str(files / "reps" / "anchors")
        return out

    with pytest.raises(UserError, match="other data"):
        main(command("other"))
    result = main(command("pool"))
    sweep = read_json(result["sweep"])
    assert sweep["views"] == ["layer1_eos", "layer1_prompt_last", "layer2_eos", "layer2_prompt_last"]
    matrix = np.asarray(sweep["selectors"]["high"]["jaccard"])
    assert (np.diag(matrix) == 1).all() and (matrix == matrix.T).all() and matrix.min() < 1
    assert sweep["selectors"]["low"]["jaccard_by_chance"] == pytest.approx(10 / 110, abs=1e-4)
    top = np.load(f"{result['folder']}/top10_indices.npy").tolist()
    assert main([*command("pool"), "--view", "layer1_eos"])["reused"] is False
    again = main(command("pool"))
    assert again["reused"] is False and np.load(f"{again['folder']}/top10_indices.npy").tolist() == top
    assert main(command("pool"))["reused"] is True


@pytest.mark.slow
def test_two_processes_equal_one(files, free_port):
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port}"]
    for name, launcher in (("one", []), ("two", torchrun)):
        done = subprocess.run(
            [sys.executable, *launcher, str(SCRIPT), *paper(files, "--save_folder", name, "--avg_n", "2")],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-2000:]
    for stem in ("top10", "bottom10"):
        one, two = (np.load(files / name / f"{stem}_indices.npy").tolist() for name in ("one", "two"))
        assert one == two
