"""Rows, tokens and padding; assumptions stand beside what rests on them."""

from __future__ import annotations

import numpy as np
import pytest

from guardrail.core.errors import UserError
from guardrail.core.files import write_jsonl
from guardrail.study.config import Source
from guardrail.study.planning.assumptions import DEFAULTS, Book, parse_changes
from guardrail.study.planning.volumes import Volume, join, known_as, padding, volume


@pytest.mark.parametrize(("n_rows", "variation"), [(5, 0.3), (8, 0.6), (16, 1.0)])
def test_padding_is_the_mean_longest_row_of_a_batch(n_rows, variation):
    """Against drawing batches: log-normal lengths with that standard deviation over mean."""
    sigma = np.sqrt(np.log(1 + variation**2))
    lengths = np.random.default_rng(0).lognormal(-(sigma**2) / 2, sigma, size=(40_000, n_rows))
    assert padding(n_rows, variation) == pytest.approx(lengths.max(axis=1).mean() / lengths.mean(), rel=0.02)
    assert padding(1, variation) == padding(n_rows, 0.0) == 1.0


def test_rows_that_are_here_are_counted_and_measured(tmp_path):
    rows = [{"id": str(i), "prompt": "p" * 43, "response": "r" * (43 if i % 2 else 129)} for i in range(10)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    found = volume(Source(str(tmp_path / "rows.jsonl")), Book({"template_tokens": 20}))
    # 86 or 172 characters at 4.3 each, and 20 tokens of the style: 40 or 60
    assert (found.rows, found.tokens, found.variation) == (10, pytest.approx(50), pytest.approx(10 / 50))


def test_published_sets_have_their_cards_numbers_and_say_so():
    book = Book()
    book.purpose("align")
    found = volume(Source("datasets/ultrachat", "train"), book)
    assert found.rows == 207_865 and found.tokens == pytest.approx(1090 * 128 * 2048 / 207_865, abs=1)
    entry = book.for_json()["ultrachat_tokens"]
    assert entry["used_for"] == ["align"] and "zephyr-7b-sft-full" in str(entry["source"])
    assert known_as("knkarthick/samsum") == "samsum" and known_as("datasets/mine") is None


def test_mixtures_keep_rows_and_tokens():
    one, two = Volume(300, 100, 0.0, "a"), Volume(100, 20, 0.0, "b")
    both = join([one, two])
    lengths = np.array([100] * 300 + [20] * 100)
    assert (both.rows, both.tokens) == (400, lengths.mean())
    assert both.variation == pytest.approx(lengths.std() / lengths.mean())


def test_a_changed_assumption_says_who_changed_it():
    book = Book(parse_changes("training_utilisation=0.5, ultrachat_tokens=300"))
    assert book.note("training_utilisation", 0.4, "of peak", "a table") == 0.5
    assert book.for_json()["training_utilisation"]["source"] == "PLAN_ASSUME"
    assert volume(Source("datasets/ultrachat", "train"), book).tokens == 300


@pytest.mark.parametrize("text", ["training_utilisation", "a=b", "reading_utilisation=-1", "reading_utilisation=inf"])
def test_a_change_that_is_none_is_refused(text):
    with pytest.raises(UserError):
        parse_changes(text)


def test_a_change_that_no_number_rests_on_is_refused_with_the_near_match():
    book = Book({"reading_utilization": 0.5})
    assert book["reading_utilisation"] == 0.5
    with pytest.raises(UserError, match=r"reading_utilization.*did you mean 'reading_utilisation'"):
        book.check()
    assert all(assumption.source for assumption in DEFAULTS.values())
