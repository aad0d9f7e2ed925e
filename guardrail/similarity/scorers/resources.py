"""The model, the anchors and the other sets of a scoring run, loaded when a scorer asks for them.

One causal LM serves all scorers: hidden states come from its backbone, losses and gradients from the whole of it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from guardrail.core.batches import MAX_PADDING
from guardrail.core.cli import log
from guardrail.core.errors import UserError
from guardrail.data.rows import Row, hash_rows, is_answered, load_rows
from guardrail.models.loading import load_backbone, load_causal_lm, load_tokenizer, pick_device
from guardrail.models.memory import Budget
from guardrail.similarity.audit.sets import SetSpec, parse_set
from guardrail.similarity.representations.hidden_states import HfRunner
from guardrail.similarity.representations.options import (
    ExtractionOptions,
    ModelFacts,
    model_facts,
    resolve_options,
    view_name,
)
from guardrail.similarity.representations.read import Representations, check_comparable, read_representations
from guardrail.similarity.representations.sequences import make_sequence, needs_answers
from guardrail.similarity.scorers.options import ScoringConfig
from guardrail.similarity.scorers.row_gradients import Directions, GradientPass, RowGradients
from guardrail.similarity.scorers.tokens import NO_ANSWER, Encoded, TokenBatch, encode, make_batch, row_losses

CPU_TOKENS, GPU_TOKENS = 1024, 8192
LARGE_MODEL = 1_000_000_000  # weights of linear layers
STORED = "stored"
Array = np.ndarray[Any, Any]
T = TypeVar("T")


class Resources:
    """What one run's scorers share. ``positions`` and ``every_layer`` widen what a forward pass keeps of a row."""

    def __init__(self, config: ScoringConfig) -> None:
        self.config = config
        self.positions: list[str] = []
        self.every_layer = False
        self.startup_sec = 0.0  # of loading tokenizer and model, with the imports behind it

    @functools.cached_property
    def facts(self) -> ModelFacts:
        """Architecture, layers, positions; from the configuration alone."""
        assert self.config.model_name_or_path is not None
        return model_facts(self.config.model_name_or_path)

    @property
    def is_encoder(self) -> bool:
        return self.config.model_name_or_path is not None and self.facts.architecture == "encoder"

    @functools.cached_property
    def options(self) -> ExtractionOptions:
        """How hidden states are taken; the first layer and position are those of the cosines."""
        main = self.config.position or ("mean" if self.is_encoder else "eos")
        positions = dict.fromkeys((main, *self.positions))
        layers = f"{self.config.layer},{','.join(map(str, range(self.facts.n_layers + 1)))}"
        return resolve_options(
            self.facts,
            layer=layers if self.every_layer else str(self.config.layer),
            position=",".join(positions),
            prompt_style=self.config.prompt_style,
            max_length=self.config.max_length,
            torch_dtype=self.config.torch_dtype,
        )

    @property
    def main_view(self) -> str:
        """Name of the layer and position of the cosines."""
        return STORED if self.config.representations else self.options.views[0]

    def view(self, layer: int, position: str) -> str:
        return view_name(layer, position)

    @functools.cached_property
    def tokenizer(self) -> Any:
        return self._timed(lambda: load_tokenizer(str(self.config.model_name_or_path), self.config.trust_remote_code))

    @functools.cached_property
    def model(self) -> Any:
        """The causal LM, or an encoder's backbone."""
        load = load_backbone if self.is_encoder else load_causal_lm
        name, trusted = str(self.config.model_name_or_path), self.config.trust_remote_code
        return self._timed(lambda: load(name, self.options.torch_dtype, trust_remote_code=trusted))

    def _timed(self, load: Callable[[], T]) -> T:
        started = time.perf_counter()
        try:
            return load()
        finally:
            self.startup_sec += time.perf_counter() - started

    @functools.cached_property
    def runner(self) -> HfRunner:
        backbone = self.model if self.is_encoder else getattr(self.model, self.model.base_model_prefix)
        pad = self.tokenizer.pad_token_id or 0
        return HfRunner.from_module(backbone, self.options, self.facts, pad, self.config.batch_tokens)

    @functools.cached_property
    def budget(self) -> Budget:
        """Padded tokens per batch of losses and gradients."""
        on_gpu = pick_device().type == "cuda"
        return Budget(self.config.batch_tokens or (GPU_TOKENS if on_gpu else CPU_TOKENS), max_padding=MAX_PADDING)

    # sets

    def spec(self, name: str) -> SetSpec:
        return parse_set(name, f"={self.config.set_path(name)}")

    def set_rows(self, name: str) -> list[Row]:
        """The answered rows of a set, at most ``max_set_rows``: a seeded sample, in their order.

        Raises ``UserError``: stored representations where rows are needed, no answered row.
        """
        return self._set_rows(self.config.set_path(name), name)

    @functools.cache  # noqa: B019 - one object per run
    def _set_rows(self, path: str, name: str) -> list[Row]:
        spec = parse_set(name, f"={path}")
        if spec.stored:
            raise UserError(f"--{name} {path} holds representations; this scorer reads rows, give a file of rows")
        rows = [row for row in load_rows(spec.path, split=spec.split) if is_answered(row["messages"])]
        if not rows:
            raise UserError(f"--{name} {path}: no row has an answer; expected prompts with answers")
        if len(rows) > self.config.max_set_rows:
            chosen = np.random.default_rng(self.config.seed).choice(len(rows), self.config.max_set_rows, replace=False)
            log(f"--{name}: {len(chosen)} of {len(rows)} rows are used (--max_set_rows)")
            rows = [rows[i] for i in sorted(chosen)]
        return rows

    def set_vectors(self, name: str) -> torch.Tensor:
        """(M, D) representations of a set at the main view: stored ones, or made from its rows."""
        return self._set_vectors(self.config.set_path(name), name)

    @functools.cache  # noqa: B019 - one object per run
    def _set_vectors(self, path: str, name: str) -> torch.Tensor:
        spec = parse_set(name, f"={path}")
        if spec.stored:
            found = read_representations(path)
            if self.config.representations:
                for note in check_comparable(self.stored, found):
                    log(note)
            return found.matrix
        if self.config.representations:
            raise UserError(f"--representations needs stored representations of --{name} too, {path} holds rows")
        vectors, reasons = self.vectors(self._set_rows(path, name))
        kept = [i for i in range(len(vectors[self.main_view])) if i not in reasons]
        return vectors[self.main_view][kept]

    @functools.cached_property
    def stored(self) -> Representations:
        """What ``--representations`` holds."""
        return read_representations(str(self.config.representations))

    @functools.cached_property
    def stored_places(self) -> dict[str, int]:
        if self.stored.ids is None:
            raise UserError(
                f"--representations {self.config.representations} is a bare tensor without row ids; give the store "
                "that get_representation.py wrote"
            )
        return {row_id: place for place, row_id in enumerate(self.stored.ids)}

    def content(self, names: Sequence[str]) -> dict[str, str]:
        """Content hashes of the sets that the scorers with these needs read."""
        from guardrail.similarity.representations.read import identify

        out = {}
        for name in names:
            spec = self.spec(name)
            out[name] = identify(spec.path) if spec.stored else hash_rows(self.set_rows(name))
        if self.config.representations:
            out["representations"] = identify(self.config.representations)
        return out

    # what rows give

    def vectors(self, rows: Sequence[Row]) -> tuple[dict[str, torch.Tensor], dict[int, str]]:
        """``{view: (n, D) float32}``, zeros where a row has none, and why, by place."""
        if self.config.representations:
            return self._stored_vectors(rows)
        made, reasons = {}, {}
        for place, row in enumerate(rows):
            if needs_answers(self.options) and not is_answered(row["messages"]):
                reasons[place] = NO_ANSWER
            else:
                made[place] = make_sequence(self.tokenizer, row, self.options)
        out = {view: torch.zeros(len(rows), self.runner.dim) for view in self.options.views}
        for places, values in self.runner.run([(place, one) for place, one in made.items() if one is not None]):
            for view in out:
                out[view][places] = values[view].float()
        return out, reasons

    def _stored_vectors(self, rows: Sequence[Row]) -> tuple[dict[str, torch.Tensor], dict[int, str]]:
        found = [self.stored_places.get(row["id"]) for row in rows]
        out = torch.zeros(len(rows), self.stored.dim)
        reasons = {place: "no stored representation" for place, one in enumerate(found) if one is None}
        there = [place for place, one in enumerate(found) if one is not None]
        out[there] = self.stored.matrix[
            torch.tensor([one for one in found if one is not None], dtype=torch.long)
        ].float()
        return {STORED: out}, reasons

    def encode(self, rows: Sequence[Row]) -> tuple[list[Encoded | None], dict[int, str]]:
        assert self.options.prompt_style is not None
        return encode(self.tokenizer, self.options.prompt_style, rows, self.options.max_length)

    def each_batch(
        self, sequences: Sequence[Encoded | None], compute: Callable[[TokenBatch], T]
    ) -> Iterator[tuple[list[int], T]]:
        """Places and ``compute(tokens)`` of the rows that have tokens, batch by batch, longest first."""
        device, pad = next(self.model.parameters()).device, self.tokenizer.pad_token_id or 0
        there = [(place, one) for place, one in enumerate(sequences) if one is not None]
        lengths = [len(one.ids) for _, one in there]

        def too_long(i: int) -> str:
            return (
                f"one row of {lengths[i]} tokens does not fit in memory with its gradients; lower --max_length, or use "
                "--gradient_parameters last_block"
            )

        def one_batch(some: list[int]) -> T:
            return compute(make_batch([there[i][1] for i in some], pad, device))

        for some, value in self.budget.run(lengths, one_batch, too_long):
            yield [there[i][0] for i in some], value

    def losses(self, encoded: Sequence[Encoded | None], reasons: dict[int, str]) -> tuple[Array, dict[int, str]]:
        """Mean cross-entropy per answer token, (n,) float64 with NaN, and why a row has none."""
        out = np.full(len(encoded), np.nan)

        @torch.inference_mode()
        def compute(batch: TokenBatch) -> torch.Tensor:
            return row_losses(self.model, batch).double().cpu()

        for places, values in self.each_batch(encoded, compute):
            out[places] = values.numpy()
        return out, reasons

    # gradients

    @functools.cached_property
    def gradients(self) -> GradientPass:
        """The backward passes; scorers add their directions to it in ``prepare``."""
        config = self.config
        return GradientPass(self.model, self.facts.n_layers, self.space, config.lora_rank, config.seed)

    @functools.cached_property
    def space(self) -> str:
        """``gradient_parameters``, ``auto`` resolved: a direction over all linear layers of a large model would be as
        large as the model."""
        if self.config.gradient_parameters != "auto":
            return self.config.gradient_parameters
        linear = sum(one.weight.numel() for one in self.model.modules() if isinstance(one, torch.nn.Linear))
        return "linear" if linear <= LARGE_MODEL else "last_block"

    def trained(self, encoded: Sequence[Encoded | None]) -> list[Encoded | None]:
        """The rows' tokens as gradients see them: ``gradient_tokens`` of the answer."""
        return [None if one is None else one.first(self.config.gradient_tokens) for one in encoded]

    def row_gradients(
        self, encoded: Sequence[Encoded | None], reasons: dict[int, str]
    ) -> tuple[RowGradients, dict[int, str]]:
        """What is known of every row's gradient, NaN where there is none, and why."""
        out = None
        for places, found in self.each_batch(self.trained(encoded), self.gradients.describe):
            out = found.blank(len(encoded)) if out is None else out
            out.put(places, found)
        if out is None:  # no row of the batch has an answer
            nothing = np.full((len(encoded), 1), np.nan)
            names = self.gradients.directions
            out = RowGradients([], nothing[:, 0], nothing[:, 0], nothing, dict.fromkeys(names, nothing), nothing)
        return out, reasons

    def set_gradient(self, name: str, normalised: bool = True) -> Directions:
        """Mean gradient of a set's rows, each scaled to length 1 first where ``normalised`` (He et al. 2024)."""
        return self._set_gradient(self.config.set_path(name), name, normalised)

    @functools.cache  # noqa: B019 - one object per run
    def _set_gradient(self, path: str, name: str, normalised: bool) -> Directions:
        encoded, _ = self.encode(self._set_rows(path, name))
        sequences = self.trained(encoded)
        n = sum(one is not None for one in sequences)
        if not n:
            raise UserError(f"--{name} {path}: no row has an answer within --max_length")
        total: Directions = {}

        def compute(batch: TokenBatch) -> Directions:
            weight = torch.full((len(batch.ids),), 1.0 / n, device=batch.ids.device)
            if normalised:
                weight = weight / self.gradients.lengths(batch).to(weight).clamp(min=1e-30)
            return self.gradients.summed(batch, weight)

        for _, part in self.each_batch(sequences, compute):
            for layer, change in part.items():
                total[layer] = total[layer] + change if layer in total else change
        return total

    def set_sketch(self, name: str) -> Array:
        """Mean of the unit random projections of a set's gradients, (k,) float64."""
        encoded, reasons = self.encode(self.set_rows(name))
        found, _ = self.row_gradients(encoded, reasons)
        assert found.sketches is not None
        sketches = found.sketches[np.isfinite(found.sketches).all(axis=1)]
        lengths = np.linalg.norm(sketches, axis=1, keepdims=True)
        mean: Array = (sketches / np.maximum(lengths, 1e-300)).mean(axis=0)
        return mean
