"""Files of scores: resumed, shared out over ranks, up to date, compared, from stored representations."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.data.rows import load_rows
from guardrail.similarity.scorers import run as run_module
from guardrail.similarity.scorers.command import main
from guardrail.similarity.scorers.compare import compare_files, compare_scores, flags
from guardrail.similarity.scorers.run import RowScoring, read_scores, score_file

CHEAP = ("length", "random", "perplexity")


@pytest.fixture
def job(config, sets, tmp_path):
    return dataclasses.replace(config, rows=sets["rows"], scorers=CHEAP, out=str(tmp_path / "s" / "scores.jsonl"))


def test_a_file_has_a_line_per_row_in_their_order_and_a_record(job, sets):
    record = score_file(job)
    ids, columns = read_scores(job.out)
    rows = load_rows(sets["rows"])
    assert ids == [row["id"] for row in rows] and tuple(columns) == CHEAP and record["n"] == 23
    direct = RowScoring(job).score(rows)
    for name in CHEAP:
        assert np.allclose(columns[name], direct[name].values, rtol=1e-5)
        assert record["scorers"][name]["n_scored"] == 23 and record["scorers"][name]["applicable"]
    assert record["run"]["inputs"]["model"] and not list(Path(job.out).parent.glob(".units*"))
    before = Path(job.out).stat().st_mtime_ns
    assert score_file(job)["reused"] and Path(job.out).stat().st_mtime_ns == before
    Path(job.out).write_text("{}\n")
    assert not score_file(job)["reused"] and read_scores(job.out)[0] == ids


def test_a_killed_run_goes_on_and_gives_the_same_bytes(job, monkeypatch):
    whole = dataclasses.replace(job, out=job.out.replace("scores.jsonl", "whole.jsonl"))
    score_file(whole)
    score, seen = RowScoring.score, []

    def dying(self, rows):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(len(rows))
        return score(self, rows)

    monkeypatch.setattr(RowScoring, "score", dying)
    with pytest.raises(KeyboardInterrupt):
        score_file(job)
    assert not Path(job.out).exists() and len(seen) == 3
    rest = []
    monkeypatch.setattr(RowScoring, "score", lambda self, rows: rest.append(len(rows)) or score(self, rows))
    score_file(job)
    assert sum(seen) + sum(rest) == 23 and len(rest) == 5
    assert Path(job.out).read_bytes() == Path(whole.out).read_bytes()


def test_what_decides_a_score_is_in_the_key(job, sets, tmp_path):
    anchored = dataclasses.replace(job, scorers=("similarity",))
    other = tmp_path / "other.jsonl"
    other.write_text("".join(Path(sets["anchors"]).read_text().splitlines(keepends=True)[1:]))
    keys = {
        RowScoring(one).key
        for one in (
            job,
            anchored,
            dataclasses.replace(anchored, anchors=str(other)),
            dataclasses.replace(anchored, layer=1),
            dataclasses.replace(job, seed=1),
        )
    }
    assert len(keys) == 5
    same = dataclasses.replace(job, batch_tokens=100, out="elsewhere.jsonl")
    assert RowScoring(same).key == RowScoring(job).key


def test_stored_representations_stand_for_the_model(job, sets, tiny_model, tmp_path):
    from guardrail.similarity.representations.extract import main as extract

    names = ("similarity", "mean_similarity", "bi_anchor")
    stores = {}
    for name in ("rows", "anchors", "alignment"):
        stores[name] = str(tmp_path / name)
        arguments = {"dataset_data": sets[name], "dataset_folder": str(tmp_path), "model_id": "m"}
        arguments |= {"model_name_or_path": str(tiny_model), "output_dir": stores[name]}
        extract([f"--{key}={value}" for key, value in arguments.items()])
    stored = dataclasses.replace(
        job,
        scorers=names,
        model_name_or_path=None,
        representations=stores["rows"],
        anchors=stores["anchors"],
        alignment=stores["alignment"],
    )
    rows = load_rows(sets["rows"])
    by_model = RowScoring(dataclasses.replace(job, scorers=names)).score(rows)
    by_store = RowScoring(stored).score([*rows, {**rows[0], "id": "stranger"}])
    for name in names:
        assert np.allclose(by_store[name].values[:-1], by_model[name].values, atol=1e-5)
        assert by_store[name].reasons == {23: "no stored representation"}
    with pytest.raises(UserError, match="needs stored representations of --anchors too"):
        RowScoring(dataclasses.replace(stored, anchors=sets["anchors"])).score(rows)
    found = RowScoring(dataclasses.replace(stored, scorers=("all",), model_name_or_path=str(tiny_model)))
    assert set(found.not_applicable) == {"compliance", "compliance_subspace"}


def test_agreement_is_measured_row_by_row():
    rng = np.random.default_rng(0)
    target = rng.normal(size=200)
    ids = [str(i) for i in range(200)]
    assert compare_scores(target * 3, target, ids)["spearman"] == pytest.approx(1)
    assert compare_scores(target * 3, target, ids)["flag_disagreement_fraction"] == 0
    upside_down = compare_scores(-target, target, ids)
    assert upside_down["spearman"] == pytest.approx(-1) and upside_down["flag_disagreement_fraction"] == 1
    noise = compare_scores(rng.normal(size=200), target, ids)
    assert noise["spearman_interval"][0] < 0 < noise["spearman_interval"][1]
    assert noise["flag_disagreement_fraction"] > 0.6
    holes = np.where(target > 0, np.nan, target)
    assert compare_scores(holes, target, ids)["n"] == np.count_nonzero(target <= 0)
    assert compare_scores(np.zeros(200), target, ids)["reason"] == "a score is the same for all rows"
    assert compare_scores(target[:5], target[:5], ids[:5])["spearman"] is None
    assert flags(np.zeros(20), [f"{i:02}" for i in range(20)]).nonzero()[0].tolist() == [0, 1]


def test_two_files_are_compared_by_id(job, tmp_path, capsys):
    score_file(job)
    lines = Path(job.out).read_text().splitlines(keepends=True)
    turned = tmp_path / "turned.jsonl"
    turned.write_text("".join(reversed(lines[1:])))
    out = main([f"--out={job.out}", f"--compare={turned}"])
    assert all(one["spearman"] == pytest.approx(1) and one["n"] == 22 for one in out["agreement"].values())
    assert "22 rows are in both files, of 23 and 22" in capsys.readouterr().err
    other = tmp_path / "other.jsonl"
    other.write_text('{"id": "x", "scores": {"length": 1}, "reasons": {}}\n')
    with pytest.raises(UserError, match="no row in common"):
        compare_files(job.out, other)


@pytest.mark.parametrize(
    "text", ['{"id": "x"}\n', "[]\n", '{"id": "x", "scores": {"a": 1}}\n{"id": "y", "scores": {}}\n']
)
def test_another_file_is_no_file_of_scores(tmp_path, text):
    (tmp_path / "s.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"s\.jsonl, line \d"):
        read_scores(tmp_path / "s.jsonl")


@pytest.mark.slow
def test_two_processes_go_on_with_what_a_killed_one_has_left(job, sets, tiny_model, tmp_path, free_port):
    names = "length,similarity,self_influence,safety_step"
    score_file(dataclasses.replace(job, scorers=tuple(names.split(","))))
    whole = read_scores(job.out)
    out = tmp_path / "killed" / "scores.jsonl"
    command = [str(REPOSITORY / "similarity" / "score_rows.py"), "--rows", sets["rows"], "--scorers", names]
    command += ["--model_name_or_path", str(tiny_model), "--anchors", sets["anchors"], "--alignment", sets["alignment"]]
    command += ["--projection_dim", "64", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, *command], env=environment, **quiet)
    deadline = time.time() + 300
    while process.poll() is None and not (left := units_in(out.parent)) and time.time() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert left and not out.exists()
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port}"]
    done = subprocess.run([sys.executable, *torchrun, *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "of 8 batches are there from an earlier run" in done.stderr
    ids, columns = read_scores(out)
    assert ids == whole[0] and json.loads(done.stdout.splitlines()[-1])["n"] == 23
    assert json.loads(out.with_suffix(".json").read_text())["run"]["processes"] == 2
    for scorer, values in whole[1].items():
        assert np.allclose(columns[scorer], values, rtol=1e-5, atol=1e-6), scorer


def units_in(folder: Path) -> list[Path]:
    return list(folder.glob(".units/*/*/unit-*.jsonl"))


def test_units_depend_on_the_rows_alone():
    assert run_module.text_length({"messages": [{"content": "abc"}, {"content": "d"}]}) == 4
