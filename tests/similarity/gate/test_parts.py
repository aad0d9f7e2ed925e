"""Sentences, duplicates, percentiles and limits against derivations by hand and by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.similarity.gate import duplicates
from guardrail.similarity.gate.policy import Policy, Rule
from guardrail.similarity.gate.references import (
    Limit,
    References,
    good_rows_flagged,
    limit_of,
    percentiles,
    quantile,
    rarity,
)
from guardrail.similarity.gate.segments import MAX_CHARS, segment_rows, sentence_spans


@given(st.text(alphabet=st.sampled_from("ab .!?\n\"')1A字 "), max_size=200) | st.text(max_size=60))
def test_sentences_are_all_of_the_text_in_order(text):
    spans = sentence_spans(text)
    assert "".join(text[start:end] for start, end in spans) == (text if text.strip() else "")
    assert all(end - start > 0 for start, end in spans)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Sand it. Prime it! Done?", ["Sand it. ", "Prime it! ", "Done?"]),
        ("1. Sand it.\n2. Prime it.", ["1. Sand it.\n", "2. Prime it."]),
        ('He said "go." Then left (fast.) Yes.', ['He said "go." ', "Then left (fast.) ", "Yes."]),
        ("J. Smith painted. Then slept.", ["J. Smith painted. ", "Then slept."]),
        ("Costs 3.5 euros, e.g.this", ["Costs 3.5 euros, e.g.this"]),
        ("Well ... yes. No", ["Well ... ", "yes. ", "No"]),
        ("Title\n\n- one\n- two", ["Title\n\n", "- one\n", "- two"]),
        ("  \n ", []),
    ],
)
def test_where_sentences_end(text, expected):
    assert [text[start:end] for start, end in sentence_spans(text)] == expected


def test_long_text_without_stops_is_cut_and_one_sentence_is_no_segment():
    spans = sentence_spans("word " * 300)
    assert max(end - start for start, end in spans) <= MAX_CHARS and len(spans) > 3
    row = {"id": "1", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "Only one."}]}
    assert segment_rows(row) == ([], [])


def jaccard(a, b):
    one, two = duplicates.shingles(a), duplicates.shingles(b)
    return len(one & two) / len(one | two)


def test_near_duplicates_are_those_of_brute_force():
    """40 texts of 60 words, each with copies of which 0 to 30 words were changed."""
    rng = np.random.default_rng(0)
    texts = []
    for _ in range(40):
        words = [f"w{n}" for n in rng.integers(5000, size=60)]
        texts.append(words)
        for changed in (0, 1, 30):
            copy = list(words)
            copy[:changed] = [f"x{n}" for n in rng.integers(5000, size=changed)]
            texts.append(copy)
    texts = [" ".join(words) for words in texts]
    hashes = np.array([duplicates.text_hash(text).hex() for text in texts], dtype="S32")
    found = duplicates.find_duplicates(hashes, duplicates.signatures(texts), 0.8)
    for i, text in enumerate(texts):
        alike = [j for j in range(i) if jaccard(text, texts[j]) >= 0.9]
        unlike = [j for j in range(i) if jaccard(text, texts[j]) < 0.7]
        assert found[i] == alike[0] if alike else found[i] < 0 or found[i] not in unlike, i
    assert (found >= 0).sum() >= 80


def test_rows_without_a_text_repeat_nothing():
    hashes = np.array([b"", b"aa", b"", b"aa"], dtype="S32")
    assert duplicates.find_duplicates(hashes, np.zeros((4, duplicates.PLACES), np.uint32), 0.9).tolist() == [
        -1,
        -1,
        -1,
        1,
    ]


def test_percentiles_weigh_every_set_the_same():
    """A set of 4 (1, 2, 3, 4) and one of 2 (10, 20): 3 lies above 2.5 of 4 and 0 of 2: (62.5 + 0) / 2."""
    reference, sets = np.array([1.0, 2, 3, 4, 10, 20]), np.array([0, 0, 0, 0, 1, 1])
    assert percentiles(np.array([3.0, 15.0, 99.0, np.nan]), reference, sets)[:3].tolist() == [31.25, 75.0, 100.0]
    assert np.isnan(percentiles(np.array([np.nan]), reference, sets)[0])
    assert [quantile(reference, sets, p) for p in (0, 12.5, 13, 50, 75, 76, 100)] == [1, 1, 2, 4, 10, 20, 20]


@settings(max_examples=30)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.floats(0, 100), st.data())
def test_a_quantile_is_the_smallest_value_that_reaches_the_share(values, percent, data):
    sets = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(values), max_size=len(values))))
    values = np.array(values, dtype=float)
    found = quantile(values, sets, percent)

    def reached(limit):
        return np.mean([(values[sets == one] <= limit).mean() for one in np.unique(sets)])

    assert reached(found) >= percent / 100 - 1e-6
    below = values[values < found]
    assert not len(below) or reached(below.max()) < percent / 100 + 1e-6


def test_limits_and_distances():
    column, sets = np.arange(1.0, 101), np.zeros(100, dtype=int)
    limit = limit_of(Rule("r", scorer="s", above_percentile=90, below=5), column, sets)
    assert (limit.high, limit.low, limit.median) == (90, 5, 50)
    values = np.array([4.0, 5, 50, 90, 91, 130, np.nan])
    assert limit.beyond(values).tolist() == [True, False, False, False, True, True, False]
    assert limit.distance(values)[[2, 3, 5]].tolist() == [0, 1, 2] and limit.distance(values)[-1] == -np.inf
    assert Limit(1.0, -np.inf, 1.0).distance(np.array([1.0, 3.0])).tolist() == [0, 3]  # the median is the limit


def test_rarity_compares_rules_of_different_units():
    """Of 1,000 exponential reference rows the share beyond x is exp(-x), so rarity is x / ln 10, also where none is."""
    column = -np.log(1 - (np.arange(1000) + 0.5) / 1000)
    sets, values = np.zeros(1000, dtype=int), np.array([0.1, 1.0, 3.0, 6.0, 12.0, np.nan])
    for unit in (1.0, 100.0):
        limit = limit_of(Rule("r", scorer="s", above_percentile=90), unit * column, sets)
        found = rarity(unit * values, limit, unit * column, sets)
        assert found[:5] == pytest.approx(values[:5] / np.log(10), rel=0.02) and found[5] == 0
    low = limit_of(Rule("r", scorer="s", below_percentile=10), -column, sets)
    assert rarity(-values[:5], low, -column, sets) == pytest.approx(values[:5] / np.log(10), rel=0.02)
    assert rarity(values, Limit(0.5, -np.inf, 0.0), np.zeros(0), np.zeros(0, dtype=int)).tolist() == [0] * 6
    same = limit_of(Rule("r", scorer="s", above_percentile=99), np.ones(50), sets[:50])
    assert rarity(np.array([0.0, 1, 2]), same, np.ones(50), sets[:50]).tolist() == [0, 0, 2]


def test_good_rows_are_judged_by_the_other_half():
    """Rows 0, 2, 4 ... are 1 to 50 and rows 1, 3, 5 ... 51 to 100: judged by each other, all of the larger half and
    none of the smaller are beyond percentile 100."""
    scores = np.empty((100, 1))
    scores[0::2, 0], scores[1::2, 0] = np.arange(1, 51), np.arange(51, 101)
    references = References(("a",), scores, np.zeros(100, dtype=int), np.zeros(0), np.zeros(0))
    policy = Policy(rules=(Rule("erodes", scorer="x", above_percentile=100),))
    found = good_rows_flagged(policy, references)
    assert found["count"] == 50 and found["n"] == 100 and found["interval"][0] < 0.5 < found["interval"][1]
