"""Shapes of decoder-only models: sizes, parameter counts, key-value bytes. Plain arithmetic, no torch.

    shape = find_shape("llama2-7b")            # a published shape, a hub name of one, or a folder with config.json
    shape.n_parameters()                       # 6738415616

Families: `FAMILIES`. Letters: V vocabulary, D hidden, F intermediate, L layers, H query width (heads x head size),
K key-value width.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.core.errors import UserError, unknown

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
N_LABELS = 14  # Beaver-Dam's; what a moderation model has in place of a language-model head
# model_type -> what its configuration leaves to transformers' defaults, and how its blocks are built.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"qkv_bias": True},
    "gemma": {"tied": True, "float_norms": True},
    "gemma2": {"tied": True, "float_norms": True, "n_block_norms": 4},
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One architecture. ``float_norms``: RMS norms multiply by their weight in float32, as Gemma's do."""

    name: str
    family: str
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    max_tokens: int = 4096
    tied: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    float_norms: bool = False
    n_block_norms: int = 2
    attention_softcap: bool = False
    logit_softcap: bool = False
    sliding_window: int | None = None

    @property
    def query_width(self) -> int:
        return self.heads * self.head_size

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_size

    def linears(self) -> dict[str, tuple[int, int]]:
        """The linear layers of one block: name -> (inputs, outputs)."""
        D, F, H, K = self.hidden, self.intermediate, self.query_width, self.kv_width
        return {
            "q_proj": (D, H),
            "k_proj": (D, K),
            "v_proj": (D, K),
            "o_proj": (H, D),
            "gate_proj": (D, F),
            "up_proj": (D, F),
            "down_proj": (F, D),
        }

    def block_parameters(self) -> int:
        """Parameters of one transformer block."""
        matrices = sum(i * o for i, o in self.linears().values())
        biases = (self.query_width + 2 * self.kv_width) * self.qkv_bias + self.hidden * self.output_bias
        biases += (2 * self.intermediate + self.hidden) * self.mlp_bias
        return matrices + biases + self.n_block_norms * self.hidden

    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden

    def head_parameters(self, head: str = "lm") -> int:
        """Parameters of a head besides the embeddings: ``lm`` (0 when tied), ``labels`` (moderation) or ``none``."""
        if head == "labels":
            return self.hidden * N_LABELS
        return self.embedding_parameters() if head == "lm" and not self.tied else 0

    def n_parameters(self, head: str = "lm") -> int:
        """All parameters of the model with ``head``."""
        blocks = self.layers * self.block_parameters()
        return self.embedding_parameters() + blocks + self.hidden + self.head_parameters(head)

    def lora_parameters(self, r: int, targets: Sequence[str]) -> int:
        """Parameters of adapters of rank ``r``: ``r (inputs + outputs)`` for each target layer of each block.

        Source: Hu et al. 2021 (arXiv 2106.09685), section 4.1. Raises ``UserError`` for a target that is no layer.
        """
        known = self.linears()
        for target in targets:
            if target not in known:
                raise unknown("target module", target, known)
        return self.layers * sum(r * sum(known[target]) for target in targets)

    def kv_bytes(self, n_rows: int, n_tokens: int, dtype: str = "bfloat16") -> int:
        """Bytes of the keys and values of ``n_rows`` sequences of ``n_tokens``; windows are counted as if full."""
        return 2 * self.layers * self.kv_width * n_rows * n_tokens * DTYPE_BYTES[dtype]

    def default_attention(self) -> str:
        """What transformers takes without being told: torch's fused attention, which has no capped scores."""
        return "eager" if self.attention_softcap else "sdpa"


def _llama(name: str, **sizes: Any) -> Shape:
    return Shape(name=name, family="llama", **{"head_size": 128, **sizes})


def _gemma2(name: str, **sizes: Any) -> Shape:
    fixed = {"head_size": 256, "max_tokens": 8192, "sliding_window": 4096, **FAMILIES["gemma2"]}
    return Shape(name=name, family="gemma2", attention_softcap=True, logit_softcap=True, **fixed, **sizes)


# Published configurations (config.json of the hub's models); llama-1.3b is LLaMA's build at the width of other 1.3B
# models; sandbox is `guardrail.sandbox.models.ARCHITECTURE` with its tokenizer.
LLAMA_SIZES = {  # vocabulary, hidden, intermediate, layers, heads, key-value heads
    "llama2-7b": (32000, 4096, 11008, 32, 32, 32),
    "llama2-13b": (32000, 5120, 13824, 40, 40, 40),
    "llama3-8b": (128256, 4096, 14336, 32, 32, 8),
    "llama-1.3b": (32000, 2048, 5504, 24, 16, 16),
    "sandbox": (2048, 128, 344, 4, 4, 4),
}
GEMMA2_SIZES = {
    "gemma2-2b": (256000, 2304, 9216, 26, 8, 4),
    "gemma2-9b": (256000, 3584, 14336, 42, 16, 8),
}
SIZE_NAMES = ("vocabulary", "hidden", "intermediate", "layers", "heads", "kv_heads")
OWN: dict[str, dict[str, Any]] = {
    "llama3-8b": {"max_tokens": 8192},
    "sandbox": {"head_size": 32, "max_tokens": 1024, "tied": True},
}
SHAPES: dict[str, Shape] = {
    name: make(name, **dict(zip(SIZE_NAMES, sizes, strict=True)), **OWN.get(name, {}))
    for make, known in ((_llama, LLAMA_SIZES), (_gemma2, GEMMA2_SIZES))
    for name, sizes in known.items()
}
# How models of these shapes are called on the hub: a part of the name, in lower case.
HUB_NAMES = (
    *(("llama-2-7b", "llama2-7b"), ("llama-2-13b", "llama2-13b"), ("llama-3-8b", "llama3-8b")),
    *(("llama-3.1-8b", "llama3-8b"), ("gemma-2-2b", "gemma2-2b"), ("gemma-2-9b", "gemma2-9b")),
    *(("vicuna-7b", "llama2-7b"), ("beaver-dam-7b", "llama2-7b"), ("beaver-7b", "llama2-7b")),
)


def shape_of_config(config: Mapping[str, Any], name: str) -> Shape:
    """The shape that a ``config.json`` describes. Raises ``UserError``: unknown family, or a size is missing."""
    family = str(config.get("model_type"))
    if family not in FAMILIES:
        raise unknown(f"model_type of {name}:", family, FAMILIES)
    names = {
        "vocabulary": "vocab_size",
        "hidden": "hidden_size",
        "intermediate": "intermediate_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
    }
    sizes: dict[str, Any] = {}
    for field, key in names.items():
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name}: {key} is {value!r} in its config.json; expected a whole number of at least 1")
        sizes[field] = value
    own = FAMILIES[family]
    bias = bool(config.get("attention_bias", False))
    return Shape(
        name=name,
        family=family,
        **sizes,
        kv_heads=int(config.get("num_key_value_heads") or sizes["heads"]),
        head_size=int(config.get("head_dim") or sizes["hidden"] // sizes["heads"]),
        max_tokens=int(config.get("max_position_embeddings") or 4096),
        tied=bool(config.get("tie_word_embeddings", own.get("tied", False))),
        qkv_bias=bias or own.get("qkv_bias", False),
        output_bias=bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
        float_norms=own.get("float_norms", False),
        n_block_norms=own.get("n_block_norms", 2),
        attention_softcap=bool(config.get("attn_logit_softcapping")),
        logit_softcap=bool(config.get("final_logit_softcapping")),
        sliding_window=config.get("sliding_window") if config.get("use_sliding_window", family != "qwen2") else None,
    )


def find_shape(name: str | Path) -> Shape:
    """A shape by its name (`SHAPES`), a hub name of one, a folder with ``config.json`` or such a file itself.

    Raises ``UserError`` for anything else, with the near match.
    """
    text = str(name)
    if text in SHAPES:
        return SHAPES[text]
    path = Path(text).expanduser()
    for file in (path, path / "config.json", path / "slice_end" / "config.json"):
        if file.is_file():
            try:
                config = json.loads(file.read_text(encoding="utf-8"))
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise UserError(f"{file} is not valid JSON: {error}; expected a model's config.json") from error
            if not isinstance(config, dict):
                raise UserError(f"{file} holds no JSON object; expected a model's config.json")
            return shape_of_config(config, text)
    if path.is_dir():
        raise UserError(f"{path} has no config.json; expected a model folder, or one of {', '.join(SHAPES)}")
    found = next((SHAPES[known] for part, known in HUB_NAMES if part in text.lower()), None)
    if found is None:
        raise unknown("shape (no such folder either):", text, SHAPES)
    return dataclasses.replace(found, name=text)
