"""The Hugging Face backend against `model.generate`, and what must not depend on the batch."""

from __future__ import annotations

import random

import pytest
import torch

from guardrail.generation import Request, SamplingOptions, make_backend
from guardrail.generation.hf import HFBackend
from guardrail.models import load_causal_lm


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


def test_greedy_equals_transformers_generate_row_by_row(tiny_model, requests):
    """The library's own loop, one row at a time without padding, is the independent reference."""
    model = load_causal_lm(str(tiny_model), "float32")
    done = backend_of(tiny_model, batch_rows=4).generate(requests, SamplingOptions(max_new_tokens=12))
    by_id = {c.id: c for c in done}
    for request in requests:
        out = model.generate(torch.tensor([request.prompt_ids]), max_new_tokens=12, do_sample=False)
        expected = out[0, len(request.prompt_ids) :].tolist()
        found = by_id[request.id]
        if expected[-1] == 1:  # </s>
            expected = expected[:-1]
            assert found.finish_reason == "eos"
        assert found.token_ids == expected
        assert found.n_prompt_tokens == len(request.prompt_ids)
