"""Which rows make up which optimizer step, on which rank: one plan per epoch, the same on every rank.

A plan is a list of steps; a step is a list of micro-batches; a micro-batch holds one list of sequences per rank;
a sequence is a tuple of row numbers (one row, or several when packed). Because every rank knows the whole plan, the
number of trained tokens of a step needs no communication.

``padded`` takes rows in the order of ``torch.utils.data.DistributedSampler``, the sampler of align-anything: ranks
read the shuffled rows in turn, and the order is filled up to a multiple of the ranks by starting again. With
``loss_average tokens`` such repeated rows carry no loss, so each row counts once per epoch. ``padding_free`` has the
plan of ``padded``: the same rows make a step, only laid end to end.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import numpy as np

MEGA_BATCH = 50  # length_grouped sorts by length inside blocks of this many batches: still shuffled, little padding
PACK_WINDOW = 4096  # rows among which packed looks for good fits

Sequence = tuple[int, ...]


@dataclass(frozen=True)
class MicroBatch:
    """``sequences[rank]``: the rank's sequences; ``repeated``: rows there only to keep the ranks in step."""

    sequences: tuple[tuple[Sequence, ...], ...]
    repeated: tuple[tuple[bool, ...], ...]

    def counted_rows(self) -> list[int]:
        """Rows that enter the loss, over all ranks."""
        return [
            row
            for sequences, flags in zip(self.sequences, self.repeated, strict=True)
            for sequence, repeated in zip(sequences, flags, strict=True)
            if not repeated
            for row in sequence
        ]


Step = list[MicroBatch]


def shuffled(n_rows: int, seed: int, epoch: int, reshuffle: bool) -> list[int]:
    """The epoch's row order: ``torch.randperm`` seeded with ``seed + epoch``, as ``DistributedSampler`` does."""
    import torch

    generator = torch.Generator()
    generator.manual_seed(seed + (epoch if reshuffle else 0))
    return torch.randperm(n_rows, generator=generator).tolist()


def plan_epoch(
    lengths: np.ndarray,
    *,
    batching: str,
    batch_size: int,
    accumulation: int,
    world_size: int,
    max_length: int,
    seed: int,
    epoch: int,
    reshuffle: bool,
) -> list[Step]:
    """The optimizer steps of ``epoch``. The last step may have fewer micro-batches, the last micro-batch fewer rows."""
    order = shuffled(len(lengths), seed, epoch, reshuffle)
    if batching == "packed":
        sequences = pack(order, lengths, max_length)
        rng = np.random.default_rng([seed, epoch if reshuffle else 0])
        sequences = [sequences[i] for i in rng.permutation(len(sequences))]
    elif batching == "length_grouped":
        sequences = [(row,) for row in group_by_length(order, lengths, batch_size * world_size, seed, epoch, reshuffle)]
    else:
        sequences = [(row,) for row in order]
    micro_batches = deal(sequences, batch_size, world_size)
    return [micro_batches[i : i + accumulation] for i in range(0, len(micro_batches), accumulation)]


def deal(sequences: list[Sequence], batch_size: int, world_size: int) -> list[MicroBatch]:
    """Sequences to ranks in turn, each rank's share in batches."""
    missing = -len(sequences) % world_size
    flags = [False] * len(sequences) + [True] * missing
    filled = sequences + [sequences[i % len(sequences)] for i in range(missing)]
    shares = [filled[rank::world_size] for rank in range(world_size)]
    marks = [flags[rank::world_size] for rank in range(world_size)]
    return [
        MicroBatch(
            tuple(tuple(share[start : start + batch_size]) for share in shares),
            tuple(tuple(mark[start : start + batch_size]) for mark in marks),
        )
        for start in range(0, len(shares[0]), batch_size)
    ]


def group_by_length(
    order: list[int], lengths: np.ndarray, global_batch: int, seed: int, epoch: int, reshuffle: bool
) -> list[int]:
    """Shuffled rows regrouped so that a global batch has similar lengths; the batches themselves are shuffled.

    The batch with fewer rows, if any, stays last.
    """
    block = global_batch * MEGA_BATCH
    batches: list[list[int]] = []
    for start in range(0, len(order), block):
        rows = sorted(order[start : start + block], key=lambda row: -int(lengths[row]))
        batches += [rows[i : i + global_batch] for i in range(0, len(rows), global_batch)]
    short = [batch for batch in batches if len(batch) < global_batch]
    full = [batch for batch in batches if len(batch) == global_batch]
    rng = np.random.default_rng([seed, epoch if reshuffle else 0])
    return [row for i in rng.permutation(len(full)) for row in full[i]] + [row for batch in short for row in batch]


def pack(order: list[int], lengths: np.ndarray, capacity: int) -> list[Sequence]:
    """Rows into sequences of at most ``capacity`` tokens: best fit, longest first, inside windows of the order.

    Every row is in exactly one sequence; a row is never split. Within a sequence rows keep the shuffled order.
    """
    out: list[Sequence] = []
    for start in range(0, len(order), PACK_WINDOW):
        window = order[start : start + PACK_WINDOW]
        place = {row: i for i, row in enumerate(window)}
        filled: list[list[int]] = []
        open_by_room: dict[int, list[list[int]]] = {}  # free tokens -> sequences with so many
        rooms: list[int] = []  # the keys of open_by_room, sorted
        for row in sorted(window, key=lambda row: (-int(lengths[row]), place[row])):
            size = int(lengths[row])
            position = bisect.bisect_left(rooms, size)
            if position == len(rooms):
                sequence: list[int] = []
                filled.append(sequence)
                room = capacity
            else:
                room = rooms[position]
                sequence = open_by_room[room].pop()
                if not open_by_room[room]:
                    del open_by_room[room], rooms[position]
            sequence.append(row)
            if room > size:
                if room - size not in open_by_room:
                    bisect.insort(rooms, room - size)
                open_by_room.setdefault(room - size, []).append(sequence)
        out += [tuple(sorted(sequence, key=place.__getitem__)) for sequence in filled]
    return out
