"""Token-budget batches: sequences of similar length together, so that little is computed on padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

MAX_PADDING = 0.2


def batch_end(lengths: Sequence[int], start: int, batch_tokens: int) -> int:
    """End of the batch that begins at ``start`` of descending ``lengths``: ``longest x count <= batch_tokens``.

    A batch has at least one item. Descending, so that the largest batch comes first: if it fits, the rest does.
    In the long tail, where neighbours differ much, a batch that is a quarter full ends before a row that would be
    padded by more than a fifth.
    """
    longest = max(1, lengths[start])
    end = min(len(lengths), start + max(1, batch_tokens // longest))
    quarter_full = start + max(1, -(-batch_tokens // (4 * longest)))
    for position in range(quarter_full, end):
        if lengths[position] < (1 - MAX_PADDING) * longest:
            return position
    return end


def token_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices into ``lengths``, batch by batch, longest first; every index exactly once."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    ordered = [lengths[i] for i in order]
    start = 0
    while start < len(order):
        end = batch_end(ordered, start, batch_tokens)
        yield order[start:end]
        start = end
