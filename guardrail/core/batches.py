"""Batches of similar length under a token budget, so that little is computed on padding: plain arithmetic on lengths.

    for rows in length_batches([len(ids) for ids in texts], batch_tokens=1024):
        ...                                # rows: indices into texts; longest first, every index exactly once

Longest first: if the first batch fits in memory, the rest does. Equal lengths keep their order, so a plan depends on
the lengths alone. Running a plan, and halving it when memory runs out, is ``guardrail.models.memory``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

MAX_PADDING = 0.2  # a fifth


def length_order(lengths: Sequence[int]) -> list[int]:
    """Indices of ``lengths``, longest first; equal lengths in their order."""
    return sorted(range(len(lengths)), key=lambda i: -lengths[i])


def batch_end(
    lengths: Sequence[int],
    start: int,
    batch_tokens: int | None,
    max_rows: int | None = None,
    max_padding: float | None = None,
) -> int:
    """End of the batch that begins at ``start`` of descending ``lengths``; a batch has at least one item.

    Args:
        batch_tokens: bound on ``longest x count``, the padded tokens; ``None``: no bound. A longer item goes alone.
        max_rows: bound on the count; ``None``: no bound.
        max_padding: in the long tail, where neighbours differ much, a batch that is a quarter full ends before an item
            of which more than this fraction would be padding; ``None``: it does not.
    """
    longest = max(1, lengths[start])
    rows, quarter = len(lengths), -(-len(lengths) // 4)  # how many may go in, and a fourth of that, rounded up
    if batch_tokens is not None:
        rows, quarter = max(1, batch_tokens // longest), -(-batch_tokens // (4 * longest))
    if max_rows is not None:
        rows, quarter = min(rows, max(1, max_rows)), min(quarter, -(-max_rows // 4))
    end = min(len(lengths), start + rows)
    if max_padding is not None:
        for position in range(start + max(1, quarter), end):
            if lengths[position] < (1 - max_padding) * longest:
                return position
    return end


def length_batches(
    lengths: Sequence[int],
    batch_tokens: int | None,
    max_rows: int | None = None,
    max_padding: float | None = None,
) -> Iterator[list[int]]:
    """Indices into ``lengths``, batch by batch, longest first; see ``batch_end`` for the bounds."""
    order = length_order(lengths)
    ordered = [lengths[i] for i in order]
    start = 0
    while start < len(order):
        end = batch_end(ordered, start, batch_tokens, max_rows, max_padding)
        yield order[start:end]
        start = end
