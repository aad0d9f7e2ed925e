"""Scores against rouge_score's own definition, worked by hand; intervals against closed forms."""

from __future__ import annotations

import random
from decimal import Decimal

import pytest

from guardrail.core.errors import UserError
from guardrail.evaluation.utility import scoring
from guardrail.statistics.resampling import bootstrap_mean, bootstrap_ratio


def test_rouge_1_worked_example():
    # reference: a cat sat here (4 words); completion: the cats sat (3). Stemmed overlap: cat, sat = 2.
    # precision 2/3, recall 2/4, F1 = 2 * (2/3 * 1/2) / (2/3 + 1/2) = 4/7
    score = scoring.rouge_1("The cats sat.", "a cat sat here")
    assert score == pytest.approx({"precision": 2 / 3, "recall": 1 / 2, "f1": 4 / 7})


def test_rouge_1_clips_repeated_words_and_takes_the_completion_first():
    # "tea tea tea" against "tea time": one match (clipped), precision 1/3, recall 1/2
    assert scoring.rouge_1("tea tea tea", "tea time")["precision"] == pytest.approx(1 / 3)
    assert scoring.rouge_1("tea tea tea", "tea time")["recall"] == pytest.approx(1 / 2)


def test_rouge_1_equals_the_package_on_other_text():
    from rouge_score import rouge_scorer

    theirs = rouge_scorer.RougeScorer(["rouge1"], use_stemmer=True)
    rng = random.Random(0)
    words = ["running", "runs", "ran", "boats", "boat", "the", "quiet", "river,", "sea!", "12", "twelve"]
    for _ in range(20):
        a, b = (" ".join(rng.choices(words, k=rng.randint(1, 9))) for _ in range(2))
        assert scoring.rouge_1(a, b)["f1"] == theirs.score(b, a)["rouge1"].fmeasure


def test_an_empty_completion_scores_zero_and_is_kept():
    scores = scoring.score_rows("rouge_1", [("", "tea time"), ("tea time", "tea time")])
    summary = scoring.summarise("rouge_1", ["a", "b"], scores)
    assert summary["rouge_1_f1_percent"] == pytest.approx(50.0) and summary["n"] == 2


@pytest.mark.parametrize(
    ("completion", "match"),
    [("SELECT  1;\n", 1.0), ("select 1;", 1.0), ("SELECT 1", 0.0), ("", 0.0), ("  SELECT\n1;  ", 1.0)],
)
def test_exact_match_ignores_case_and_white_space_only(completion, match):
    assert scoring.exact_match(completion, "SELECT 1;") == {"match": match}


def test_exact_match_of_two_empty_texts_is_no_match():
    assert scoring.exact_match(" ", "") == {"match": 0.0}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("####12", "12"),
        ("so #### 1,234", "1234"),
        ("#### 1,234.50 dollars", "1234.5"),
        ("#### $5.", "5"),
        ("#### -3 apples", "-3"),
        ("#### -$3", "-3"),
        ("####\t.5", "0.5"),
        ("#### 12\n#### 13", "12"),
        ("#### 7\n\nQuestion: what else", "7"),
    ],
)
def test_gsm8k_numbers_are_normalised(text, number):
    assert scoring.marked_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["the answer is 12", "### 12", "#### twelve", "#### ", ""])
def test_gsm8k_text_without_a_marked_number(text):
    assert scoring.marked_number(text) is None


def test_gsm8k_counts_parse_failures_and_drops_none():
    pairs = [("#### 12", "#### 12.0"), ("#### 11", "#### 12"), ("I do not know", "#### 12"), ("12", "#### 12")]
    scores = scoring.score_rows("gsm8k", pairs)
    summary = scoring.summarise("gsm8k", ["a", "b", "c", "d"], scores)
    assert summary["gsm8k_accuracy_percent"] == 25.0
    assert summary["parse_failures"] == 2 and summary["parse_failure_percent"] == 50.0 and summary["n"] == 4


def test_gsm8k_reference_without_number_is_a_malformed_row():
    with pytest.raises(UserError, match="#### NUMBER"):
        scoring.gsm8k("#### 12", "twelve")


def test_gsm8k_shared_references_parse_whole(shared_data):
    from guardrail.data.rows import load_rows, response

    rows = load_rows(shared_data / "gsm8k_train_1000.jsonl")
    assert len(rows) == 1000
    assert all(scoring.gsm8k(response(row), response(row))["match"] == 1.0 for row in rows)


def test_bootstrap_ratio_weighs_by_the_denominator():
    # losses exactly 2 per token whatever the length: the ratio is 2 in every draw
    lengths = [1.0, 5.0, 20.0]
    estimate = bootstrap_ratio([2 * n for n in lengths], lengths)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((2.0, 2.0, 2.0))
    # and with lengths all 1 it is the mean with its interval
    values = [1.0, 4.0, 4.0, 9.0]
    assert bootstrap_ratio(values, [1.0] * 4, seed=3) == bootstrap_mean(values, seed=3)


def test_samples_of_one_prompt_are_one_unit():
    # ten samples of each of two prompts: the interval must span as for two rows, not shrink as for twenty
    ids = ["a"] * 10 + ["b"] * 10
    mean, interval = scoring.percent(ids, [0.0] * 10 + [1.0] * 10)
    assert mean == 50.0 and interval == [0.0, 100.0]


def test_unknown_evaluator_gives_the_near_match():
    with pytest.raises(UserError, match="did you mean 'rouge_1'"):
        scoring.check_evaluator("rouge1")
