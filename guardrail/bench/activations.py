"""Bytes of activations, from the shapes: what a backward pass needs, and what one pass holds for a moment.

Counted tensor by tensor from transformers' LLaMA and Gemma-2 blocks in eager mode, as autograd saves them: the input
of a linear layer that is trained, both factors of a product, the output of softmax and tanh, an RMS norm's input in
float32. Measured against autograd itself in tests/bench. Plain arithmetic, no torch.

Known limits: biases and dropout besides LoRA's are not in it, a compiled or fused block saves less, and a packed batch
counts like one row per sequence. Letters: n tokens, D hidden, F intermediate, H query width, K key-value width, b bytes
of a number, r rank.
"""

from __future__ import annotations

from collections.abc import Collection

from guardrail.bench.shapes import DTYPE_BYTES, Shape


def norm_saved(shape: Shape, n: int, b: int, trained: bool) -> int:
    """One RMS norm: its input in float32, and the normalised input where the weight is trained."""
    D = shape.hidden
    weight_input = (4 if shape.float_norms else b) * n * D if trained else 0
    return 4 * n * D + weight_input


def attention_saved(shape: Shape, n_rows: int, row_tokens: int, b: int, attention: str, trained: bool = True) -> int:
    """Rotated queries and keys, values, the output; the fused kernels keep one float32 per query and head, the eager
    one the scores before (capped) and after the softmax, and keys and values repeated for every query head."""
    n, H, K = n_rows * row_tokens, shape.query_width, shape.kv_width
    if attention != "eager":
        return (2 * H + 2 * K) * n * b + 4 * n * shape.heads
    square = n_rows * shape.heads * row_tokens * row_tokens
    softmax = 4 * square + (b * square if b != 4 else 0)  # in float32, and as what multiplies the values
    capped = b * square if shape.attention_softcap else 0
    output = 1 if trained else 0  # eager attention copies it for the projection behind it
    return (3 + output) * H * n * b + softmax + capped


def block_saved(
    shape: Shape,
    n_rows: int,
    row_tokens: int,
    b: int,
    attention: str,
    adapted: Collection[str] | None = None,
    r: int = 0,
    dropout: bool = False,
    on_gpu: bool = True,
    every_input: bool = False,
) -> int:
    """Bytes that autograd saves in one block. ``adapted``: LoRA's targets, everything else frozen; None: all trained.

    ``dropout``: LoRA's. ``on_gpu``: its mask takes a byte per number, on a CPU a whole number. ``every_input``: frozen
    layers keep their inputs, too, as DeepSpeed's linear function for ZeRO 3 does (zero/linear.py).
    """
    n, D, F = n_rows * row_tokens, shape.hidden, shape.intermediate
    trained = adapted is None
    out = shape.n_block_norms * norm_saved(shape, n, b, trained)
    keeps = trained or every_input
    out += attention_saved(shape, n_rows, row_tokens, b, attention, keeps or "o_proj" in (adapted or ()))
    out += 3 * F * n * b  # the gate before and after its activation, and what it multiplies
    inputs = shape.linears()
    if keeps:
        out += (2 * D + F) * n * b  # inputs of q, k, v; of gate and up; of down. o's is attention's output
    shared: set[str] = set()
    for name in adapted or ():
        width = inputs[name][0]
        group = {"q_proj": "a", "k_proj": "a", "v_proj": "a", "gate_proj": "m", "up_proj": "m"}.get(name, name)
        if dropout:  # each adapter draws its own mask
            out += (b + (1 if on_gpu else b)) * width * n
        elif not keeps and group not in shared and name != "o_proj":
            out += width * n * b
        shared.add(group)
        out += r * n * b  # between the two factors
    return out


def mask_bytes(shape: Shape, n_rows: int, row_tokens: int, b: int, attention: str) -> int:
    """The causal masks of eager attention, one more for blocks with a window; the fused kernels need none."""
    if attention != "eager":
        return 0
    return (2 if shape.sliding_window else 1) * n_rows * row_tokens * row_tokens * b


def block_transient(shape: Shape, n_rows: int, row_tokens: int, b: int, attention: str) -> int:
    """The most that one block's forward pass holds besides its input, when nothing is kept for a backward pass."""
    n, D, F, H, K = n_rows * row_tokens, shape.hidden, shape.intermediate, shape.query_width, shape.kv_width
    feed_forward = n * b * (D + 3 * F)  # input; gate, up and their product
    rotation = n * b * (D + H + 2 * K + 3 * H)  # input; q, k, v; two products and their sum
    out = max(feed_forward, rotation)
    if attention == "eager":
        square = n_rows * shape.heads * row_tokens * row_tokens
        # the softmax makes float32 of the scores; in 16 bit both exist, and what multiplies the values
        out = max(out, n * b * (D + 3 * H + 2 * K) + 8 * square)
    return out


def logits_saved(shape: Shape, n_labelled: int, b: int) -> int:
    """Log-probabilities in float32, and the capped logits where a model caps them."""
    return n_labelled * shape.vocabulary * (4 + (b if shape.logit_softcap else 0))


def logits_peak(shape: Shape, n_labelled: int, b: int) -> int:
    """The most that logits take: log-probabilities, their gradient and the logits' gradient, all in float32."""
    return n_labelled * shape.vocabulary * (12 + (b if shape.logit_softcap else 0))


def pass_bytes(shape: Shape, n_rows: int, row_tokens: int, b: int, attention: str, share: int = 1) -> int:
    """One forward pass without gradients on one of ``share`` GPUs that hold the model together."""
    inside = block_transient(shape, n_rows, row_tokens, b, attention) // share
    # the embeddings' output, the block's input and its running sum stay beside what a block makes
    return inside + 3 * b * n_rows * row_tokens * shape.hidden + mask_bytes(shape, n_rows, row_tokens, b, attention)


def answer_parts(
    shape: Shape, n_rows: int, prompt_tokens: int, new_tokens: int, dtype: str, attention: str, share: int = 1
) -> dict[str, int]:
    """What a batch of answers takes besides the weights: a pass over the prompts, the cache, the picking of tokens."""
    b = DTYPE_BYTES[dtype]
    return {
        "activations": pass_bytes(shape, n_rows, prompt_tokens, b, attention, share),
        "kv_cache": shape.kv_bytes(n_rows, prompt_tokens + new_tokens, dtype) // share,
        # logits in the model's dtype, in float32 and in float64 for the sampling
        "logits": n_rows * shape.vocabulary * (b + 4 + 8),
    }
