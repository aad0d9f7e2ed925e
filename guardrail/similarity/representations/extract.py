"""Extract representations of rows into a store: sharded over ranks, resumable, one shard lost at most when killed.

Rows are ordered by text length and cut into shards that depend on the data alone; ranks take shards in turn.
Within a shard, batches are made from token counts. A row is tokenised once, on one rank, and padded only
within its batch.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from guardrail.core import ranks
from guardrail.core.cli import log
from guardrail.core.errors import UserError
from guardrail.core.files import hash_file, hash_json, require_free_space
from guardrail.core.progress import progress
from guardrail.core.provenance import fingerprint, run_record
from guardrail.data.rows import Row, hash_rows
from guardrail.models.checkpoints import hash_checkpoint, resolve_checkpoint
from guardrail.similarity.representations import store as stores
from guardrail.similarity.representations.options import ExtractionOptions, ModelFacts

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.txt", "chat_template.jinja")


def hash_tokenizer(model: str) -> str:
    """A 16-character hash of a local folder's tokenizer files; of the name for the hub."""
    folder = Path(resolve_checkpoint(model))
    if not folder.is_dir():
        return hash_json({"hub": str(folder)})
    return hash_json({name: hash_file(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()})


def plan_shards(rows: list[Row]) -> list[list[int]]:
    """Row numbers of every shard, longest conversations first; a function of the data alone."""
    lengths = [sum(len(message["content"]) for message in row["messages"]) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (-lengths[i], i))
    size = stores.shard_rows(len(rows))
    return [order[start : start + size] for start in range(0, len(order), size)]


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
) -> dict[str, Any]:
    """Fill ``store`` with the representations of ``rows`` and return its manifest; all ranks call it.

    Args:
        source: where the rows come from (``{"path": ..., "split": ...}``), for the manifest.
        batch_tokens: padded tokens per batch; ``None`` picks 1024 on a CPU and searches on a GPU.
        overwrite: replace a store of another data set.

    Raises ``UserError``: a store of another data set is in the way, non-finite representations (with the row ids),
    a row that does not fit in memory, all rows excluded.
    """
    started = time.time()
    inputs = {"model": hash_checkpoint(model), "data": hash_rows(rows)}
    print_ = fingerprint(options.as_config(), inputs)
    old = stores.read_manifest(store)
    if old is not None and old.get("fingerprint") == print_ and _whole(store, old, export):
        log(f"{store} is up to date: {old['n_rows']} rows, {', '.join(old['views'])}")
        return {**old, "reused": True}
    if old is None and (store / stores.MANIFEST).exists():
        raise UserError(f"{store} has a manifest.json of something else; choose another --output_dir")
    if old is not None and old.get("source") != source and not overwrite:
        raise UserError(
            f"{store} holds representations of other data ({old['source']['path']}, split {old['source']['split']}); "
            "choose another --output_dir, or --overwrite True to replace them"
        )
    shards = plan_shards(rows)
    missing = [
        (number, members)
        for number, members in enumerate(shards)
        if not stores.shard_file(store, print_, number).is_file()
    ]
    if len(missing) < len(shards):
        log(f"resuming {store}: {len(shards) - len(missing)} of {len(shards)} shards are there")
    with ranks.process_group():
        ranks.barrier()  # every rank has listed what is missing before any rank writes
        mine = ranks.shard(missing)
        if mine:
            _extract_shards(rows, mine, model, options, facts, store, print_, batch_tokens, trust_remote_code)
        ranks.barrier()
        if ranks.is_main():
            _finish(rows, source, model, options, facts, store, print_, inputs, len(shards), export, started)
    manifest = stores.read_manifest(store)
    assert manifest is not None
    return {**manifest, "reused": False}


def _whole(store: Path, manifest: dict[str, Any], export: bool) -> bool:
    """Are all files of a finished store there (somebody may have deleted the export or a shard)?"""
    files = [stores.shard_file(store, manifest["fingerprint"], n) for n in range(manifest["n_shards"])]
    files += [store / stores.ROWS, *([store / stores.EXPORT] if export else [])]
    return all(file.is_file() for file in files)


def _extract_shards(
    rows: list[Row],
    shards: list[tuple[int, list[int]]],
    model: str,
    options: ExtractionOptions,
    facts: ModelFacts,
    store: Path,
    print_: str,
    batch_tokens: int | None,
    trust_remote_code: bool,
) -> None:
    import torch

    from guardrail.models.loading import load_tokenizer, torch_dtype
    from guardrail.similarity.representations.sequences import make_sequence

    tokenizer = load_tokenizer(model, trust_remote_code)
    if options.backend == "vllm":
        from guardrail.similarity.representations.vllm_backend import VllmRunner as Runner
    else:
        from guardrail.similarity.representations.runner import HfRunner as Runner
    runner = Runner(model, options, facts, tokenizer, batch_tokens, trust_remote_code)
    stored_dtype = torch_dtype(runner.dtype if options.dtype == "auto" else options.dtype)
    with progress(total=sum(len(members) for _, members in shards), desc="representations") as bar:
        for number, members in shards:
            sequences = {row: make_sequence(tokenizer, rows[row], options) for row in members}
            kept = sorted(row for row in members if sequences[row] is not None)
            if number == shards[0][0] and kept:
                size = torch.finfo(stored_dtype).bits // 8
                require_free_space(store, 2 * len(rows) * runner.dim * len(options.views) * size)
            # NaN first: a row that no batch has filled cannot pass for a representation
            out = {view: torch.full((len(kept), runner.dim), float("nan")) for view in options.views}
            place = {row: i for i, row in enumerate(kept)}
            for batch, values in runner.run([(row, sequences[row]) for row in kept]):
                where = torch.tensor([place[row] for row in batch])
                for view in options.views:
                    out[view][where] = values[view]
                bar.update(len(batch))
            bar.update(len(members) - len(kept))
            stored = {view: tensor.to(stored_dtype) for view, tensor in out.items()}
            _refuse_non_finite(stored, kept, rows)
            stored["rows"] = torch.tensor(kept, dtype=torch.long)
            stored["n_tokens"] = torch.tensor([sequences[row].n_tokens for row in kept], dtype=torch.int32)
            stored["n_tokens_full"] = torch.tensor([sequences[row].n_tokens_full for row in kept], dtype=torch.int32)
            stores.write_shard(stores.shard_file(store, print_, number), stored)


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


def _finish(
    rows: list[Row],
    source: dict[str, Any],
    model: str,
    options: ExtractionOptions,
    facts: ModelFacts,
    store: Path,
    print_: str,
    inputs: dict[str, str],
    n_shards: int,
    export: bool,
    started: float,
) -> None:
    from safetensors import safe_open

    n_rows = n_truncated = n_tokens = 0
    dim, dtype = None, None
    for number in range(n_shards):
        with safe_open(stores.shard_file(store, print_, number), framework="pt") as handle:
            counts, full = handle.get_tensor("n_tokens"), handle.get_tensor("n_tokens_full")
            first = handle.get_tensor(options.views[0])
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
        "fingerprint": print_,
        "model": {"path": model, "hash": inputs["model"], "tokenizer_hash": hash_tokenizer(model)},
        "data_hash": inputs["data"],
        "source": source,
        "options": options.as_config(),
        "n_layers": facts.n_layers,
        "views": list(options.views),
        "dim": dim,
        "dtype": dtype,
        "n_rows": n_rows,
        "n_truncated": n_truncated,
        "n_excluded": n_excluded,
        "n_tokens": n_tokens,
        "n_shards": n_shards,
        "run": run_record(
            "get_representation",
            options.as_config(),
            n=n_rows,
            model_hash=inputs["model"],
            data_hash=inputs["data"],
            processes=ranks.world_size(),
            extraction_sec=round(time.time() - started, 3),
        ),
    }
    stores.finish_store(store, manifest, [row["id"] for row in rows], export)
