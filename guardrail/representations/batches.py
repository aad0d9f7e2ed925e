"""Token-budget batches: sequences of similar length together, so that little is computed on padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def batch_end(lengths: Sequence[int], start: int, batch_tokens: int) -> int:
    """End of the batch that begins at ``start`` of descending ``lengths``: ``longest x count <= batch_tokens``.

    A batch has at least one item. Descending, so that the largest batch comes first: if it fits, the rest does.
    """
    return min(len(lengths), start + max(1, batch_tokens // max(1, lengths[start])))


def token_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices into ``lengths``, batch by batch, longest first; every index exactly once."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    ordered = [lengths[i] for i in order]
    start = 0
    while start < len(order):
        end = batch_end(ordered, start, batch_tokens)
        yield order[start:end]
        start = end
