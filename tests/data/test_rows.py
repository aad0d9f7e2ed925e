"""Row shapes, ids, splits, and the one-line errors of bad input."""

from __future__ import annotations

import contextlib
import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.core.errors import UserError
from guardrail.data.hub_layout import mixed_table, own_table, plain_row, write_split
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


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_true_duplicates_get_different_ids_and_survive(tmp_path):
    rows = load_rows(write_rows(tmp_path / "x.jsonl", [{"prompt": "q", "response": "a"}] * 3))
    assert len({row["id"] for row in rows}) == 3
    assert rows[0]["id"].rsplit("-")[0] == rows[2]["id"].rsplit("-")[0]


def test_extra_columns_travel_untouched(tmp_path):
    extra = {"category": {"animal_abuse": False}, "source": "s", "n": 3}
    (row,) = load_rows(write_rows(tmp_path / "x.jsonl", [{"prompt": "q", "response": "a", **extra}]))
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
        ('{"prompt": "q", "response": ["x"]}\n', "line 1: malformed conversation: expected a text, got list"),
        ('{"prompt": "q", "response": {"x": 1}}\n', "expected a text, got dict"),
        ('{"prompt": "q", "response": true}\n', "expected a text, got bool"),
        ('{"prompt": ["q"]}\n', "expected a text, got list"),
        ('{"messages": "hello"}\n', "messages: expected a list, got str 'hello'"),
        ('{"messages": [{"role": "user"}]}\n', "messages: expected objects with role and content"),
        ('{"messages": [{"role": "user", "content": ["x"]}]}\n', "expected a text, got list"),
        ('{"data": "hello"}\n', "data: expected a list"),
        ('{"turns": "hello"}\n', "turns: expected a list"),
        ('{"conversations": [{"from": "robot", "value": "x"}]}\n', "unknown speaker 'robot'"),
        ('{"prompt": "q"}\n{"prompt": NaN, "response": "a"}\n', "line 2: not valid JSON: NaN is no JSON value"),
        ('{"prompt": "q", "score": 1e999}\n', "line 1: column 'score' holds float 'inf'"),
        ('{"prompt": "q", "n": ' + "9" * 5000 + "}\n", "line 1: not valid JSON"),
        ('{"prompt": "q"}\n{"prompt": "\\ud800"}\n', r"line 2: holds a lone surrogate \(.ud800\)"),
        ('{"prompt": "q", "more": ' + "[" * 5000 + "]" * 5000 + "}\n", "nested more than 100 deep"),
        ('{"prompt": "q", "more": ' + "[" * 200 + "]" * 200 + "}\n", "nested more than 100 deep"),
        ('{"prompt": "q"}\n{"prompt": "\0"}\n', "line 2: holds a NUL byte"),
        ('{"id": [1], "prompt": "q"}\n', "its id is list"),
    ],
)
def test_malformed_files_name_the_line(tmp_path, text, message):
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_rows(path)


CSV = [
    ('prompt,response\nq,"a\n', "line 2: not valid CSV: a quote is opened and never closed"),
    ('prompt,response\nq,a\nq,"a"b\n', "line 3: not valid CSV"),
    ("prompt,response\nq,a\nq\n", "line 3: 1 fields, expected the header's 2"),
    ("prompt,response\nq,a,more\n", "line 2: 3 fields"),
    ("prompt,prompt\nq,a\n", "line 1: the header names 'prompt' twice"),
    ("prompt,response\n", "holds no rows"),
    ("prompt\nq\0\n", "line 2: holds a NUL byte"),
]


@pytest.mark.parametrize(("text", "message"), CSV)
def test_malformed_csv_names_the_line(tmp_path, text, message):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(UserError, match=rf"x\.csv,? .*{message}"):
        load_rows(tmp_path / "x.csv")


def test_csv_fields_may_be_long_and_hold_line_ends(tmp_path):
    (tmp_path / "x.csv").write_text('prompt,response\n"a\nb","' + "x" * 200_000 + '"\n\nq,\n')
    rows = load_rows(tmp_path / "x.csv")
    assert [len(row["response"]) for row in rows] == [200_000, 0] and rows[0]["prompt"] == "a\nb"


def test_line_separators_of_unicode_end_no_row(tmp_path):
    """``str.splitlines`` cut rows at U+2028, U+2029 and U+0085: written, but not read back."""
    rows = [{"id": str(n), "prompt": f"a{mark}b", "response": "c"} for n, mark in enumerate("\u2028\u2029\x85\x0b\x1c")]
    read = load_rows(write_rows(tmp_path / "x.jsonl", rows))
    assert [row["prompt"] for row in read] == [row["prompt"] for row in rows]


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    for name, text in (("x.jsonl", '{"prompt": "q"}\n'), ("x.json", '[{"prompt": "q"}]'), ("x.csv", "prompt\nq\n")):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert load_rows(tmp_path / name)[0]["prompt"] == "q"
    (tmp_path / "x.jsonl").write_bytes('{"prompt": "q"}\n'.encode("utf-16"))
    with pytest.raises(UserError, match=r"x\.jsonl, line 1: not UTF-8"):
        load_rows(tmp_path / "x.jsonl")


def test_values_that_json_cannot_hold_become_text_or_are_refused(tmp_path):
    """They were read from parquet and could not be written as a selection afterwards."""
    import datetime
    import decimal

    import pyarrow as pa
    import pyarrow.parquet as pq

    day, price = datetime.datetime(2026, 1, 2), decimal.Decimal("1.50")
    columns = {"prompt": ["q"], "day": [day], "price": [price], "score": [float("nan")], "more": [{"day": day}]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    (row,) = load_rows(tmp_path / "x.parquet")
    assert (row["day"], row["price"], row["score"]) == (str(day), "1.50", None) and row["more"] == {"day": str(day)}
    assert write_rows(tmp_path / "x.jsonl", [row]).is_file()
    pq.write_table(pa.table({"prompt": ["q"], "image": [b"abc"]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="row 1: column 'image' holds bytes"):
        load_rows(tmp_path / "x.parquet")


# Properties: what is written is read back; what is cut or damaged is refused in one line, never read as something else.

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1)
CONVERSATIONS = st.lists(TEXTS, min_size=2, max_size=6).map(
    lambda texts: [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts[: len(texts) // 2 * 2])
    ]
)
EXTRA = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
ROWS = st.lists(
    st.fixed_dictionaries({"messages": CONVERSATIONS, "source": TEXTS, "more": EXTRA}), min_size=1, max_size=5
)


@given(raw=ROWS, suffix=st.sampled_from(["json", "jsonl", "json.gz", "jsonl.gz"]))
def test_json_rows_of_all_of_unicode_are_read_back(tmp_path_factory, raw, suffix):
    path = tmp_path_factory.mktemp("rows") / f"x.{suffix}"
    text = json.dumps(raw) if "jsonl" not in suffix else "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in raw)
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    read = load_rows(path)
    assert [{name: row[name] for name in ("messages", "source", "more")} for row in read] == raw
    assert load_rows(write_rows(path.parent / "again.jsonl", read)) == read


@given(pairs=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5))
def test_csv_and_parquet_rows_of_all_of_unicode_are_read_back(tmp_path_factory, pairs):
    import csv

    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("rows")
    pq.write_table(pa.table({"prompt": [a for a, _ in pairs], "response": [b for _, b in pairs]}), folder / "x.parquet")
    assert [(row["prompt"], row["response"]) for row in load_rows(folder / "x.parquet")] == pairs
    pairs = [(a.replace("\0", ""), b.replace("\0", "")) for a, b in pairs]
    with open(folder / "x.csv", "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle, quoting=csv.QUOTE_ALL).writerows([("prompt", "response"), *pairs])
    read = [(row["prompt"], row["response"]) for row in load_rows(folder / "x.csv")] if any(map(any, pairs)) else pairs
    assert read == pairs


@given(raw=ROWS)
def test_rows_go_through_a_data_set_folder_unchanged(tmp_path_factory, raw):
    folder = tmp_path_factory.mktemp("rows")
    rows = load_rows(write_rows(folder / "x.jsonl", raw))
    for split, table in (("own", own_table(rows)), ("mixed", mixed_table(plain_row(row, "s") for row in rows))):
        write_split(folder / "set", split, table, {"n_rows": len(rows)})
        read = load_rows(folder / "set", split)
        assert [(row["id"], row["messages"], row["source"]) for row in read] == [
            (row["id"], row["messages"], row["source"]) for row in rows
        ]


@settings(max_examples=200)
@given(data=st.data(), suffix=st.sampled_from(["json", "jsonl", "jsonl.gz", "csv", "parquet"]))
def test_a_damaged_file_is_read_as_a_part_of_itself_or_refused_in_one_line(tmp_path_factory, data, suffix):
    import pandas

    raw = [{"prompt": f'q "{n}", {{é}}', "response": f"a\n{n}", "more": [n, None]} for n in range(4)]
    path = tmp_path_factory.mktemp("cut") / f"x.{suffix}"
    if suffix in ("csv", "parquet"):
        table = pandas.DataFrame(raw)
        table.to_csv(path, index=False) if suffix == "csv" else table.to_parquet(path)
    else:
        text = json.dumps(raw) if suffix == "json" else "".join(json.dumps(row) + "\n" for row in raw)
        path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    whole = [row["messages"] for row in load_rows(path)]
    content = path.read_bytes()
    size = data.draw(st.integers(0, len(content) - 1))
    path.write_bytes(content[:size])
    try:
        read = [row["messages"] for row in load_rows(path)]
    except UserError as error:
        assert "x." in str(error) and len(str(error).splitlines()) == 1
    else:
        # a file of lines that ends with a line is whole as far as anybody can tell; a last csv text may be cut
        assert suffix in ("jsonl", "csv") and read[:-1] == whole[: len(read) - 1]
    path.write_bytes(content[:size] + data.draw(st.binary(min_size=1, max_size=20)) + content[size:])
    with contextlib.suppress(UserError):  # any other exception is a traceback
        load_rows(path)


def test_missing_file_and_wrong_split(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        load_rows(tmp_path / "absent.jsonl")
    write_rows(tmp_path / "train_list.jsonl", [{"question": "q", "answer": "a"}])
    with pytest.raises(UserError, match="did you mean 'train_list'"):
        load_rows(tmp_path, "train_lists")


def test_rows_without_an_answer_are_refused_where_one_is_needed(tmp_path):
    path = write_rows(tmp_path / "x.jsonl", [{"instruction": "q", "category": "c"}])
    assert len(load_rows(path)) == 1
    with pytest.raises(UserError, match="has no answer"):
        load_rows(path, need_answer=True)


def test_real_rows_load_whole(shared_data):
    assert len(load_rows(shared_data / "alpaca_list_100.json", need_answer=True)) == 100
    assert len(load_rows(shared_data / "gsm8k_train_1000.jsonl", need_answer=True)) == 1000
    assert len({row["id"] for row in load_rows(shared_data / "alpaca_1904.json")}) == 1904
