"""Nothing untrue comes out of a store: other dtypes, changed templates, broken files, kills, two runs at once."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.data import prompts
from guardrail.data.rows import load_rows
from guardrail.models import loading
from guardrail.similarity.representations import extract as extract_module
from guardrail.similarity.representations import options as o
from guardrail.similarity.representations import store as stores
from guardrail.similarity.representations.read import align_rows, check_comparable, read_representations

from .conftest import make_rows

SCRIPT = REPOSITORY / "similarity" / "get_representation.py"


def test_a_store_resumed_on_other_hardware_does_not_mix_dtypes(extract, rows, monkeypatch):
    """`auto` is resolved before anything is written: half of the shards on a GPU, half on a CPU cannot happen."""
    write, written = stores.write_shard, []

    def dies_after_three(path, tensors):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, tensors)

    monkeypatch.setattr(o, "auto_dtype", lambda: "bfloat16")
    monkeypatch.setattr(stores, "write_shard", dies_after_three)
    with pytest.raises(KeyboardInterrupt):
        extract(rows)
    monkeypatch.undo()
    store, manifest = extract(rows)
    assert manifest["dtype"] == manifest["options"]["dtype"] == manifest["options"]["torch_dtype"] == "float32"
    assert {read_representations(store).matrix.dtype} == {torch.float32}
    for number in range(manifest["n_shards"]):
        path = stores.shard_file(store, manifest["fingerprint"], number)
        assert stores.read_shard(path, ["layer2_eos"])[0].dtype == torch.float32


def test_auto_is_float32_where_no_gpu_is_visible(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert loading.auto_dtype() == "float32"


def test_a_changed_prompt_template_is_extracted_again(extract, rows, monkeypatch):
    store, first = extract(rows)
    before = read_representations(store)
    module = prompts.template_module.__wrapped__()
    style = module.STYLES["llama2_base"]
    module.STYLES["llama2_base"] = type(style)(**{**vars(style), "first_user": "Q: " + style.first_user})
    monkeypatch.setattr(prompts, "template_module", lambda: module)
    other, second = extract(rows, "other")
    _, again = extract(rows)
    assert again["reused"] is False and second["fingerprint"] != first["fingerprint"]
    with pytest.raises(UserError, match="different texts of the prompt style llama2_base"):
        check_comparable(before, read_representations(other))


def test_rows_without_an_answer_are_counted_and_the_first_is_named(extract, rows):
    some = [row if i % 3 else {**row, "messages": row["messages"][:1]} for i, row in enumerate(rows)]
    with pytest.raises(UserError, match=rf"8 of 23 rows have no answer.*first is row {rows[0]['id']}\).*--text prompt"):
        extract(some)
    _, manifest = extract(some, text="prompt")
    assert manifest["n_rows"] == 23


def test_a_few_rows_without_an_answer_get_no_representation(tiny_model, rows, tmp_path):
    """The store still belongs to the whole file: a selection finds the other rows in it."""
    data = tmp_path / "rows.jsonl"
    some = [row if i not in (4, 7) else {**row, "messages": row["messages"][:1]} for i, row in enumerate(rows)]
    data.write_text("".join(json.dumps({"id": row["id"], "messages": row["messages"]}) + "\n" for row in some))
    options = [f"--dataset_folder={tmp_path}", f"--dataset_data={data}", "--model_id=tiny", "--torch_dtype=float32"]
    options += [f"--model_name_or_path={tiny_model}", "--batch_tokens=512"]
    with pytest.raises(UserError, match=r"2 of 23 rows have no answer.*rows out: --max_dropped_fraction 0\.087"):
        extract_module.main(options)
    made = extract_module.main([*options, "--max_dropped_fraction=0.1"])
    manifest = json.loads((tmp_path / "reps" / "tiny" / "manifest.json").read_text())
    assert (made["n_rows"], made["n_dropped"], manifest["n_excluded"]) == (21, 2, 2)
    assert manifest["dropped_ids"] == [some[4]["id"], some[7]["id"]]
    kept, n_without = align_rows(load_rows(data), read_representations(Path(made["store"])), "rows")
    assert n_without == 2 and [row["id"] for row in kept] == [r["id"] for i, r in enumerate(some) if i not in (4, 7)]
    assert extract_module.main([*options, "--max_dropped_fraction=0.2"])["reused"] is True


def test_no_rows_at_all(extract):
    with pytest.raises(UserError, match=r"rows\.jsonl has no rows"):
        extract([])


JUNK = (
    b"",
    b"\x80",
    b"junk",
    b"PK\x03\x04" + b"\0" * 40,
    b"\x93NUMPY\x01\x00\x76\x00{'descr': 'O'}\n",
    b"cos\nsystem\n(S'x'\ntR.",
)


@pytest.mark.parametrize("suffix", [".pt", ".npy", ".safetensors"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.sampled_from(JUNK) | st.binary(max_size=200), cut=st.integers(0, 400))
def test_junk_is_refused_with_the_file_named(tmp_path, suffix, data, cut):
    matrix = torch.arange(12.0).reshape(6, 2)
    file, good = tmp_path / f"a{suffix}", tmp_path / f"good{suffix}"
    if suffix == ".pt":
        torch.save(matrix, good)
    elif suffix == ".npy":
        np.save(good, matrix.numpy())
    else:
        save_file({"x": matrix}, good)
    whole = good.read_bytes()
    for content in (data, whole[: min(cut, len(whole) - 1)]):
        file.write_bytes(content)
        with pytest.raises(UserError, match=re.escape(str(file))) as caught:
            read_representations(file)
        assert "\n" not in str(caught.value)


def test_archives_and_long_doubles(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones((2, 2)))
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with pytest.raises(UserError, match="archive of arrays"):
        read_representations(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.ones((3, 2), dtype=">f4"))
    assert read_representations(tmp_path / "b.npy").matrix.tolist() == [[1.0, 1.0]] * 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_not_numbers_are_named_with_their_file(tmp_path, bad):
    matrix = torch.ones(6, 2)
    matrix[4, 1] = bad
    torch.save(matrix, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a\.pt: 1 of 6 representations hold NaN or infinity \(rows 4,"):
        read_representations(tmp_path / "a.pt")


def damage(store, file, how, place):
    """Change one file of a store; returns what was there."""
    content = file.read_bytes()
    if how == "missing":
        file.unlink()
    elif how == "cut":
        file.write_bytes(content[: int(place * len(content))])
    elif how == "junk":
        file.write_bytes(b"junk" * 10)
    else:
        middle = int(place * (len(content) - 1))
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    return content


@pytest.fixture
def whole(extract, rows):
    store, _ = extract(rows)
    return store, read_representations(store)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_store_is_refused_or_still_right(whole, rows, data):
    """Any file of a store missing, cut or replaced: one line that says what to do, or the same numbers."""
    store, expected = whole
    files = sorted(file for file in store.rglob("*") if file.is_file() and file.name != ".lock")
    export = (store / stores.EXPORT).read_bytes()
    if data.draw(st.booleans(), "without the export"):
        (store / stores.EXPORT).unlink()
        files.remove(store / stores.EXPORT)
    file = data.draw(st.sampled_from(files))
    content = damage(store, file, data.draw(st.sampled_from(["missing", "cut", "junk"])), data.draw(st.floats(0, 0.99)))
    try:
        found = read_representations(store)
        align_rows(rows, found, "rows.jsonl")
        assert torch.equal(found.matrix, expected.matrix) and found.ids == expected.ids
    except UserError as error:
        assert "\n" not in str(error) and str(store) in str(error)
    finally:
        file.write_bytes(content)
        (store / stores.EXPORT).write_bytes(export)


def test_a_truncated_or_foreign_manifest(whole, extract, rows):
    store, _ = whole
    manifest = store / stores.MANIFEST
    text = manifest.read_text()
    manifest.write_text(text[: len(text) // 2])
    for step in (lambda: read_representations(store), lambda: extract(rows)):
        with pytest.raises(UserError, match=r"manifest\.json.*not valid JSON.*delete it and extract again"):
            step()
    manifest.write_text(json.dumps({**json.loads(text), "n_shards": None}))
    with pytest.raises(UserError, match=r"manifest\.json lacks n_shards"):
        read_representations(store)
    manifest.write_text(json.dumps({**json.loads(text), "n_shards": 7}))
    (store / stores.EXPORT).unlink()
    with pytest.raises(UserError, match="its manifest says 23"):
        read_representations(store)


def test_shards_of_another_store_are_refused(whole, extract):
    store, _ = whole
    other, _ = extract(make_rows(40), "other")
    mine = sorted(store.glob("shards-*/*.safetensors"))
    theirs = sorted(other.glob("shards-*/*.safetensors"))
    mine[0].write_bytes(theirs[0].read_bytes())
    (store / stores.EXPORT).unlink()
    with pytest.raises(UserError, match=r"does not belong to|its manifest says"):
        read_representations(store)


def test_a_broken_shard_is_extracted_again(extract, rows, monkeypatch):
    store, manifest = extract(rows)
    expected = read_representations(store).matrix
    shard = stores.shard_file(store, manifest["fingerprint"], 2)
    shard.write_bytes(shard.read_bytes()[:-5])
    (store / stores.MANIFEST).unlink()
    (store / stores.EXPORT).unlink()
    seen = []
    real = extract_module._extract_shards
    monkeypatch.setattr(extract_module, "_extract_shards", lambda run, todo: (seen.append(len(todo)), real(run, todo)))
    extract(rows)
    assert seen == [1] and torch.equal(read_representations(store).matrix, expected)


def test_row_ids_of_other_data(whole, rows):
    import pyarrow
    import pyarrow.parquet

    store, _ = whole
    index = pyarrow.parquet.read_table(store / stores.ROWS)
    ids = pyarrow.array(["strange", *index["id"].to_pylist()[1:]])
    pyarrow.parquet.write_table(index.set_column(0, "id", ids), store / stores.ROWS)
    with pytest.raises(UserError, match=r"row strange, which rows\.jsonl lacks"):
        align_rows(rows, read_representations(store), "rows.jsonl")
    pyarrow.parquet.write_table(index.slice(1), store / stores.ROWS)
    with pytest.raises(UserError, match=r"rows\.parquet has 22 rows, its manifest says 23"):
        read_representations(store)


def command(tmp_path, model, name):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in make_rows(60)))
    flags = {"dataset_folder": tmp_path / name, "dataset_data": data, "model_id": "m", "model_name_or_path": model}
    return [sys.executable, str(SCRIPT), *(f"--{key}={value}" for key, value in flags.items()), "--batch_tokens=1"]


@pytest.mark.slow
def test_killed_at_any_point_and_two_at_once_equal_one_run(tmp_path, tiny_model):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert subprocess.run(command(tmp_path, tiny_model, "whole"), env=environment).returncode == 0
    expected = read_representations(tmp_path / "whole" / "reps" / "m")
    store = tmp_path / "killed" / "reps" / "m"
    for shards in (1, 4, 7):
        process = subprocess.Popen(command(tmp_path, tiny_model, "killed"), env=environment, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(store.glob("shards-*/shard-*"))) < shards:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    both = [subprocess.Popen(command(tmp_path, tiny_model, "killed"), env=environment) for _ in range(2)]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    found = read_representations(store)
    assert torch.equal(found.matrix, expected.matrix) and found.ids == expected.ids
    assert not list(store.rglob(".*.tmp-*")), "what the killed runs left is cleared"
