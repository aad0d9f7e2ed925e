"""Extract representations of rows into a store: sharded over ranks, resumable, one shard lost at most when killed.

Rows are ordered by text length and cut into shards that depend on the data alone; ranks take shards in turn.
Within a shard, batches are made from token counts. A row is tokenised once, on one rank, and padded only
within its batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardrail.core import ranks
from guardrail.core.cli import Parser, log
from guardrail.core.errors import UserError
from guardrail.core.files import hash_file, hash_json, require_free_space
from guardrail.core.options import add_options, read_options
from guardrail.core.progress import progress
from guardrail.core.provenance import fingerprint, run_record
from guardrail.data.hub_layout import folder_lock
from guardrail.data.prompts import style_fingerprint
from guardrail.data.rows import Row, hash_rows, load_rows
from guardrail.models.checkpoints import hash_checkpoint
from guardrail.models.fetch import local_checkpoint
from guardrail.similarity.representations import store as stores
from guardrail.similarity.representations.options import ExtractionConfig, ExtractionOptions, ModelFacts, model_facts
from guardrail.similarity.representations.sequences import make_sequence, require_answers, unanswered_ids

if TYPE_CHECKING:
    from guardrail.similarity.representations.hidden_states import HfRunner
    from guardrail.similarity.representations.vllm_backend import VllmRunner

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.txt", "chat_template.jinja")


def hash_tokenizer(model: str) -> str:
    """A 16-character hash of the tokenizer's files, also of a hub model."""
    folder = Path(local_checkpoint(model, weights=False))
    return hash_json({name: hash_file(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()})


def plan_shards(rows: list[Row]) -> list[list[int]]:
    """Row numbers of every shard, longest conversations first; a function of the data alone."""
    lengths = [sum(len(message["content"]) for message in row["messages"]) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (-lengths[i], i))
    size = stores.shard_rows(len(rows))
    return [order[start : start + size] for start in range(0, len(order), size)]


def build_parser() -> Parser:
    parser = Parser(description="Extract one representation per example: hidden states, computed without logits.")
    add_options(parser, ExtractionConfig)
    return parser


def main(argv: list[str] | None = None) -> dict[str, Any]:
    config = read_options(ExtractionConfig, build_parser().parse_args(argv))
    facts = model_facts(config.model_name_or_path, config.architecture)
    options = config.resolve(facts)
    if options.backend == "vllm":
        from guardrail.generation.vllm_engine import require_vllm

        require_vllm()
    rows = load_rows(config.rows_path, split=config.split, name=config.dataset_name, limit=config.limit)
    dropped = unanswered_ids(rows, options, config.max_dropped_fraction)
    if dropped:
        log(f"{len(dropped)} of {len(rows)} rows have no answer and are left out")
    manifest = extract_representations(
        rows,
        {"path": config.rows_path, "split": config.split, "name": config.dataset_name, "limit": config.limit},
        config.model_name_or_path,
        options,
        facts,
        config.store,
        batch_tokens=config.batch_tokens,
        export=config.export_pt,
        overwrite=config.overwrite,
        trust_remote_code=config.trust_remote_code,
        dropped=dropped,
    )
    keys = ("n_rows", "dim", "views", "n_truncated", "n_excluded", "n_dropped", "n_tokens", "reused")
    return {
        "store": str(config.store),
        "reps": str(config.store / stores.EXPORT) if config.export_pt else None,
        **{key: manifest.get(key, 0) for key in keys},
    }


@dataclass(frozen=True)
class Extraction:
    """What one run works on."""

    rows: list[Row]
    source: dict[str, Any]
    model: str
    options: ExtractionOptions
    facts: ModelFacts
    store: Path
    inputs: dict[str, str | None]
    batch_tokens: int | None
    export: bool
    trust_remote_code: bool
    dropped: Sequence[str] = ()

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.options.as_config(), self.inputs)

    def shard_file(self, number: int) -> Path:
        return stores.shard_file(self.store, self.fingerprint, number)

    def finished(self) -> dict[str, Any] | None:
        """The manifest of this very run, if all its files are there (somebody may have deleted some)."""
        manifest = stores.read_manifest(self.store)
        if manifest is None or manifest["fingerprint"] != self.fingerprint:
            return None
        files = [self.shard_file(n) for n in range(manifest["n_shards"])]
        files += [self.store / stores.ROWS, *([self.store / stores.EXPORT] if self.export else [])]
        if not all(file.is_file() for file in files):
            return None
        log(f"{self.store} is up to date: {manifest['n_rows']} rows, {', '.join(manifest['views'])}")
        return {**manifest, "reused": True}


def extract_representations(
    rows: list[Row],
    source: dict[str, Any],
    model: str,
    options: ExtractionOptions,
    facts: ModelFacts,
    store: Path,
    batch_tokens: int | None = None,
    export: bool = True,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    dropped: Sequence[str] = (),
) -> dict[str, Any]:
    """Fill ``store`` with the representations of ``rows`` and return its manifest; all ranks call it.

    A second run into the same store waits for the first. What is complete is not computed again.

    Args:
        source: where the rows come from (``{"path": ..., "split": ...}``), for the manifest.
        batch_tokens: padded tokens per batch; ``None`` picks 1024 on a CPU and searches on a GPU.
        overwrite: replace a store of another data set.
        dropped: ids of rows that get no representation, as those over the cap with ``long_rows`` ``exclude``;
            ``n_excluded`` counts both.

    Raises ``UserError``: no rows, rows without the answer that is needed, a store of another data set is in the way,
    non-finite representations (with the row ids), a row that does not fit in memory, all rows excluded.
    """
    started = time.time()
    if not rows:
        raise UserError(f"{source['path']} has no rows; there is nothing to extract")
    left_out = set(dropped)
    require_answers([row for row in rows if row["id"] not in left_out], options)
    style = options.prompt_style
    template = None if style is None else style_fingerprint(style, Path(local_checkpoint(model, weights=False)))
    inputs = {"model": hash_checkpoint(model), "data": hash_rows(rows), "prompt_template": template}
    if dropped:
        inputs["dropped"] = hash_json(list(dropped))
    run = Extraction(
        rows, source, model, options, facts, store, inputs, batch_tokens, export, trust_remote_code, dropped
    )
    done = run.finished()
    if done is not None:
        return done
    old = stores.read_manifest(store)
    if old is None and (store / stores.MANIFEST).exists():
        raise UserError(f"{store} has a manifest.json of something else; choose another --output_dir")
    if old is not None and old["source"] != source and not overwrite:
        raise UserError(
            f"{store} holds representations of other data ({old['source']['path']}, "
            f"split {old['source'].get('split')}); choose another --output_dir, or --overwrite True to replace them"
        )
    shards = plan_shards(rows)
    with ranks.process_group(), folder_lock(store) if ranks.is_main() else nullcontext():
        ranks.barrier()  # the lock is held
        done = run.finished()  # by the process that held it before
        if done is not None:
            return done
        missing = [
            (number, members)
            for number, members in enumerate(shards)
            if not stores.is_whole(run.shard_file(number), members, options.views)
        ]
        if len(missing) < len(shards):
            log(f"resuming {store}: {len(shards) - len(missing)} of {len(shards)} shards are there")
        ranks.barrier()  # every rank has listed what is missing before any rank writes
        mine = ranks.shard(missing)
        if mine:
            _extract_shards(run, mine)
        ranks.barrier()
        if ranks.is_main():
            _finish(run, len(shards), started)
        ranks.barrier()
    manifest = stores.read_manifest(store)
    assert manifest is not None
    return {**manifest, "reused": False}


def _extract_shards(run: Extraction, shards: list[tuple[int, list[int]]]) -> None:
    import torch

    from guardrail.models.loading import load_tokenizer, torch_dtype

    tokenizer, options, rows = load_tokenizer(run.model, run.trust_remote_code), run.options, run.rows
    dropped = set(run.dropped)
    runner = _make_runner(run, tokenizer)
    stored_dtype = torch_dtype(options.dtype)
    with progress(total=sum(len(members) for _, members in shards), desc="representations") as bar:
        for number, members in shards:
            answered = [row for row in members if rows[row]["id"] not in dropped]
            made = {row: make_sequence(tokenizer, rows[row], options) for row in answered}
            sequences = {row: made_ for row, made_ in sorted(made.items()) if made_ is not None}
            kept = list(sequences)
            if number == shards[0][0] and kept:
                size = torch.finfo(stored_dtype).bits // 8
                require_free_space(run.store, 2 * len(rows) * runner.dim * len(options.views) * size)
            # NaN first: a row that no batch has filled cannot pass for a representation
            out = {view: torch.full((len(kept), runner.dim), float("nan")) for view in options.views}
            place = {row: i for i, row in enumerate(kept)}
            for batch, values in runner.run(list(sequences.items())):
                where = torch.tensor([place[row] for row in batch])
                for view in options.views:
                    out[view][where] = values[view]
                bar.update(len(batch))
            bar.update(len(members) - len(kept))
            stored = {view: tensor.to(stored_dtype) for view, tensor in out.items()}
            _refuse_non_finite(stored, kept, rows)
            counts = [[s.n_tokens, s.n_tokens_full] for s in sequences.values()]
            tokens = torch.tensor(counts, dtype=torch.int32).reshape(-1, 2)
            stored |= {"rows": torch.tensor(kept, dtype=torch.long), "n_tokens": tokens[:, 0]}
            stores.write_shard(run.shard_file(number), {**stored, "n_tokens_full": tokens[:, 1]})


def _make_runner(run: Extraction, tokenizer: Any) -> HfRunner | VllmRunner:
    settings = (run.model, run.options, run.facts, tokenizer, run.batch_tokens, run.trust_remote_code)
    if run.options.backend == "vllm":
        from guardrail.similarity.representations.vllm_backend import VllmRunner

        return VllmRunner(*settings)
    from guardrail.similarity.representations.hidden_states import HfRunner

    return HfRunner(*settings)


def _refuse_non_finite(views: dict[str, Any], kept: list[int], rows: list[Row]) -> None:
    import torch

    for view, values in views.items():
        bad = (~torch.isfinite(values)).any(dim=1).nonzero().flatten().tolist()
        if bad:
            ids = ", ".join(rows[kept[i]]["id"] for i in bad[:3])
            raise UserError(
                f"{view}: {len(bad)} of {len(kept)} representations are not finite (rows {ids}); "
                "float16 overflows with many models: use --torch_dtype bfloat16 or float32"
            )


def _finish(run: Extraction, n_shards: int, started: float) -> None:
    rows, options = run.rows, run.options
    n_rows = n_truncated = n_tokens = 0
    dim, dtype = None, None
    for number in range(n_shards):
        counts, full, first = stores.read_shard(run.shard_file(number), ("n_tokens", "n_tokens_full", options.views[0]))
        dim, dtype = first.shape[1], str(first.dtype).removeprefix("torch.")
        n_rows += len(counts)
        n_tokens += int(counts.sum())
        n_truncated += int((full > counts).sum())
    if n_rows == 0:
        raise UserError(
            f"all {len(rows)} rows are longer than --max_length {options.max_length} and --long_rows is exclude: "
            "nothing is left; raise --max_length or use --long_rows truncate"
        )
    n_excluded = len(rows) - n_rows
    if n_truncated or n_excluded:
        log(f"{n_truncated} rows cut at {options.max_length} tokens, {n_excluded} excluded, of {len(rows)}")
    manifest = {
        "format": stores.FORMAT,
        "kind": stores.KIND,
        "fingerprint": run.fingerprint,
        "model": {"path": run.model, "hash": run.inputs["model"], "tokenizer_hash": hash_tokenizer(run.model)},
        "data_hash": run.inputs["data"],
        "prompt_template": run.inputs["prompt_template"],
        "source": run.source,
        "options": options.as_config(),
        "n_layers": run.facts.n_layers,
        "views": list(options.views),
        "dim": dim,
        "dtype": dtype,
        "n_rows": n_rows,
        "n_truncated": n_truncated,
        "n_excluded": n_excluded,
        "n_dropped": len(run.dropped),
        "dropped_ids": list(run.dropped),
        "n_tokens": n_tokens,
        "n_shards": n_shards,
        "run": run_record(
            "get_representation",
            options.as_config(),
            n=n_rows,
            model_hash=run.inputs["model"],
            data_hash=run.inputs["data"],
            processes=ranks.world_size(),
            extraction_sec=round(time.time() - started, 3),
        ),
    }
    stores.finish_store(run.store, manifest, [row["id"] for row in rows], run.export)
