"""Batches of similar length: every index once, the budget kept, little padding, the same plan every time."""

from hypothesis import given
from hypothesis import strategies as st

from guardrail.core.batches import MAX_PADDING, length_batches

LENGTHS = st.lists(st.integers(0, 300), max_size=60)
TOKENS = st.none() | st.integers(1, 1000)
ROWS = st.none() | st.integers(1, 20)
PADDING = st.none() | st.floats(0, 0.9)


@given(LENGTHS, TOKENS, ROWS, PADDING)
def test_every_index_is_in_one_batch_and_the_budget_is_kept(lengths, tokens, rows, padding):
    batches = list(length_batches(lengths, tokens, rows, padding))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        widest = max(lengths[i] for i in batch)
        assert lengths[batch[0]] == widest  # the longest first, in a batch and over batches
        assert len(batch) == 1 or tokens is None or len(batch) * widest <= tokens or widest == 0
        assert rows is None or len(batch) <= rows
    widths = [lengths[batch[0]] for batch in batches]
    assert widths == sorted(widths, reverse=True)


@given(LENGTHS, st.integers(1, 1000))
def test_without_a_bound_on_padding_a_batch_is_as_full_as_it_can_be(lengths, tokens):
    batches = list(length_batches(lengths, tokens))
    for batch in batches[:-1]:
        assert (len(batch) + 1) * max(1, lengths[batch[0]]) > tokens


@given(LENGTHS, st.integers(1, 1000))
def test_behind_the_first_quarter_no_item_is_padded_by_more_than_the_bound(lengths, tokens):
    for batch in length_batches(lengths, tokens, max_padding=MAX_PADDING):
        widest = max(1, lengths[batch[0]])
        quarter = max(1, -(-tokens // (4 * widest)))
        assert all(lengths[i] >= (1 - MAX_PADDING) * widest for i in batch[quarter:])


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 9)), unique_by=lambda item: item[0]), TOKENS, ROWS)
def test_equal_lengths_keep_their_order(items, tokens, rows):
    ordered = [i for batch in length_batches([length for _, length in items], tokens, rows) for i in batch]
    assert ordered == sorted(range(len(items)), key=lambda i: (-items[i][1], i))


def test_an_item_over_the_budget_goes_alone():
    assert list(length_batches([3, 50, 4], 10)) == [[1], [2, 0]]
    assert list(length_batches([], 10)) == []


def test_the_long_tail_ends_a_batch_that_is_a_quarter_full():
    # four of length 10 fill 40 of 100 tokens; the next would be padded by half
    assert list(length_batches([10, 10, 10, 10, 5, 5], 100, max_padding=MAX_PADDING)) == [[0, 1, 2, 3], [4, 5]]
    assert list(length_batches([10, 10, 10, 10, 5, 5], 100)) == [[0, 1, 2, 3, 4, 5]]
