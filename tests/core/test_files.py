"""Atomic writes, hashes and model folders."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.core.files import (
    atomic_path,
    clear_leftovers,
    hash_json,
    keep_inputs,
    read_json,
    read_jsonl,
    require_free_space,
    write_json,
    write_jsonl,
    write_text,
)
from guardrail.models.checkpoints import hash_checkpoint, resolve_checkpoint


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "x.json") as temporary:
        temporary.write_text("half")
        raise RuntimeError("killed")
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert [f.name for f in tmp_path.iterdir()] == ["x.json"]


def test_a_folder_replaces_a_folder(tmp_path):
    for content in ("one", "two"):
        with atomic_path(tmp_path / "store") as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert [f.name for f in (tmp_path / "store").iterdir()] == ["two"]
    assert [f.name for f in tmp_path.iterdir()] == ["store"]


def test_nan_is_refused(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_text_that_no_file_can_hold_is_a_user_error(tmp_path):
    """From a flag with bytes that are no text (they arrive as lone surrogates)."""
    for write in (write_json, write_text, lambda path, value: write_jsonl(path, [{"a": value}])):
        with pytest.raises(UserError, match=r"x\.json: it would hold '.udcff'"):
            write(tmp_path / "x.json", "a\udcff")
    assert not list(tmp_path.iterdir())


LINES = st.lists(st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), st.integers() | st.none()))


@given(rows=LINES)
def test_json_lines_are_read_back(tmp_path_factory, rows):
    path = write_jsonl(tmp_path_factory.mktemp("lines") / "x.jsonl", rows)
    assert [row for _, row in read_jsonl(path)] == rows
    assert read_json(write_json(path, rows)) == rows


@given(content=st.binary(max_size=60))
def test_any_bytes_are_json_or_one_line(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("bytes") / "x.json"
    path.write_bytes(content)
    for read in (read_json, read_jsonl):
        try:
            read(path)
        except UserError as error:
            assert "x.json" in str(error) and len(str(error).splitlines()) == 1


def test_malformed_json_names_the_line(tmp_path):
    (tmp_path / "x.json").write_text('{"a": 1,\n "b" 2}')
    with pytest.raises(UserError, match="line 2"):
        read_json(tmp_path / "x.json")


def test_unwritable_place_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_json(tmp_path / "file" / "x.json", {})


def test_free_space_is_checked_with_both_numbers(tmp_path):
    require_free_space(tmp_path, 1)
    with pytest.raises(UserError, match=r"needed, .* GiB free"):
        require_free_space(tmp_path / "not" / "yet", 1 << 60)


def test_hash_ignores_key_order_and_sees_values():
    assert hash_json({"a": 1, "b": 2}) == hash_json({"b": 2, "a": 1})
    assert hash_json({"a": 1}) != hash_json({"a": 2})


def test_checkpoint_resolves_to_slice_end(tiny_model, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "slice_end").symlink_to(tiny_model)
    assert resolve_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "slice_end")
    assert hash_checkpoint(tmp_path / "run") == hash_checkpoint(tiny_model)


def test_unknown_and_incomplete_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="no such model folder"):
        resolve_checkpoint(tmp_path / "absent")
    with pytest.raises(UserError, match="hub is off"):
        resolve_checkpoint("some-org/some-model")
    with pytest.raises(UserError, match=r"no config\.json"):
        resolve_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no weights"):
        resolve_checkpoint(tmp_path)


SAVE_AND_HANG = """
import sys, time
from guardrail.core.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.mkdir()
    (temporary / "half").write_text("x")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_was_writing_is_cleared_and_a_living_one_s_is_not(tmp_path):
    """`kill -9` half-way through a weight save: the temporary folder goes when somebody clears, not while it lives."""
    command = [sys.executable, "-c", SAVE_AND_HANG, str(tmp_path / "slice_end")]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    (tmp_path / "kept.tmp-1-abcdef").write_text("not hidden: not one of ours")
    (left,) = tmp_path.glob(".slice_end.tmp-*")
    assert clear_leftovers(tmp_path) == [] and (left / "half").is_file()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert clear_leftovers(tmp_path) == [left]
    assert [file.name for file in tmp_path.iterdir()] == ["kept.tmp-1-abcdef"]


@pytest.mark.parametrize("spelling", ["itself", "holder", "relative", "dots", "link to it", "through a link"])
def test_an_output_folder_that_holds_an_input_is_refused(spelling, tmp_path, monkeypatch):
    model = tmp_path / "out" / "slice_end"
    model.mkdir(parents=True)
    (tmp_path / "out-link").symlink_to(tmp_path / "out")
    (tmp_path / "model-link").symlink_to(model)
    monkeypatch.chdir(tmp_path)
    out, given = {
        "itself": (model, model),
        "holder": (tmp_path / "out", model),
        "relative": ("out", model),
        "dots": ("elsewhere/../out", "./out/../out/slice_end"),
        "link to it": (tmp_path / "out", "model-link"),
        "through a link": ("out-link", model),
    }[spelling]
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(UserError, match=r"--output_dir .* is or holds --model .*; give another --output_dir"):
        keep_inputs("output_dir", out, {"model": given})


def test_inputs_beside_above_and_on_the_hub_are_no_conflict(tmp_path):
    (tmp_path / "model" / "slice_end").mkdir(parents=True)
    inputs = {"model": tmp_path / "model", "data": "org/name", "eval": None}
    for out in (tmp_path / "model-2", tmp_path / "model" / "tuned", tmp_path / "new" / "deep"):
        keep_inputs("output_dir", out, inputs)
