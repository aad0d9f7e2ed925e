"""When memory runs out: smaller batches, everything done once, one item that never fits said plainly."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guardrail.core.errors import UserError
from guardrail.models.memory import Budget, is_out_of_memory

CPU = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError(CPU), RuntimeError("not enough memory")],
)
def test_the_allocators_ways_to_say_it(error):
    assert is_out_of_memory(error) and not is_out_of_memory(ValueError(str(error)))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))


def limited(lengths, limit, sizes):
    """A model that fails above ``limit`` padded tokens."""

    def compute(rows):
        size = len(rows) * max(lengths[i] for i in rows)
        if size > limit:
            raise RuntimeError(CPU)
        sizes.append(size)
        return [lengths[i] for i in rows]

    return compute


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 4000), st.integers(50, 400))
def test_every_item_is_computed_once_and_the_budget_only_falls(lengths, tokens, limit):
    budget, sizes, got = Budget(tokens), [], {}
    for rows, values in budget.run(lengths, limited(lengths, limit, sizes), str):
        assert not got.keys() & set(rows)
        got |= dict(zip(rows, values, strict=True))
    assert got == dict(enumerate(lengths)) and max(sizes, default=0) <= limit
    assert budget.tokens <= tokens and budget.halved == (budget.tokens < tokens)


def test_the_smaller_budget_holds_for_the_next_run():
    lengths, sizes = [10] * 32, []
    budget = Budget(320)
    for _ in range(2):
        list(budget.run(lengths, limited(lengths, 100, sizes), str))
    assert budget.tokens == 80 and sizes == [80] * 8


def test_one_item_that_never_fits_is_a_user_error_in_the_callers_words():
    with pytest.raises(UserError, match=r"^item 1 is too long$"):
        list(Budget(100).run([5, 90], limited([5, 90], 50, []), lambda i: f"item {i} is too long"))


def test_other_errors_come_through():
    def broken(_):
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        list(Budget(100).run([1, 2], broken, str))
