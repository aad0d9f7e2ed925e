"""The sandbox data set on disk: loads with the datasets library alone, is written once, survives kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.sandbox import writer
from guardrail.sandbox.splits import SPLITS
from guardrail.sandbox.writer import FAMILIES, dataset_card, is_current, parquet_name, write_sandbox

GENERATE = REPOSITORY / "datasets" / "sandbox" / "generate.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("sandbox")
    assert write_sandbox(out)["written"]
    return out


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_load_dataset_needs_no_code_of_ours(folder, cache):
    from datasets import load_dataset

    loaded = load_dataset(str(folder), cache_dir=cache)
    assert {name: len(rows) for name, rows in loaded.items()} == {name: rows for name, (_, rows) in SPLITS.items()}
    row = load_dataset(str(folder), split="safety_pool", cache_dir=cache)[0]
    assert row["prompt"] and row["response"] and row["is_safe"] is True
    assert row["messages"] is None and row["dialogue"] is None  # columns of other splits


def test_each_family_is_a_configuration_with_its_own_columns(folder, cache):
    from datasets import load_dataset

    covered = {source for splits in FAMILIES.values() for source in splits.values()}
    assert covered == set(SPLITS)
    samsum = load_dataset(str(folder), "samsum", cache_dir=cache)
    assert set(samsum) == {"train", "test"}
    assert {"id", "dialogue", "summary"} <= set(samsum["test"].column_names)
    assert "messages" not in samsum["test"].column_names
    moderation = load_dataset(str(folder), "moderation", split="test", cache_dir=cache)
    assert len(moderation[0]["labels"]) == 14
    for name in FAMILIES:
        rows = next(iter(load_dataset(str(folder), name, cache_dir=cache).values()))
        assert all(value is not None for column, value in rows[0].items() if column not in ("category", "action")), name


def test_our_own_loader_reads_every_conversation_split(folder):
    import pyarrow.parquet as pq

    from guardrail.data.prompts import template_module

    for name in ("base", "instruct", "safety_pool", "list", "pure_bad", "alpaca", "samsum"):
        row = pq.read_table(folder / parquet_name(name)).to_pylist()[0]
        messages = template_module().format_any(row)
        assert messages[-1]["role"] == "assistant" and messages[-1]["content"]


def test_a_second_run_writes_nothing(folder):
    before = files(folder)
    assert not write_sandbox(folder)["written"]
    assert files(folder) == before


def test_equal_seeds_give_equal_bytes(folder, tmp_path):
    write_sandbox(tmp_path / "again")
    contents = [{name: data for name, (_, data) in files(out).items()} for out in (folder, tmp_path / "again")]
    assert contents[0] == contents[1]


def test_another_seed_is_another_data_set(tmp_path):
    first = write_sandbox(tmp_path, seed=1)
    second = write_sandbox(tmp_path, seed=2)
    assert second["written"] and first["fingerprint"] != second["fingerprint"]
    assert first["files"][parquet_name("hex_phi")] != second["files"][parquet_name("hex_phi")]


@pytest.mark.parametrize("damage", ["missing", "changed", "manifest"])
def test_damage_is_repaired(folder, damage):
    before = {name: data for name, (_, data) in files(folder).items()}
    if damage == "missing":
        (folder / parquet_name("list")).unlink()
    elif damage == "changed":
        (folder / parquet_name("list")).write_bytes(b"half a file")
    else:
        (folder / writer.MANIFEST).write_text("{", encoding="utf-8")
    assert not is_current(folder, 0)
    assert write_sandbox(folder)["written"]
    assert {name: data for name, (_, data) in files(folder).items()} == before


def test_a_killed_run_is_finished_by_the_next(folder, tmp_path):
    """kill -9 as soon as the first split appears: no manifest, and the next run gives the same bytes."""
    out = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, str(GENERATE), "--out", str(out)], stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(out.glob("data/*.parquet")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (out / "data" / f".x.parquet.tmp-{process.pid}-abcdef").write_bytes(b"left over")
    if process.returncode == -signal.SIGKILL:  # it was not too fast for us
        assert not (out / writer.MANIFEST).exists()
        assert write_sandbox(out)["written"]
        assert not list(out.rglob(".*.tmp-*"))
    assert {n: d for n, (_, d) in files(out).items() if ".tmp-" not in n} == {
        n: d for n, (_, d) in files(folder).items()
    }


def test_the_card_in_the_repository_is_the_generators():
    assert (GENERATE.parent / "README.md").read_text(encoding="utf-8") == dataset_card()


def test_mt_bench_files_have_fastchats_shape(folder):
    questions = [json.loads(line) for line in (folder / "mt_bench" / "question.jsonl").read_text().splitlines()]
    references = [
        json.loads(line)
        for line in (folder / "mt_bench" / "reference_answer" / "sandbox.jsonl").read_text().splitlines()
    ]
    assert len({question["category"] for question in questions}) == 8
    assert all(len(question["turns"]) == 2 for question in questions)
    needed = {q["question_id"] for q in questions if q["category"] in ("math", "reasoning", "coding")}
    assert {reference["question_id"] for reference in references} == needed
    assert all(len(reference["choices"][0]["turns"]) == 2 for reference in references)


def test_the_data_set_is_small_and_fast_to_write(tmp_path):
    start = time.process_time()
    write_sandbox(tmp_path)
    assert time.process_time() - start < 10
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.parquet")) < 10 * 2**20


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": ""}
    return subprocess.run(
        [sys.executable, str(GENERATE), *arguments], capture_output=True, text=True, env=environment, check=False
    )


def test_command_line(tmp_path):
    done = run("--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["n_rows"]["hex_phi"] == SPLITS["hex_phi"][1]
    wrong = run("--outt", "x")
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "--out" in wrong.stderr
    (tmp_path / "file").write_text("")
    blocked = run("--out", str(tmp_path / "file"))
    assert blocked.returncode == 2 and blocked.stderr.count("\n") == 1


def test_a_file_in_the_way_is_a_user_error(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(UserError, match="is a file"):
        write_sandbox(tmp_path / "x")
