"""Where a task's rows come from and what they look like."""

from __future__ import annotations

import json

import pytest

from guardrail.core import places
from guardrail.core.errors import UserError
from guardrail.evaluation.utility import tasks


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_samsum_prompt_is_the_reference_one(samsum_file):
    task = tasks.load_task("samsum", str(samsum_file))
    row = task.rows[1]
    assert row["messages"] == [
        {"role": "system", "content": "You are a helpful assistant for dialog summarization."},
        {"role": "user", "content": "Summarize this dialog:\nCleo: Where is the boat?\nDan: By the river."},
    ]
    assert row["reference"] == "The boat is by the river, says Dan."


def test_true_duplicates_survive(samsum_file):
    task = tasks.load_task("samsum", str(samsum_file))
    assert len(task.rows) == 5 == len({row["id"] for row in task.rows})


def test_sql_rows_show_context_and_question(tmp_path):
    file = write(
        tmp_path / "sql.jsonl",
        [
            {
                "question": "How many boats?",
                "context": "CREATE TABLE boat (id INT)",
                "answer": "SELECT COUNT(*) FROM boat",
            }
        ],
    )
    row = tasks.load_task("sql_create_context", file).rows[0]
    assert "CREATE TABLE boat (id INT)" in row["messages"][1]["content"]
    assert "How many boats?" in row["messages"][1]["content"]
    assert row["reference"] == "SELECT COUNT(*) FROM boat"


def test_a_path_is_a_task_with_its_own_answers(tmp_path):
    file = write(
        tmp_path / "list.jsonl", [{"instruction": "Name two seas.", "input": "", "output": "1. Red\n2. Black"}]
    )
    task = tasks.load_task(file)
    assert task.rows[0]["messages"] == [{"role": "user", "content": "Name two seas."}]
    assert task.rows[0]["reference"] == "1. Red\n2. Black"


def test_the_data_hash_covers_the_references(tmp_path):
    one = tasks.load_task(write(tmp_path / "a.jsonl", [{"instruction": "Go.", "output": "Yes."}]))
    two = tasks.load_task(write(tmp_path / "b.jsonl", [{"instruction": "Go.", "output": "No."}]))
    assert one.data_hash != two.data_hash


def test_limit_keeps_the_first_rows_and_changes_the_hash(samsum_file):
    whole, part = tasks.load_task("samsum", str(samsum_file)), tasks.load_task("samsum", str(samsum_file), limit=2)
    assert [r["id"] for r in part.rows] == [r["id"] for r in whole.rows[:2]] and part.data_hash != whole.data_hash


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: tasks.load_task("samsun"), "did you mean 'samsum'"),
        (lambda d: tasks.load_task(str(d / "absent.jsonl")), "no such file"),
        (
            lambda d: tasks.load_task("samsum", write(d / "x.jsonl", [{"prompt": "a", "response": "b"}])),
            "missing: dialogue",
        ),
        (lambda d: tasks.load_task(write(d / "p.jsonl", [{"prompt": "a"}])), "has no answer"),
        (lambda d: tasks.load_task(write(d / "q.jsonl", [{"prompt": "a", "response": "b"}]), "other"), "not both"),
    ],
)
def test_wrong_input_is_one_clear_line(tmp_path, call, message):
    with pytest.raises(UserError, match=message):
        call(tmp_path)


def test_without_hub_and_folder_the_sandbox_stands_in_by_name(tmp_path, monkeypatch, capsys, samsum_file):
    sandbox = tmp_path / "sandbox"
    (sandbox / "data").mkdir(parents=True)
    (sandbox / "data" / "samsum_test.jsonl").write_text(samsum_file.read_text())
    monkeypatch.setattr(tasks, "SANDBOX", sandbox)
    monkeypatch.setattr(places, "WORK", tmp_path)
    monkeypatch.setattr(tasks, "DATASETS", tmp_path / "datasets")
    monkeypatch.setattr(tasks, "hub_available", lambda: False)
    task = tasks.load_task("samsum")
    assert task.is_sandbox and task.source == "sandbox" and task.split == "samsum_test"
    assert "fictional" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"prepare\.py gsm8k"):
        tasks.load_task("gsm8k")
    with pytest.raises(UserError, match="no test split; give --data_source"):
        tasks.load_task("sql_create_context")


def test_a_prepared_folder_comes_before_hub_and_sandbox(tmp_path, monkeypatch, samsum_file):
    (tmp_path / "datasets" / "samsum" / "data").mkdir(parents=True)
    (tmp_path / "datasets" / "samsum" / "data" / "test.jsonl").write_text(samsum_file.read_text())
    monkeypatch.setattr(places, "WORK", tmp_path)
    monkeypatch.setattr(tasks, "DATASETS", tmp_path / "datasets")
    monkeypatch.setattr(tasks, "hub_available", lambda: True)
    task = tasks.load_task("samsum")
    assert task.source == "datasets/samsum" and task.split == "test" and not task.is_sandbox
