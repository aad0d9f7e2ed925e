"""Row shapes, ids, splits, and the one-line errors of bad input."""

from __future__ import annotations

import gzip
import json

import pytest

from guardrail.core.errors import UserError
from guardrail.data.rows import conversation, hash_rows, list_splits, load_rows, response

SHAPES = [
    ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, "q", "a"),
    ({"data": ["q", "a"]}, "q", "a"),
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "q", "a"),
    ({"instruction": "q", "input": "", "output": "a"}, "q", "a"),
    ({"instruction": "q", "input": "more", "output": "a"}, "q\nmore", "a"),
    ({"prompt": "q", "response": "a", "category": {"x": True}, "is_safe": True}, "q", "a"),
    ({"question": "q", "answer": "a"}, "q", "a"),
    ({"dialogue": "q", "summary": "a"}, "Summarize this dialog:\nq", "a"),
    ({"instruction": "q", "category": "c"}, "q", ""),
    ({"goal": "q", "target": "t"}, "q", ""),
    ({"turns": ["q", "q2"], "question_id": 81}, "q", ""),
]


@pytest.mark.parametrize("row,prompt,answer", SHAPES, ids=[",".join(r) for r, _, _ in SHAPES])
def test_known_shapes_become_conversations(row, prompt, answer):
    messages = conversation(row)
    assert [m["content"] for m in messages if m["role"] == "user"] == [prompt]
    assert response({"messages": messages}) == answer


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_true_duplicates_get_different_ids_and_survive(tmp_path):
    rows = load_rows(write_jsonl(tmp_path / "x.jsonl", [{"prompt": "q", "response": "a"}] * 3))
    assert len({row["id"] for row in rows}) == 3
    assert rows[0]["id"].rsplit("-")[0] == rows[2]["id"].rsplit("-")[0]


def test_extra_columns_travel_untouched(tmp_path):
    extra = {"category": {"animal_abuse": False}, "source": "s", "n": 3}
    (row,) = load_rows(write_jsonl(tmp_path / "x.jsonl", [{"prompt": "q", "response": "a", **extra}]))
    assert {key: row[key] for key in extra} == extra


def test_json_gz_csv_and_parquet_give_the_same_conversations(tmp_path):
    import pandas

    raw = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(4)]
    (tmp_path / "a.json").write_text(json.dumps(raw))
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as handle:
        handle.writelines(json.dumps(row) + "\n" for row in raw)
    pandas.DataFrame(raw).to_csv(tmp_path / "c.csv", index=False)
    pandas.DataFrame(raw).to_parquet(tmp_path / "d.parquet")
    hashes = {hash_rows(load_rows(tmp_path / name)) for name in ("a.json", "b.jsonl.gz", "c.csv", "d.parquet")}
    assert len(hashes) == 1


def test_hub_layout_folder_and_its_shards(tmp_path):
    import pandas

    (tmp_path / "data").mkdir()
    for shard in range(2):
        pandas.DataFrame([{"question": f"q{shard}", "answer": "a"}]).to_parquet(
            tmp_path / "data" / f"train_list-{shard:05d}-of-00002.parquet"
        )
    assert list(list_splits(tmp_path)) == ["train_list"]
    assert [row["question"] for row in load_rows(tmp_path, "train_list")] == ["q0", "q1"]
    (tmp_path / "data" / "train_list-00001-of-00002.parquet").unlink()
    with pytest.raises(UserError, match="incomplete: 1 of 2 shards"):
        load_rows(tmp_path, "train_list")


@pytest.mark.parametrize(
    "text,message",
    [
        ('{"prompt": "q", "response": "a"}\n{"prompt": \n', "line 2: not valid JSON"),
        ('{"prompt": "q", "response": "a"}\n{"colour": "blue"}\n', "line 2: no known shape in columns"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}\n', "line 1: malformed conversation"),
        ('{"id": 1, "prompt": "q", "response": "a"}\n' * 2, "id '1' occurs twice"),
        ("", "holds no rows"),
        ("3\n", "line 1: expected an object"),
    ],
)
def test_malformed_files_name_the_line(tmp_path, text, message):
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_rows(path)


def test_missing_file_and_wrong_split(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        load_rows(tmp_path / "absent.jsonl")
    write_jsonl(tmp_path / "train_list.jsonl", [{"question": "q", "answer": "a"}])
    with pytest.raises(UserError, match="did you mean 'train_list'"):
        load_rows(tmp_path, "train_lists")


def test_rows_without_an_answer_are_refused_where_one_is_needed(tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl", [{"instruction": "q", "category": "c"}])
    assert len(load_rows(path)) == 1
    with pytest.raises(UserError, match="has no answer"):
        load_rows(path, need_answer=True)


def test_real_rows_load_whole(shared_data):
    assert len(load_rows(shared_data / "alpaca_list_100.json", need_answer=True)) == 100
    assert len(load_rows(shared_data / "gsm8k_train_1000.jsonl", need_answer=True)) == 1000
    assert len({row["id"] for row in load_rows(shared_data / "alpaca_1904.json")}) == 1904
