"""What is extracted: layers, positions, text part, length cap. One frozen dataclass, checked before a model loads.

Layer convention, the one of ``output_hidden_states``: 0 is the embedding output, l is the residual stream after
block l, and L (= number of blocks) is after the last block *and* the final norm unless ``final_norm`` is off.
Negative numbers count from the end: -1 is L.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from guardrail.core.cli import fraction, positive_int
from guardrail.core.errors import UserError, unknown
from guardrail.core.options import option
from guardrail.data.prompts import check_style
from guardrail.data.rows import DROPPED_HELP, MAX_DROPPED_FRACTION
from guardrail.models.fetch import read_config
from guardrail.models.loading import DTYPES, auto_dtype

POSITIONS = ("eos", "completion_last", "prompt_last", "completion_mean", "mean")
TEXTS = ("full", "prompt", "completion")
LONG_ROWS = ("truncate", "keep_tail", "exclude")
BACKENDS = ("hf", "vllm")
ARCHITECTURES = ("auto", "causal", "encoder")
DEFAULT_STYLE = "llama2_base"
DEFAULT_MAX_LENGTH = 4096
VALID_POSITIONS = {
    ("causal", "full"): POSITIONS,
    ("causal", "prompt"): ("eos", "prompt_last", "mean"),
    ("causal", "completion"): ("eos", "completion_last", "completion_mean", "mean"),
    ("encoder", "full"): ("eos", "mean"),
    ("encoder", "prompt"): ("eos", "mean"),
    ("encoder", "completion"): ("eos", "mean"),
}


@dataclass(frozen=True, kw_only=True)
class ExtractionConfig:
    """Options of an extraction as they are asked for. Of files that are read, the content decides, not the path."""

    dataset_folder: str = option(help="the store goes to <dataset_folder>/reps/<model_id>/", decides=False)
    dataset_data: str | None = option(
        None, "rows: a file, a data-set folder or a hub name (default: dataset_folder itself)", decides=False
    )
    split: str | None = option(None, "split of dataset_data, where it has several")
    dataset_name: str | None = option(None, "hub configuration of dataset_data")
    limit: int | None = option(None, "use the first rows only", parse=positive_int)
    max_dropped_fraction: float = option(MAX_DROPPED_FRACTION, DROPPED_HELP, parse=fraction, decides=False)
    model_id: str = option(help="name of the model's folder under reps/", decides=False)
    model_name_or_path: str = option(help="model folder (or one holding slice_end/) or hub name", decides=False)
    output_dir: str | None = option(None, "store folder, instead of <dataset_folder>/reps/<model_id>", decides=False)
    prompt_style: str | None = option(None, f"chat string of causal LMs (default {DEFAULT_STYLE})")
    layer: str = option("-1", "layer number, several with commas, or 'all'; the first one is exported")
    position: str | None = option(
        None,
        "eos, completion_last, prompt_last, completion_mean, mean; several with commas "
        "(default: eos, for encoders mean)",
    )
    text: str = option("full", "which part of the conversation the model reads", choices=TEXTS)
    max_length: int | None = option(
        None, "cap in tokens (default: the model's positions, at most 4096)", parse=positive_int
    )
    long_rows: str = option("truncate", "what happens to rows over the cap", choices=LONG_ROWS)
    final_norm: bool = option(True, "apply the final norm to the last layer")
    torch_dtype: str = option("auto", "the model's dtype (auto: bfloat16 on GPU, float32 on CPU)")
    dtype: str = option("auto", "stored dtype: float32, bfloat16, float16 (auto: as computed)")
    architecture: str = option("auto", "causal LM or encoder", choices=ARCHITECTURES)
    batch_tokens: int | None = option(
        None, "padded tokens per batch (default: 1024 on CPU, searched on GPU)", parse=positive_int, decides=False
    )
    backend: str = option("hf", "transformers, or vLLM's pooling mode", choices=BACKENDS)
    export_pt: bool = option(True, "also write reps-full.pt", decides=False)
    overwrite: bool = option(False, "replace a store of other data", decides=False)
    trust_remote_code: bool = option(False, "run code that comes with the model")

    @property
    def rows_path(self) -> str:
        return self.dataset_data or self.dataset_folder

    @property
    def store(self) -> Path:
        if self.output_dir:
            return Path(self.output_dir)
        return Path(self.dataset_folder) / "reps" / self.model_id

    def resolve(self, facts: ModelFacts) -> ExtractionOptions:
        """The options for this model; ``UserError`` for what would do nothing."""
        if "/" in self.model_id or self.model_id.startswith("."):
            raise UserError(f"--model_id {self.model_id!r} names a folder under reps/; give a plain name without '/'")
        return resolve_options(facts, **{name: getattr(self, name) for name in RESOLVED})


RESOLVED = (
    *("layer", "position", "text", "prompt_style", "max_length"),
    *("long_rows", "final_norm", "torch_dtype", "dtype", "backend"),
)


@dataclass(frozen=True)
class ExtractionOptions:
    """Everything that decides the numbers, ``auto`` resolved; made by ``resolve_options`` for one model."""

    architecture: str
    layers: tuple[int, ...]
    positions: tuple[str, ...]
    text: str
    prompt_style: str | None
    max_length: int
    long_rows: str
    final_norm: bool
    torch_dtype: str
    dtype: str
    backend: str

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the stored matrices, one per layer and position: ``layer32_eos``."""
        return tuple(view_name(layer, position) for layer in self.layers for position in self.positions)

    def as_config(self) -> dict[str, Any]:
        return {**asdict(self), "layers": list(self.layers), "positions": list(self.positions)}


def view_name(layer: int, position: str) -> str:
    """``layer32_eos``: the name under which a matrix lies in every shard."""
    return f"layer{layer}_{position}"


@dataclass(frozen=True)
class ModelFacts:
    """Read from ``config.json`` alone, so that an unchanged run never imports torch."""

    architecture: str
    n_layers: int
    max_positions: int | None


def model_facts(name: str, architecture: str = "auto") -> ModelFacts:
    """Architecture (causal LM or encoder), number of blocks L and position limit of a model folder or hub name."""
    config = read_config(name)
    try:
        return _model_facts(name, config, architecture)
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{name}: its config.json is not one of a model: {error}; copy or download it again") from error


def _model_facts(name: str, config: dict[str, Any], architecture: str) -> ModelFacts:
    names = " ".join(config.get("architectures") or [])
    inner = config.get("text_config") or config
    if config.get("is_encoder_decoder"):
        raise UserError(f"{name} is an encoder-decoder; expected a causal LM or an encoder such as BERT")
    if architecture == "auto":
        # a decoder-only backbone says CausalLM, LMHeadModel or keeps a causal type; BERT-likes say MaskedLM or Model
        bidirectional = any(key in inner.get("model_type", "") for key in ("bert", "mpnet", "electra", "deberta"))
        causal = "CausalLM" in names or "LMHead" in names or not (bidirectional or "MaskedLM" in names)
        architecture = "causal" if causal else "encoder"
    n_layers = inner.get("num_hidden_layers") or inner.get("n_layer")
    if not n_layers:
        raise UserError(f"{name}: config.json names no number of layers; expected num_hidden_layers")
    limit = inner.get("max_position_embeddings") or inner.get("n_positions")
    return ModelFacts(architecture, int(n_layers), int(limit) if limit else None)


def parse_layers(text: str, n_layers: int) -> tuple[int, ...]:
    """``"-1"``, ``"16"``, ``"0,8,-1"`` or ``"all"`` as layer numbers 0..L, in the order given, without repeats."""
    if text == "all":
        return tuple(range(n_layers + 1))
    out: list[int] = []
    for part in text.split(","):
        try:
            layer = int(part)
        except ValueError as error:
            raise UserError(f"--layer {text!r}: {part!r} is not a layer number; give e.g. -1 or 8,16,-1") from error
        resolved = layer + n_layers + 1 if layer < 0 else layer
        if not 0 <= resolved <= n_layers:
            raise UserError(
                f"--layer {layer} is out of range; this model has layers 0 (embeddings) to {n_layers} "
                f"(or -1 to -{n_layers + 1})"
            )
        if resolved not in out:
            out.append(resolved)
    return tuple(out)


def resolve_options(
    facts: ModelFacts,
    layer: str = "-1",
    position: str | None = None,
    text: str = "full",
    prompt_style: str | None = None,
    max_length: int | None = None,
    long_rows: str = "truncate",
    final_norm: bool = True,
    torch_dtype: str = "auto",
    dtype: str = "auto",
    backend: str = "hf",
) -> ExtractionOptions:
    """Check every option against the model and against each other; ``UserError`` for what would do nothing.

    Defaults: the paper's feature (last layer, ``eos``) for a causal LM, ``mean`` over the last layer for an encoder;
    the length cap is the model's own, at most 4096, and so the same for all data sets of that model.
    """
    kind = facts.architecture
    for value, choices, name in (
        (text, TEXTS, "text"),
        (long_rows, LONG_ROWS, "long_rows"),
        (backend, BACKENDS, "backend"),
    ):
        if value not in choices:
            raise unknown(f"--{name}", value, choices)
    for value, name in ((torch_dtype, "torch_dtype"), (dtype, "dtype")):
        if value not in ("auto", *DTYPES):
            raise unknown(f"--{name}", value, ("auto", *DTYPES))
    positions: list[str] = []
    for one in (position or ("eos" if kind == "causal" else "mean")).split(","):
        if one not in POSITIONS:
            raise unknown("--position", one, POSITIONS)
        if one not in VALID_POSITIONS[kind, text]:
            raise UserError(
                f"--position {one} is not available with --text {text} of a model of kind {kind}; "
                f"available: {', '.join(VALID_POSITIONS[kind, text])}"
            )
        if one not in positions:
            positions.append(one)
    if kind == "encoder":
        if prompt_style is not None:
            raise UserError("--prompt_style has no effect on an encoder, which reads plain text; leave it out")
        if backend == "vllm":
            raise UserError("--backend vllm extracts from causal LMs only; use --backend hf for an encoder")
    if torch_dtype == "auto":  # now, not when the model is loaded: a store resumed elsewhere must not mix dtypes
        torch_dtype = auto_dtype()
    layers = parse_layers(layer, facts.n_layers)
    if not final_norm and facts.n_layers not in layers:
        raise UserError(f"--final_norm False only concerns layer {facts.n_layers}, which --layer does not include")
    if max_length is None:
        max_length = min(facts.max_positions or DEFAULT_MAX_LENGTH, DEFAULT_MAX_LENGTH)
    elif facts.max_positions and max_length > facts.max_positions:
        raise UserError(f"--max_length {max_length} is more than the model's {facts.max_positions} positions")
    if backend == "vllm":
        _check_vllm(layers, positions, facts, final_norm)
    return ExtractionOptions(
        architecture=kind,
        layers=layers,
        positions=tuple(positions),
        text=text,
        prompt_style=check_style(prompt_style or DEFAULT_STYLE) if kind == "causal" else None,
        max_length=max_length,
        long_rows=long_rows,
        final_norm=final_norm,
        torch_dtype=torch_dtype,
        dtype=torch_dtype if dtype == "auto" else dtype,
        backend=backend,
    )


def _check_vllm(layers: tuple[int, ...], positions: list[str], facts: ModelFacts, final_norm: bool) -> None:
    if layers != (facts.n_layers,) or not final_norm:
        raise UserError("--backend vllm gives the last layer after the final norm only; use --backend hf for others")
    means = [one for one in positions if one.endswith("mean")]
    if means:
        raise UserError(f"--backend vllm gives one token's state; use --backend hf for --position {means[0]}")
