"""Which rows are in which step: none lost, none twice, ranks disjoint."""

from __future__ import annotations

import numpy as np
import pytest

from guardrail.training.steps import deal, pack, plan_epoch

OPTIONS = {"accumulation": 2, "max_length": 64, "seed": 3, "epoch": 1, "reshuffle": True}


@pytest.mark.parametrize("batching", ["padded", "padding_free", "length_grouped", "packed"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("n_rows", [1, 2, 7, 50])
def test_every_row_counts_exactly_once_per_epoch(batching, world_size, n_rows):
    lengths = np.random.default_rng(0).integers(1, 65, n_rows)
    plan = plan_epoch(lengths, batching=batching, batch_size=4, world_size=world_size, **OPTIONS)
    micro_batches = [micro for step in plan for micro in step]
    counted = [row for micro in micro_batches for row in micro.counted_rows()]
    assert sorted(counted) == list(range(n_rows))
    for micro in micro_batches:
        assert len(micro.sequences) == world_size and all(micro.sequences)  # no rank is left without work
        assert all(len(share) <= 4 for share in micro.sequences)
    assert all(len(step) == 2 for step in plan[:-1])


def test_a_data_set_smaller_than_a_batch_is_one_short_batch():
    plan = plan_epoch(np.array([3, 4]), batching="padded", batch_size=8, world_size=1, **OPTIONS)
    assert len(plan) == 1 and len(plan[0]) == 1 and len(plan[0][0].sequences[0]) == 2


def test_the_repeated_rows_are_marked():
    micro = deal([(0,), (1,), (2,)], 4, 2)[0]
    assert micro.sequences == (((0,), (2,)), ((1,), (0,)))
    assert micro.repeated == ((False, False), (False, True))
    assert sorted(micro.counted_rows()) == [0, 1, 2]


def test_packing_fills_sequences_and_never_overflows():
    lengths = np.random.default_rng(1).integers(1, 101, 5000)
    sequences = pack(list(range(5000)), lengths, 100)
    assert sorted(row for sequence in sequences for row in sequence) == list(range(5000))
    sizes = [int(lengths[list(sequence)].sum()) for sequence in sequences]
    assert max(sizes) <= 100
    assert len(sequences) <= 1.03 * np.ceil(lengths.sum() / 100)  # best fit, longest first, is close to full


def test_seed_and_epoch_change_the_order_and_reshuffle_keeps_it():
    lengths = np.arange(1, 41)

    def order(**changes):
        options = {**OPTIONS, "batching": "padded", "batch_size": 4, "world_size": 1, **changes}
        return [row for step in plan_epoch(lengths, **options) for micro in step for row in micro.counted_rows()]

    assert order() == order() != order(seed=4)
    assert order(epoch=0) != order(epoch=1)
    assert order(epoch=0, reshuffle=False) == order(epoch=1, reshuffle=False)
