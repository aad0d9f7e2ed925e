"""Rules that every backend shares: planning, cutting, seeds, completeness."""

from __future__ import annotations

import pytest

from guardrail.core.errors import UserError
from guardrail.generation import Completion, Request, SamplingOptions, make_backend, row_seed
from guardrail.generation.interface import check_complete, decode_answer, finish_completion, plan_units


def completion(row_id: str, sample: int = 0) -> Completion:
    return Completion(row_id, sample, "x", [5], "eos", 3, 1, False)


def test_units_respect_both_limits_and_hold_every_request_once():
    requests = [Request(f"r{i}", 0, [1] * (10 + 7 * i % 50)) for i in range(40)]
    units = plan_units(requests, max_new_tokens=20, unit_tokens=300, unit_rows=6)
    assert sorted(r.id for u in units for r in u) == sorted(r.id for r in requests)
    for unit in units:
        width = max(len(r.prompt_ids) for r in unit) + 20
        assert len(unit) <= 6
        assert len(unit) == 1 or len(unit) * width <= 300
    lengths = [len(r.prompt_ids) for u in units for r in u]
    assert lengths == sorted(lengths, reverse=True)


def test_the_plan_does_not_depend_on_the_order_of_the_rows():
    requests = [Request(f"r{i}", i % 2, [1] * (5 + i % 7)) for i in range(20)]
    assert plan_units(requests, 8, 100, 4) == plan_units(requests[::-1], 8, 100, 4)


def test_missing_doubled_and_foreign_rows_are_noticed():
    """G1: nothing is lost, nothing is repeated; equal prompts under different ids are different rows."""
    requests = [Request("a", 0, [7, 7]), Request("b", 0, [7, 7]), Request("b", 1, [7, 7])]
    done = [completion("b", 1), completion("a"), completion("b")]
    assert [c.key for c in check_complete(requests, done)] == [("a", 0), ("b", 0), ("b", 1)]
    for wrong in (done[:2], [*done, completion("c")], [*done, completion("a")]):
        with pytest.raises(AssertionError):
            check_complete(requests, wrong)


def test_row_seeds_differ_by_seed_id_and_sample():
    seeds = {row_seed(s, i, k) for s in (0, 1) for i in ("a", "b", "a1") for k in (0, 1, 11)}
    assert len(seeds) == 18
    assert all(0 <= s < 2**63 for s in seeds)
    assert row_seed(0, "a", 0) == row_seed(0, "a", 0)


def test_completion_is_cut_at_eos_by_token_count_and_keeps_its_leading_space(tiny_tokenizer):
    """G4: no marker text is searched for to find where the answer begins."""
    prompt = tiny_tokenizer("Ann asks Bob for tea;")["input_ids"]
    answer = tiny_tokenizer(" Bob says yes")["input_ids"]
    request = Request("a", 0, prompt)
    done = finish_completion(tiny_tokenizer, request, [*answer, 1, *answer], (1,), ())
    assert done.text == " Bob says yes"
    assert done.token_ids == answer and done.finish_reason == "eos"
    again = finish_completion(tiny_tokenizer, request, answer, (1,), ())
    assert again.finish_reason == "length"
    assert decode_answer(tiny_tokenizer, prompt, []) == ""


def test_an_answer_that_repeats_the_prompt_is_kept_whole(tiny_tokenizer):
    """BOO splits on a marker and loses such answers."""
    prompt = tiny_tokenizer("USER: Summarize this dialog. ASSISTANT:")["input_ids"]
    done = finish_completion(tiny_tokenizer, Request("a", 0, prompt), prompt, (1,), ())
    assert done.text == "USER: Summarize this dialog. ASSISTANT:"


def test_greedy_options_ignore_the_sampling_numbers_in_their_identity():
    assert SamplingOptions(False, 0.9, 0.6, 50, 8, 1).as_dict() == SamplingOptions(False, 0.1, 1.0, 0, 8, 2).as_dict()
    assert SamplingOptions(True, 0.9, seed=1).as_dict() != SamplingOptions(True, 0.9, seed=2).as_dict()


def test_a_misspelt_backend_or_style_is_refused_with_the_near_match():
    with pytest.raises(UserError, match="did you mean 'vLLM'"):
        make_backend("vllm", "x/y")
    with pytest.raises(UserError, match="did you mean 'llama2_base'"):
        make_backend("hf", "x/y", prompt_style="lama2_base")
