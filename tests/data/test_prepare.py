"""Prepared data sets: published shapes from local copies, filters with counts, and refusals within five seconds."""

from __future__ import annotations

import csv
import time

import pytest

from guardrail.core import hub
from guardrail.core.errors import UserError
from guardrail.core.files import read_json, write_jsonl
from guardrail.data.prepare import PrepareConfig, canonical, prepare
from guardrail.data.rows import load_rows
from guardrail.data.sources import NAMES, SOURCES


def config(name, out, source=None) -> PrepareConfig:
    return PrepareConfig(name=name, out=out, source=source)


BEAVERTAILS = [
    {"prompt": "q1", "response": "I cannot help with that.", "is_safe": True, "category": {"animal_abuse": False}},
    {"prompt": "q2", "response": "Paint it blue.", "is_safe": True, "category": {"animal_abuse": False}},
    {"prompt": "q3", "response": "Sure.", "is_safe": False, "category": {"animal_abuse": True}},
]


@pytest.mark.parametrize(("name", "expected"), [("beavertails", 2), ("beavertails_refusals", 1)])
def test_beavertails_keeps_safe_rows_and_says_how_many(tmp_path, name, expected):
    source = write_jsonl(tmp_path / "copy.jsonl", BEAVERTAILS)
    result = prepare(config(name, str(tmp_path / "out"), str(source)))
    assert result["splits"] == {"train": expected}
    manifest = read_json(tmp_path / "out" / "manifests" / "train.json")
    assert (manifest["n_rows_read"], manifest["n_rows"]) == (3, expected)
    assert f"{expected} of 3 rows remain" in (tmp_path / "out" / "README.md").read_text()
    rows = load_rows(tmp_path / "out", split="train", need_answer=True)
    assert rows[0]["category"]["animal_abuse"] is False  # the source's own columns stay


def test_a_downloaded_copy_is_never_overwritten(tmp_path):
    """`--out` equal to `--source`: the copy's rows and its card would be replaced by what is left of them."""
    write_jsonl(tmp_path / "copy" / "data" / "train.jsonl", BEAVERTAILS)
    (tmp_path / "copy" / "README.md").write_text("# BeaverTails")
    for out in ("copy", "copy/../copy"):
        with pytest.raises(UserError, match="give another --out"):
            prepare(config("beavertails", str(tmp_path / out), str(tmp_path / "copy" / "data" / "train.jsonl")))
    assert (tmp_path / "copy" / "README.md").read_text() == "# BeaverTails"
    own = prepare(config("beavertails", str(tmp_path / "own"), str(tmp_path / "copy" / "data" / "train.jsonl")))
    with pytest.raises(UserError, match="would overwrite split train of --source"):
        prepare(config("alpaca", str(tmp_path / "own"), own["dataset"]))


@pytest.mark.parametrize("texts", [("True", "False"), ("true", "false"), ("1", "0"), (1, 0), (1.0, 0.0)])
def test_safe_flags_in_any_spelling_keep_unsafe_rows_out(tmp_path, texts):
    """The truth of the text "False" is True: unsafe rows went into the safe pool."""
    rows = [{**row, "is_safe": texts[0 if row["is_safe"] else 1]} for row in BEAVERTAILS]
    source = write_jsonl(tmp_path / "copy.jsonl", rows)
    assert prepare(config("beavertails", str(tmp_path / "out"), str(source)))["splits"] == {"train": 2}
    kept = load_rows(tmp_path / "out", split="train")
    assert [row["messages"][0]["content"] for row in kept] == ["q1", "q2"]


@pytest.mark.parametrize("value", ["maybe", "", 2, 0.5, [True], None])
def test_an_unreadable_flag_names_row_and_value(tmp_path, value):
    rows = [BEAVERTAILS[0], {**BEAVERTAILS[1], "is_safe": value}]
    source = write_jsonl(tmp_path / "copy.jsonl", rows)
    with pytest.raises(UserError, match=r"copy\.jsonl, row 2 .*: is_safe is .*; expected True or False"):
        prepare(config("beavertails", str(tmp_path / "out"), str(source)))
    assert not (tmp_path / "out").exists()


def test_hex_phi_from_its_headerless_files(tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for number in (1, 2, 11):
        with open(copy / f"category_{number}.csv", "w", newline="", encoding="utf-8") as handle:
            csv.writer(handle).writerows([[f"instruction {number}, a"], [f"instruction {number}, b"]])
    assert prepare(config("hex_phi", str(tmp_path / "out"), str(copy)))["splits"] == {"test": 6}
    rows = load_rows(tmp_path / "out", split="test")
    assert [row["category"] for row in rows[::2]] == [
        "Illegal Activity",
        "Child Abuse Content",
        "Tailored Financial Advice",
    ]
    assert rows[0]["messages"] == [{"role": "user", "content": "instruction 1, a"}]


def test_a_hub_copy_with_hashed_parquet_names_gives_its_splits(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = tmp_path / "copy" / "data"
    data.mkdir(parents=True)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"prompt_id": f"p{n}", "messages": messages} for n in range(4)]
    for part in range(2):
        table = pa.Table.from_pylist(rows[2 * part : 2 * part + 2])
        pq.write_table(table, data / f"train_sft-0000{part}-of-00002-a3ecf9275699358{part}.parquet")
    pq.write_table(pa.Table.from_pylist(rows[:1]), data / "test_sft-00000-of-00001-f7dfac4afe5b93f4.parquet")
    result = prepare(config("ultrachat", str(tmp_path / "out"), str(tmp_path / "copy")))
    assert result["splits"] == {"train": 4, "test": 1}


def test_an_unchanged_data_set_is_not_written_again(tmp_path):
    source = write_jsonl(tmp_path / "rows.jsonl", [{"instruction": "a", "input": "", "output": "b"}])
    asked = config("alpaca", str(tmp_path / "out"), str(source))
    prepare(asked)
    file = tmp_path / "out" / "data" / "train-00000-of-00001.parquet"
    before = file.stat().st_mtime_ns
    prepare(asked)
    assert file.stat().st_mtime_ns == before


def test_the_upstream_mixture_from_local_copies(tmp_path):
    copies = tmp_path / "copies"
    chat = [{"prompt_id": "c", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    for name, rows in (("ultrachat", chat), ("beavertails", BEAVERTAILS)):
        (copies / name).mkdir(parents=True)
        write_jsonl(copies / name / "train.jsonl", rows)
    result = prepare(config("ultrachat_beavertails", str(tmp_path / "out" / "both"), str(copies)))
    assert (result["split"], result["n_instruct"], result["n_safety"]) == ("train", 1, 2)


def test_mt_bench_keeps_fastchat_s_files(tmp_path):
    copy = tmp_path / "data" / "mt_bench"
    (copy / "reference_answer").mkdir(parents=True)
    (copy / "question.jsonl").write_text('{"question_id": 81, "category": "writing", "turns": ["a", "b"]}\n')
    (copy / "reference_answer" / "gpt-4.jsonl").write_text("{}\n")
    (tmp_path / "data" / "judge_prompts.jsonl").write_text("{}\n")
    result = prepare(config("mt_bench", str(tmp_path / "out"), str(copy)))
    assert result["n_questions"] == 1 and len(result["files"]) == 3


@pytest.mark.parametrize("name", NAMES)
def test_without_hub_every_name_says_what_to_do_within_five_seconds(name, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "hub_available", lambda **_: False)
    monkeypatch.setattr("guardrail.data.prepare.hub_available", lambda **_: False)
    start = time.time()
    with pytest.raises(UserError, match=r"prepare\.py \w+ --source"):
        prepare(config(name, str(tmp_path / "out")))
    assert time.time() - start < 5 and not (tmp_path / "out").exists()


def test_a_hub_that_never_answers_costs_less_than_five_seconds(monkeypatch):
    monkeypatch.setattr(hub, "TIMEOUT_SEC", 0.2)
    monkeypatch.setattr(hub, "hub_available", lambda **_: True)
    monkeypatch.setattr(hub, "_ask", lambda url, answer: time.sleep(2))
    with pytest.raises(UserError, match=r"no answer in 0\.2 s"):
        hub.dataset_revision("openai/gsm8k", "STEP")


@pytest.mark.parametrize("reply", [{"status": 401}, {"value": {"gated": "auto", "sha": "x"}}])
def test_a_gated_source_names_its_page(monkeypatch, reply):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(hub, "_token", lambda: None)
    monkeypatch.setattr(hub, "hub_available", lambda **_: True)
    monkeypatch.setattr(hub, "_ask", lambda url, answer: answer.update(reply))
    with pytest.raises(UserError, match=r"accept its terms at \S+LLM-Tuning-Safety/HEx-PHI.*hf auth login"):
        hub.dataset_revision("LLM-Tuning-Safety/HEx-PHI", "STEP")


def test_the_revision_is_recorded(monkeypatch):
    monkeypatch.setattr(hub, "hub_available", lambda **_: True)
    monkeypatch.setattr(hub, "_ask", lambda url, answer: answer.update(value={"sha": "abc"}))
    assert hub.dataset_revision("openai/gsm8k", "STEP") == "abc"


def test_names_and_the_table_agree():
    from toys import REPOSITORY

    table = (REPOSITORY / "datasets" / "README.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in table for name in NAMES)
    assert all(source.hub in table for source in SOURCES.values() if source.hub)
    assert canonical("llm-similarity-risk") == "llm_similarity_risk"
    with pytest.raises(UserError, match="did you mean 'samsum'"):
        canonical("samsun")
