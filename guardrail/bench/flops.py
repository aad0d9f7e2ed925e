"""Floating-point operations of a step, from the shapes. Plain arithmetic, no torch.

A matrix product of (m, k) by (k, n) is 2 m k n operations; nothing else is counted (norms, activations, softmax and
rotations are some per cent, and every published utilisation leaves them out).

* forward pass of one token: twice the parameters of the matrices that it meets, and in each layer 4 H operations per
  position that it attends to (2 H for the scores, 2 H for the weighted sum);
* backward pass: as much again for the gradients of the inputs, and as much again for those of the weights that are
  trained (adapters leave the latter out for the frozen matrices);
* gradient checkpointing computes the blocks' forward pass once more. That is work of the machine, not of the model:
  it is in ``hardware`` and not in ``model``, so utilisation by model operations (MFU) falls with it.

Sources: Kaplan et al. 2020 (arXiv 2001.08361), table 1; Chowdhery et al. 2022 (arXiv 2204.02311), appendix B, for the
utilisation. Appendix B counts T attended positions per token; the model's need here is (T + 1) / 2, the causal half,
and ``hardware`` has T where the kernel computes the whole square. H query width, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from guardrail.bench.shapes import N_LABELS, Shape


@dataclass(frozen=True)
class Flops:
    """Operations of one step: ``model``, what its result needs; ``hardware``, what is computed for it."""

    model: int
    hardware: int


def attended(n_tokens: int, causal: bool = True) -> int:
    """Pairs of query and key in one row of ``n_tokens``: the lower triangle with its diagonal, or the square."""
    return n_tokens * (n_tokens + 1) // 2 if causal else n_tokens * n_tokens


def matrices_forward(shape: Shape, n_tokens: int) -> int:
    """Forward pass of ``n_tokens`` through the linear layers of all blocks."""
    return 2 * n_tokens * shape.layers * sum(i * o for i, o in shape.linears().values())


def attention_forward(shape: Shape, n_pairs: int) -> int:
    """Scores and weighted sums of ``n_pairs`` pairs of query and key, in all blocks."""
    return 4 * shape.query_width * n_pairs * shape.layers


def training_flops(
    shape: Shape,
    n_rows: int,
    row_tokens: int,
    n_labelled: int,
    *,
    gradient_checkpointing: bool = False,
    r: int | None = None,
    targets: Sequence[str] = (),
    causal_kernel: bool = True,
) -> Flops:
    """Forward and backward pass of ``n_rows`` rows of ``row_tokens`` tokens with ``n_labelled`` rows of logits.

    Args:
        r: rank of LoRA adapters in ``targets``; None: all weights are trained.
        causal_kernel: the attention kernel skips what the causal mask hides (flash attention); else the square.
    """

    def total(causal: bool, again: bool) -> int:
        n = n_rows * row_tokens
        matrices = matrices_forward(shape, n)
        attention = attention_forward(shape, n_rows * attended(row_tokens, causal))
        head = 2 * shape.embedding_parameters() * n_labelled
        if r is None:
            work, adapters = 3 * (matrices + head + attention), 0
        else:
            adapters = 2 * n * shape.lora_parameters(r, targets)
            work = 2 * (matrices + head) + 3 * (attention + adapters)
            if not gradient_checkpointing:  # nothing before the first adapter needs a gradient
                work -= 2 * n * shape.hidden * (shape.query_width + 2 * shape.kv_width)
                work -= 2 * n * r * shape.hidden * len({"q_proj", "k_proj", "v_proj"}.intersection(targets))
        if again:
            work += matrices + attention + adapters
            if shape.n_block_norms == 2:  # what is behind the last saved tensor of a block is not computed again
                work -= 2 * n * shape.layers * shape.intermediate * shape.hidden
        return work

    return Flops(total(True, False), total(causal_kernel, gradient_checkpointing))


def reading_flops(
    shape: Shape, n_rows: int, row_tokens: int, *, head: str = "none", causal_kernel: bool = True
) -> Flops:
    """One forward pass without a language-model head (extraction), or with the classifier's (``head="labels"``)."""
    extra = 2 * shape.hidden * N_LABELS * n_rows * row_tokens if head == "labels" else 0
    matrices = matrices_forward(shape, n_rows * row_tokens)
    need, done = (attention_forward(shape, n_rows * attended(row_tokens, causal)) for causal in (True, causal_kernel))
    return Flops(matrices + need + extra, matrices + done + extra)


def generation_flops(
    shape: Shape, n_rows: int, prompt_tokens: int, new_tokens: int, *, causal_kernel: bool = True
) -> Flops:
    """Reading the prompts and writing ``new_tokens`` each: one row of logits per new token, the last one is not read.

    The first new token comes from the prompt's pass, so ``new_tokens - 1`` passes of one token follow.
    """
    steps = new_tokens - 1
    matrices = matrices_forward(shape, n_rows * (prompt_tokens + steps))
    head = 2 * shape.embedding_parameters() * n_rows * new_tokens
    decoding = n_rows * (steps * prompt_tokens + steps * (steps + 1) // 2)  # step i attends to prompt + i positions
    need, done = (
        attention_forward(shape, n_rows * attended(prompt_tokens, causal) + decoding)
        for causal in (True, causal_kernel)
    )
    return Flops(matrices + head + need, matrices + head + done)
