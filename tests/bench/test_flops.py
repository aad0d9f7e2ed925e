"""Operations against torch's own counter on small models of both families."""

from __future__ import annotations

import pytest
import torch
from bench.tiny import GEMMA2, LLAMA
from torch.utils.flop_counter import FlopCounterMode

from guardrail.bench.build import build
from guardrail.bench.flops import attended, generation_flops, reading_flops, training_flops
from guardrail.bench.shapes import SHAPES
from guardrail.training.config import SFTConfig
from guardrail.training.engine import prepare_model

B, T = 2, 48
COUNTED = "eager"  # the counter does not know the CPU's fused attention


def counted(work) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("lora", [False, True], ids=["all", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("shape", [LLAMA, GEMMA2], ids=lambda s: s.family)
def test_training_operations_are_those_that_torch_counts(shape, checkpointing, lora):
    targets = ("q_proj", "v_proj")
    config = SFTConfig(
        model_name_or_path="x",
        train_datasets="x",
        train_template="x",
        output_dir="x",
        use_lora=lora,
        r=8,
        target_modules=targets,
        gradient_checkpointing=checkpointing,
    )
    model = prepare_model(build(shape, "sft", "float32", "cpu", COUNTED).train(), config).model
    ids = torch.randint(3, shape.vocabulary, (B, T))
    n = counted(lambda: model(input_ids=ids, use_cache=False).logits.float().logsumexp(-1).sum().backward())
    mine = training_flops(
        shape,
        B,
        T,
        B * T,
        gradient_checkpointing=checkpointing,
        r=8 if lora else None,
        targets=targets,
        causal_kernel=False,  # torch counts the whole square, whatever the kernel does
    )
    assert mine.hardware == pytest.approx(n, rel=0.01)
    assert mine.model < mine.hardware


@pytest.mark.parametrize("shape", [LLAMA, GEMMA2], ids=lambda s: s.family)
def test_reading_and_generation_are_those_that_torch_counts(shape):
    ids = torch.randint(3, shape.vocabulary, (B, T))
    for stage, head in (("extract", "none"), ("moderate", "labels")):
        model = build(shape, stage, "float32", "cpu", COUNTED)
        with torch.inference_mode():
            n = counted(lambda model=model: model(input_ids=ids, use_cache=False))
        assert reading_flops(shape, B, T, head=head, causal_kernel=False).hardware == pytest.approx(n, rel=0.01)
    model = build(shape, "generate", "float32", "cpu", COUNTED)
    model.generation_config.eos_token_id = None
    with torch.inference_mode():
        n = counted(lambda: model.generate(ids, max_new_tokens=9, do_sample=False, attention_mask=torch.ones_like(ids)))
    mine = generation_flops(shape, B, T, 9, causal_kernel=False).hardware
    assert mine == pytest.approx(n, rel=0.01)


def test_operations_by_hand():
    """Llama-2-7B, one row of 2048 tokens, all labelled: 6 operations for each of the 6,607,077,376 numbers in matrices
    and 12 x 32 x 4096 for each of the 2049 / 2 positions that a token attends to on average."""
    shape = SHAPES["llama2-7b"]
    matrices = shape.n_parameters() - shape.embedding_parameters() - 65 * 4096
    by_hand = 2048 * (6 * matrices + 12 * 32 * 4096 * 2049 / 2)
    assert matrices == 6_607_077_376
    assert training_flops(shape, 1, 2048, 2048).model == by_hand
    assert (attended(3), attended(3, causal=False)) == (6, 9)
