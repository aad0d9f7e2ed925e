"""The Hugging Face backend against `model.generate`, and what must not depend on the batch."""

from __future__ import annotations

import copy
import random

import pytest
import torch

from guardrail.core.errors import UserError
from guardrail.generation import Request, SamplingOptions, make_backend
from guardrail.generation.hf import HFBackend, sample_tokens
from guardrail.models.loading import load_causal_lm


@pytest.fixture(scope="module")
def requests(tiny_tokenizer):
    draw = random.Random(0)
    words = ["boat", "river", "tea", "paint", "wood", "sea", "ask", "help", "three", "gentle"]
    out = []
    for i in range(11):
        text = " ".join(draw.choices(words, k=draw.randint(1, 30)))
        out.append(Request(f"row-{i}", 0, [tiny_tokenizer.bos_token_id, *tiny_tokenizer(text)["input_ids"]]))
    return out


def backend_of(tiny_model, **options) -> HFBackend:
    return make_backend("hf", str(tiny_model), torch_dtype="float32", **options)


def greedy(tiny_model, requests, n=12, **options):
    return {c.key: c for c in backend_of(tiny_model, **options).generate(requests, SamplingOptions(max_new_tokens=n))}


def test_greedy_equals_transformers_generate_row_by_row(tiny_model, requests):
    """The library's own loop, one row at a time without padding, is the independent reference."""
    model = load_causal_lm(str(tiny_model), "float32")
    done = greedy(tiny_model, requests, batch_rows=4)
    for request in requests:
        out = model.generate(torch.tensor([request.prompt_ids]), max_new_tokens=12, do_sample=False)
        expected = out[0, len(request.prompt_ids) :].tolist()
        found = done[request.key]
        if expected[-1] == 1:  # </s>
            expected = expected[:-1]
            assert found.finish_reason == "eos"
        assert found.token_ids == expected
        assert found.n_prompt_tokens == len(request.prompt_ids)


def test_greedy_equals_transformers_generate_with_sliding_windows(tiny_tokenizer, requests, tmp_path):
    """Gemma-2: every other layer sees 8 tokens only and keeps the library's own cache layer."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=8,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        initializer_range=0.2,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    backend = make_backend("hf", str(tmp_path), torch_dtype="float32")
    plain = {c.id: c for c in backend.generate(requests, SamplingOptions(max_new_tokens=14))}
    for request in requests:
        out = backend.model.generate(torch.tensor([request.prompt_ids]), max_new_tokens=14, do_sample=False)
        expected = out[0, len(request.prompt_ids) :].tolist()
        assert plain[request.id].token_ids == [t for t in expected if t != 1]
    end = plain[requests[0].id].token_ids[2]  # rows leave the batch while windows slide
    backend.__dict__["eos_ids"] = (end,)
    for one in backend.generate(requests, SamplingOptions(max_new_tokens=14)):
        ids = plain[one.id].token_ids
        assert one.token_ids == (ids[: ids.index(end)] if end in ids else ids)


def test_rows_that_end_early_leave_and_the_others_go_on(tiny_model, requests):
    """With a token of the answers as EOS, rows end at different steps; every row is cut at its own first one."""
    plain = greedy(tiny_model, requests, n=24)
    end = plain[requests[0].key].token_ids[3]
    backend = backend_of(tiny_model)
    backend.__dict__["eos_ids"] = (end,)
    done = {c.key: c for c in backend.generate(requests, SamplingOptions(max_new_tokens=24))}
    lengths = set()
    for request in requests:
        ids = plain[request.key].token_ids
        expected = ids[: ids.index(end)] if end in ids else ids
        assert done[request.key].token_ids == expected
        assert done[request.key].finish_reason == ("eos" if end in ids else "length")
        lengths.add(len(expected))
    assert len(lengths) > 1, "the test needs rows that end at different steps"


def test_sampling_depends_on_seed_id_and_sample_alone(tiny_model, requests):
    """G3: neither batch size, order nor neighbours change a sampled row; seed and sample number do."""
    options = SamplingOptions(True, 0.9, 0.95, 50, 16, seed=3)
    together = {c.key: c.token_ids for c in backend_of(tiny_model).generate(requests, options)}
    alone = {
        c.key: c.token_ids for c in backend_of(tiny_model, batch_rows=1).generate(list(reversed(requests)), options)
    }
    assert together == alone
    other_seed = backend_of(tiny_model).generate(requests, SamplingOptions(True, 0.9, 0.95, 50, 16, seed=4))
    assert {c.key: c.token_ids for c in other_seed} != together
    second = [Request(r.id, 1, r.prompt_ids) for r in requests]
    assert [c.token_ids for c in backend_of(tiny_model).generate(second, options)] != list(together.values())


def test_sampled_tokens_follow_the_filtered_distribution():
    """Inverse CDF on an even grid gives each token its probability after temperature, top-k and top-p.

    Probabilities 0.5, 0.25, 0.15, 0.1: top-k 3 leaves 0.5/0.9, 0.25/0.9, 0.15/0.9; top-p 0.8 keeps the two that
    reach 0.833; renormalised 2/3 and 1/3.
    """
    logits = torch.log(torch.tensor([0.1, 0.5, 0.15, 0.25])).repeat(3000, 1)
    grid = (torch.arange(3000, dtype=torch.float64) + 0.5) / 3000
    tokens = sample_tokens(logits, SamplingOptions(True, 1.0, 0.8, 3, 1), grid)
    counts = torch.bincount(tokens, minlength=4).tolist()
    assert counts == [0, 2000, 0, 1000]
    cold = sample_tokens(logits, SamplingOptions(True, 0.01, 1.0, 0, 1), grid)
    assert set(cold.tolist()) == {1}


def test_sampling_filter_equals_the_librarys_warpers():
    from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    torch.manual_seed(0)
    logits = torch.randn(1, 50)
    for temperature, k, p in ((0.7, 20, 0.6), (1.3, 50, 0.9), (0.9, 5, 0.3)):
        warped = logits
        for warper in (TemperatureLogitsWarper(temperature), TopKLogitsWarper(k), TopPLogitsWarper(p)):
            warped = warper(None, warped)
        expected = torch.softmax(warped, -1)[0]
        n = 4000
        grid = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        tokens = sample_tokens(logits.repeat(n, 1), SamplingOptions(True, temperature, p, k, 1), grid)
        found = torch.bincount(tokens, minlength=50) / n
        assert (found - expected).abs().max() < 1e-3


def test_stop_strings_are_cut_and_counted(tiny_model, tiny_tokenizer, requests):
    """G6: the next turn's marker and all behind it are gone from text and tokens, and the row says so."""
    plain = greedy(tiny_model, requests, n=24)
    key, full = next((k, c) for k, c in plain.items() if len(c.text) > 14)
    marker = full.text[9:12]
    place = full.text.index(marker)
    done = greedy(tiny_model, requests, n=24, stops=(marker,))
    assert done[key].text == full.text[:place]
    assert done[key].cut_at_stop and done[key].finish_reason == "stop"
    assert len(tiny_tokenizer.decode(done[key].token_ids)) <= place
    for k, c in done.items():
        assert marker not in c.text
        assert c.cut_at_stop == (marker in plain[k].text)


def test_a_special_token_that_begins_a_turn_ends_the_answer(tiny_model, tiny_tokenizer, requests):
    """As Gemma's <end_of_turn>: decoding drops it, so only its id can stop the row, and then nothing is computed."""
    plain = greedy(tiny_model, requests, n=24)
    key, full = next(iter(plain.items()))
    marker = full.token_ids[4]
    tokenizer = copy.deepcopy(tiny_tokenizer)
    name = tokenizer.convert_ids_to_tokens(marker)
    tokenizer.add_special_tokens({"additional_special_tokens": [name]})
    assert tokenizer.convert_tokens_to_ids(name) == marker and name not in tokenizer.decode([marker], True)
    backend = backend_of(tiny_model, stops=(name,))
    backend.__dict__["tokenizer"] = tokenizer
    forwards = []
    backend.model.register_forward_pre_hook(lambda *_: forwards.append(1))
    (done,) = backend.generate([r for r in requests if r.key == key], SamplingOptions(max_new_tokens=24))
    end = full.token_ids.index(marker)
    assert done.token_ids == full.token_ids[:end] and done.finish_reason == "stop" and done.cut_at_stop
    assert len(forwards) == end + 1


def test_a_prompt_as_long_as_the_context_is_refused_and_a_long_one_gets_what_is_left(tiny_model):
    room = greedy(tiny_model, [Request("long", 0, [0] + [5] * 505)], n=64)["long", 0]
    assert room.finish_reason in ("length", "eos")
    assert room.n_completion_tokens <= 6  # 512 - 506
    with pytest.raises(UserError, match=r"'too-long'.*512"):
        greedy(tiny_model, [Request("too-long", 0, [5] * 512)])


def test_out_of_memory_halves_the_batch_and_loses_nothing(tiny_model, requests, monkeypatch):
    expected = {k: c.token_ids for k, c in greedy(tiny_model, requests).items()}
    backend = backend_of(tiny_model)
    real, sizes = backend._generate_batch, []

    def small_device(unit, options):
        sizes.append(len(unit) * (max(len(r.prompt_ids) for r in unit) + 12))
        if sizes[-1] > 200:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(unit, options)

    monkeypatch.setattr(backend, "_generate_batch", small_device)
    done = backend.generate(requests, SamplingOptions(max_new_tokens=12))
    assert {c.key: c.token_ids for c in done} == expected
    assert len(done) == len(requests)
    assert sizes[0] > 200 and sizes[-1] <= 200 and len(sizes) > 4
    tried = len([size for size in sizes if size > 200])
    backend.generate(requests, SamplingOptions(max_new_tokens=12))
    assert len([size for size in sizes if size > 200]) == tried, "the budget stays lowered"

    monkeypatch.setattr(
        backend, "_generate_batch", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory"))
    )
    with pytest.raises(UserError, match="single row"):
        backend.generate(requests[:1], SamplingOptions(max_new_tokens=12))


def test_another_runtime_error_is_not_taken_for_out_of_memory(tiny_model, requests, monkeypatch):
    backend = backend_of(tiny_model)

    def broken(*_):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(backend, "_generate_batch", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        backend.generate(requests, SamplingOptions(max_new_tokens=2))


def test_top_next_tokens_equal_a_plain_forward(tiny_model, requests):
    backend = backend_of(tiny_model)
    tops = backend.top_next_tokens([r.prompt_ids for r in requests], k=5)
    for request, top in zip(requests, tops, strict=True):
        with torch.inference_mode():
            logits = backend.model(torch.tensor([request.prompt_ids])).logits[0, -1]
        values, tokens = torch.softmax(logits, -1).topk(5)
        assert [t for t, _ in top] == tokens.tolist()
        assert [p for _, p in top] == pytest.approx(values.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}, {"max_new_tokens": 0}]
)
def test_impossible_sampling_options_are_refused(options):
    with pytest.raises(UserError, match=next(iter(options))):
        SamplingOptions(do_sample=True, **options)
