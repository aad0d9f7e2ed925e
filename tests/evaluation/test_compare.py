"""Paired comparison: joined by id and sample, per category, and honest about judges that disagree."""

from __future__ import annotations

import random

import pytest

from guardrail.core.errors import UserError
from guardrail.core.files import read_json, write_json
from guardrail.evaluation.compare import collect, compare_documents, main, value_of

N = 60


def document(harmful, judge="beaver_dam", data_hash="d", samples=1, order=None):
    whole = {"error": None, "empty": False, "saw_whole_text": True}
    rows = [
        {"id": f"r{i}", "sample": s, "category": "xy"[i % 2], "harmful": h, "outcome": "harmful" if h else "refusal"}
        | {"refusal": not h, **whole}
        for i, h in enumerate(harmful)
        for s in range(samples)
    ]
    if order is not None:
        random.Random(order).shuffle(rows)
    return {"judgements": rows, "summary": {"judge": judge, "data_hash": data_hash}, "run": {"fingerprint": judge}}


def one(first, second, **options):
    return compare_documents({"beaver_dam": first}, {"beaver_dam": second}, n_resamples=800, **options)


def test_difference_is_paired_by_id_not_by_position():
    """B has 12 more harmful rows of 60: +20 points with 12 discordant pairs, whatever the order of the rows."""
    a = [i < 10 for i in range(N)]
    b = [i < 22 for i in range(N)]
    found = one(document(a), document(b, order=3))["judges"]["beaver_dam"]
    assert found["difference_points"] == pytest.approx(20.0)
    assert found["discordant_percent"] == pytest.approx(20.0)
    assert found["p_value"] == pytest.approx(2 / 2**12)  # all 12 changes go one way, exact test
    assert found["interval_points"][0] > 0 and found["n_pairs"] == N
    swapped = one(document(b), document(a))["judges"]["beaver_dam"]
    assert swapped["difference_points"] == pytest.approx(-20.0)


def test_categories_are_corrected_for_their_number():
    a = [False] * N
    b = [i % 2 == 0 and i < 16 for i in range(N)]  # eight more in category x, none in y
    categories = one(document(a), document(b))["judges"]["beaver_dam"]["per_category"]
    assert categories["x"]["p_value"] == pytest.approx(2 / 2**8)
    assert categories["x"]["p_value_holm"] == pytest.approx(2 * 2 / 2**8)
    assert categories["y"]["p_value_holm"] == 1.0


def test_no_difference_is_reported_with_what_could_have_been_found():
    same = [i % 3 == 0 for i in range(N)]
    found = one(document(same), document(same))["judges"]["beaver_dam"]
    assert found["difference_points"] == 0 and found["p_value"] == 1.0
    assert found["minimum_detectable_difference_points"] >= 10


def test_samples_of_a_prompt_count_as_one_unit():
    a, b = [False] * 4 + [True] * 56, [True] * 60
    found = one(document(a, samples=5), document(b, samples=5))["judges"]["beaver_dam"]
    assert found["n_pairs"] == 300 and found["n_prompts"] == 60
    assert found["p_value"] == pytest.approx(2 / 2**4)  # four prompts changed, not twenty rows


def test_judge_failures_and_missing_rows_are_counted_not_guessed():
    a, b = document([True] * N), document([False] * N)
    a["judgements"][0]["harmful"] = None
    del b["judgements"][1:3]
    found = one(a, b)["judges"]["beaver_dam"]
    assert (found["n_pairs"], found["n_undecided"], found["n_only_a"]) == (N - 3, 1, 2)
    assert value_of({"harmful": None, "outcome": None}, "refusal") is None


def test_a_sign_that_depends_on_the_judge_is_flagged():
    up, down = [False] * 30 + [True] * 30, [False] * 40 + [True] * 20
    first = {"beaver_dam": document(up), "key_word": document(down, "key_word")}
    second = {"beaver_dam": document(down), "key_word": document(up, "key_word")}
    assert compare_documents(first, second, n_resamples=200)["sign_depends_on_judge"] is True
    second["key_word"] = document([False] * 60, "key_word")
    assert compare_documents(first, second, n_resamples=200)["sign_depends_on_judge"] is False


def test_incomparable_sides_are_refused():
    a, b = document([True] * N), document([False] * N, data_hash="other")
    with pytest.raises(UserError, match="different prompts"):
        one(a, b)
    assert one(a, b, allow_different_data=True)["judges"]["beaver_dam"]["n_pairs"] == N
    with pytest.raises(UserError, match="no common judge"):
        compare_documents({"key_word": a}, {"guard": a})
    b["summary"] |= {"data_hash": "d", "threshold": 0.4}
    with pytest.raises(UserError, match="different thresholds"):
        one(a, b)


def test_command_line_reads_folders_results_and_files(tmp_path, capfd):
    for name, flags in (("A", [True] * 30 + [False] * 30), ("B", [False] * 60)):
        write_json(tmp_path / name / "beaver-dam.json", document(flags))
        write_json(tmp_path / name / "key-word.json", document(flags, "key_word"))
        write_json(tmp_path / name / "results.json", {"results": []})
    folders = [str(tmp_path / "A"), str(tmp_path / "B" / "results.json")]
    found = main([*folders, "--n_resamples", "200", "--output", str(tmp_path / "c.json")])
    assert set(found["judges"]) == {"beaver_dam", "key_word"}
    assert read_json(tmp_path / "c.json")["run"]["inputs"]["a"]["beaver_dam"] == "beaver_dam"
    assert "-50.00 points" in capfd.readouterr().err
    assert set(main([*folders, "--n_resamples", "200", "--judge", "key_word"])["judges"]) == {"key_word"}
    assert set(collect(tmp_path / "A" / "key-word.json")) == {"key_word"}
    with pytest.raises(UserError, match="did you mean 'key_word'"):
        main([*folders, "--judge", "keyword"])
    with pytest.raises(UserError, match="no judgements"):
        collect(tmp_path)


@pytest.mark.parametrize(
    "content", ['{"judgements": [', "[1]", "{}", '{"judgements": [{}], "summary": {"judge": "key_word"}, "run": {}}']
)
def test_a_file_that_is_no_judgement_file_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "key-word.json").write_text(content)
    for place in (tmp_path, tmp_path / "key-word.json"):
        with pytest.raises(UserError, match=r"key-word\.json(, line 1: not| is no)") as error:
            collect(place)
        assert "\n" not in str(error.value)
