"""Rules that every backend shares: planning, cutting, seeds, completeness."""

from __future__ import annotations

import pytest
from toys import make_tokenizer

from guardrail.core.errors import UserError
from guardrail.core.openai_client import Reply
from guardrail.data.prompts import stop_strings
from guardrail.generation import Completion, Request, SamplingOptions, make_backend, row_seed
from guardrail.generation.interface import (
    check_complete,
    decode_answer,
    finish_completion,
    plan_units,
    special_stop_ids,
)


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


@pytest.fixture(scope="module")
def gemma_tokenizer(tmp_path_factory):
    """The toy tokenizer with Gemma's turn markers as special tokens: decoding leaves them out."""
    tokenizer = make_tokenizer(tmp_path_factory.mktemp("gemma"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    return tokenizer


def test_a_stop_string_that_is_a_special_token_stops_by_its_id(gemma_tokenizer):
    """No text ever shows such a token, so looking for its string found nothing and the answer ran on."""
    stops = stop_strings("gemma")
    stop_ids = special_stop_ids(gemma_tokenizer, (*stops, "\n### Instruction:", "river"))
    assert [gemma_tokenizer.decode([i]) for i in stop_ids] == ["<end_of_turn>", "<start_of_turn>"]
    prompt = gemma_tokenizer("Ann asks Bob for tea;")["input_ids"]
    answer, more = gemma_tokenizer(" Bob says yes")["input_ids"], gemma_tokenizer(" and more")["input_ids"]
    request = Request("a", 0, prompt)
    done = finish_completion(gemma_tokenizer, request, [*answer, stop_ids[0], *more], (1,), stops, stop_ids)
    assert (done.text, done.token_ids, done.finish_reason, done.cut_at_stop) == (" Bob says yes", answer, "stop", True)
    eos_first = finish_completion(gemma_tokenizer, request, [*answer, 1, stop_ids[0]], (1,), stops, stop_ids)
    assert (eos_first.finish_reason, eos_first.cut_at_stop) == ("eos", False)
    without = finish_completion(gemma_tokenizer, request, [*answer, stop_ids[0], *more], (1,), stops)
    assert without.text == " Bob says yes and more", "what happened before"


def test_a_server_gets_the_stop_ids_and_what_it_says_it_stopped_at_counts(gemma_tokenizer, tmp_path, monkeypatch):
    gemma_tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    marker = gemma_tokenizer.convert_tokens_to_ids("<end_of_turn>")
    backend = make_backend("openai", str(tmp_path), base_url="http://127.0.0.1:9/v1", prompt_style="gemma")
    backend.__dict__ |= {"model": "m", "context_tokens": None, "tokenizer": gemma_tokenizer}
    sent = []

    def complete(model, prompt, **payload):
        sent.append(payload)
        ids = gemma_tokenizer(" yes")["input_ids"]
        return Reply(
            {"choices": [{"text": " yes", "finish_reason": "stop", "stop_reason": marker, "token_ids": ids}]},
            None,
            "",
            1,
        )

    monkeypatch.setattr(backend.client, "complete", complete)
    (done,) = backend.generate([Request("a", 0, [5])], SamplingOptions(max_new_tokens=4))
    assert marker in sent[0]["stop_token_ids"]
    assert (done.text, done.finish_reason, done.cut_at_stop) == (" yes", "stop", True)
