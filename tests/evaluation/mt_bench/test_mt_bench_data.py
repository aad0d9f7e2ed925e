"""Question sets: FastChat's own files whole, malformed ones refused, the sandbox's under its own name."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from guardrail.core.errors import UserError
from guardrail.evaluation.mt_bench import data
from guardrail.evaluation.mt_bench.prompts import FASTCHAT_NAMES, OWN_NAMES, OWN_PROMPTS


def test_fastchats_files_parse_whole(shared_data):
    questions = data.load_question_set(str(shared_data / "mt_bench"))
    assert questions.name == "mt_bench" and not questions.is_sandbox
    counts = Counter(q["category"] for q in questions.questions)
    assert len(questions.questions) == 80 and counts == dict.fromkeys(data.CATEGORIES, 10)
    need = {q["question_id"] for q in questions.questions if q["category"] in data.NEED_REFERENCE}
    assert len(questions.references) == 30 and set(questions.references) == need
    assert all(len(turns) == 2 for turns in questions.references.values())
    assert questions.prompt_names is FASTCHAT_NAMES
    assert {questions.judge_prompts[n]["output_format"] for n in FASTCHAT_NAMES.values()} == {"[[rating]]"}


def test_all_160_fastchat_judgements_are_filled_and_show_the_second_reference(shared_data):
    from guardrail.evaluation.mt_bench.judge import make_matches

    questions = data.load_question_set(str(shared_data / "mt_bench"))
    rows = [
        {"question_id": q["question_id"], "answers": ["{question_1} ANSWER-A", "ANSWER-B"]} for q in questions.questions
    ]
    matches = make_matches(questions, rows)
    assert len(matches) == 160 and Counter(m.turn for m in matches) == {1: 80, 2: 80}
    for match in matches:
        question = next(q for q in questions.questions if q["question_id"] == match.question_id)
        assert "ANSWER-A" in match.user_prompt and ("ANSWER-B" in match.user_prompt) == (match.turn == 2)
        assert "{question_1} ANSWER-A" in match.user_prompt  # braces of an answer are no field
        assert question["turns"][0] in match.user_prompt and (question["turns"][1] in match.user_prompt) == (
            match.turn == 2
        )
        references = questions.references.get(match.question_id)
        assert (references is not None) == ("math" in match.prompt_name)
        if references is not None:
            assert references[0] in match.user_prompt
            assert (references[1] in match.user_prompt) or match.turn == 1


def test_own_layout_and_prompts(question_folder):
    questions = data.load_question_set(str(question_folder))
    assert questions.name == "custom_mt_bench" and questions.prompt_names is OWN_NAMES
    assert questions.references == {2: ["It is 5.", "It is 10."]} and questions.questions[1]["reference"] == ["5", "10"]
    assert set(OWN_NAMES.values()) == set(OWN_PROMPTS)


def test_hashes_cover_what_they_should(question_folder):
    first = data.load_question_set(str(question_folder))
    (question_folder / "reference_answer" / "gpt-4.jsonl").write_text(
        json.dumps({"question_id": 2, "choices": [{"turns": ["It is 6.", "It is 12."]}]})
    )
    second = data.load_question_set(str(question_folder))
    assert first.data_hash == second.data_hash and first.judging_hash != second.judging_hash


def test_a_limit_takes_one_of_each_category_and_says_partial(shared_data):
    questions = data.load_question_set(str(shared_data / "mt_bench"), limit=8)
    assert questions.name == "mt_bench_partial"
    assert Counter(q["category"] for q in questions.questions) == dict.fromkeys(data.CATEGORIES, 1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question_id": 1, "category": "math"}', "question 1: expected question_id, category and turns"),
        ('{"question_id": 1, "category": "math", "turns": ["one"]}', "expected two turns, got 1"),
        ('{"question_id": 1, "cat', "line 1: not valid JSON"),
        ("", "holds no rows"),
        ('{"question_id": 1, "category": "a", "turns": ["b", "c"]}\n' * 2, "question_id 1 occurs twice"),
    ],
)
def test_malformed_questions_are_one_clear_line(tmp_path, line, message):
    (tmp_path / "question.jsonl").write_text(line)
    with pytest.raises(UserError, match=message):
        data.load_question_set(str(tmp_path))


def test_missing_things(tmp_path, question_folder):
    with pytest.raises(UserError, match=r"no question\.jsonl"):
        data.load_question_set(str(tmp_path / "absent"))
    (question_folder / "judge_prompts.jsonl").write_text('{"name": "single-v1"}\n')
    with pytest.raises(UserError, match="lack single-math-v1"):
        data.load_question_set(str(question_folder))


def test_without_a_hub_the_sandboxs_questions_have_their_own_name(monkeypatch, question_folder, tmp_path, capsys):
    monkeypatch.setattr(data, "hub_available", lambda: False)
    monkeypatch.setattr(data, "PREPARED", tmp_path / "absent")
    monkeypatch.setattr(data, "SANDBOX", question_folder)
    questions = data.load_question_set()
    assert questions.name == "sandbox_mt_bench" and questions.is_sandbox
    assert "sandbox" in capsys.readouterr().err


def test_a_judge_prompt_without_its_texts_is_refused(question_folder):
    lines = [json.dumps({"name": name, "system_prompt": "Rate."}) for name in FASTCHAT_NAMES.values()]
    (question_folder / "judge_prompts.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match="single-v1 needs the texts"):
        data.load_question_set(str(question_folder))


@pytest.mark.parametrize("line", ["[1]", '{"question_id": 2}', '{"question_id": 2, "choices": []}'])
def test_a_reference_answer_that_is_none_is_refused(question_folder, line):
    (question_folder / "reference_answer" / "gpt-4.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"expected one JSON object|reference answer 1: expected question_id"):
        data.load_question_set(str(question_folder))
