"""Training rows as token ids: tokenised once, in parallel, cached by content (`guardrail.training.token_cache`).

A second epoch, a second seed or a restarted run tokenises nothing, and a run that shares rows with an earlier one only
the others.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from guardrail.core.errors import UserError
from guardrail.core.files import hash_file, hash_json
from guardrail.core.ranks import barrier, local_rank
from guardrail.data.loss_mask import mask_of, masked_tokens, without_masked
from guardrail.data.prompts import IGNORE_INDEX, TEMPLATE_FILE, encode_supervised, template_module
from guardrail.data.rows import Row, load_rows
from guardrail.training.token_cache import ARRAYS, Arrays, cached_rows, row_key

CACHE_VERSION = 2  # raise when the meaning of a cached array changes
ROWS_PER_WORKER = 2000
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja", "vocab.json")


@dataclass(frozen=True)
class TokenisedRows:
    """N rows of ids, flat. Row i is ``ids[offsets[i]:offsets[i + 1]]``; ``spans`` (K, 3) are its trained positions.

    A span is ``(row, start, end)``: positions ``start`` to ``end - 1`` of the row carry a label. ``full_lengths``
    (N,) are the token counts before any cut.
    """

    ids: np.ndarray
    offsets: np.ndarray
    spans: np.ndarray
    full_lengths: np.ndarray
    row_ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    @functools.cached_property
    def trained_counts(self) -> np.ndarray:
        """(N,) labels that enter the loss: the first position of a row has no prediction."""
        counts = np.zeros(len(self), dtype=np.int64)
        np.add.at(counts, self.spans[:, 0], np.maximum(self.spans[:, 2] - np.maximum(self.spans[:, 1], 1), 0))
        return counts

    def input_ids(self, index: int) -> np.ndarray:
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def labels(self, index: int) -> np.ndarray:
        """The row's labels, ``IGNORE_INDEX`` outside its spans."""
        out = np.full(self.offsets[index + 1] - self.offsets[index], IGNORE_INDEX, dtype=np.int64)
        first, last = np.searchsorted(self.spans[:, 0], [index, index + 1])
        for _, start, end in self.spans[first:last]:
            out[start:end] = self.input_ids(index)[start:end]
        return out

    def select(self, keep: np.ndarray) -> TokenisedRows:
        """The rows with these indices, renumbered."""
        parts = [self.input_ids(i) for i in keep]
        new = {int(old): position for position, old in enumerate(keep)}
        spans = [(new[int(row)], start, end) for row, start, end in self.spans if int(row) in new]
        return TokenisedRows(
            np.concatenate(parts) if parts else self.ids[:0],
            np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64),
            np.array(sorted(spans), dtype=np.int64).reshape(-1, 3),
            self.full_lengths[keep],
            tuple(self.row_ids[i] for i in keep),
        )


def load_training_rows(
    source: str,
    template: str,
    split: str | None,
    name: str | None,
    data_files: str | None,
    size: int | None,
    max_dropped_fraction: float = 0.0,
    dropped: list[str] | None = None,
) -> list[Row]:
    """Rows through the formatter ``template``. Rows without an answer are left out up to ``max_dropped_fraction``;
    ``dropped`` gets their ids."""
    if data_files is not None:
        source, split = str(Path(source) / data_files), None
    rows = load_rows(
        source,
        split=split,
        name=name,
        limit=size,
        need_answer=True,
        max_dropped_fraction=max_dropped_fraction,
        dropped=dropped,
    )
    formatter = template_module().FORMATTERS[template]
    try:
        return [{**row, "messages": formatter(row)} for row in rows]
    except KeyError as error:
        raise UserError(f"{source}: rows do not fit the template {template}: {error.args[0]}") from error


def encode_align_anything(
    tokenizer: Any, style: str, messages: list[dict[str, str]], max_length: int
) -> tuple[list[int], tuple[int, int], int]:
    """Ids and label span exactly as align-anything 3f9decc makes them from the drop-in template.

    Its ``tokenize`` appends EOS to a text that has none, so the length of the prompt alone is one too long and the
    first answer token gets no label (text_to_text/supervised.py, ``preprocess``). Kept for comparison only.
    """
    prompt, whole = template_module().render_supervised(tokenizer, style, messages)

    def tokenize(text: str, cut: int | None) -> list[int]:
        if tokenizer.eos_token not in text:
            text += tokenizer.eos_token
        ids = tokenizer(text, add_special_tokens=True)["input_ids"]
        return ids if cut is None else ids[:cut]

    full = tokenize(whole, None)
    ids = full[:max_length]
    start = min(len(tokenize(prompt, max_length)), len(ids))
    return ids, (start, len(ids)), len(full)


def encode_rows(
    rows: list[Row], tokenizer: Any, style: str, max_length: int, label_mask: str, train_on: str
) -> TokenisedRows:
    """The rows' ids and spans. A token takes 4 bytes from the start: a list of numbers would take 36."""
    ids, offsets, spans, full_lengths = array("i"), array("q", [0]), array("q"), array("q")
    for number, row in enumerate(rows):
        if label_mask == "align_anything":
            tokens, span, full = encode_align_anything(tokenizer, style, row["messages"], max_length)
            trained = [span]
        else:
            mask = mask_of(row)
            try:
                example = encode_supervised(tokenizer, style, row["messages"], max_length)
                hidden = masked_tokens(tokenizer, style, row["messages"], mask, example) if mask else []
            except UserError as error:
                raise UserError(f"row {row['id']}: {error}") from error
            tokens, full = example.input_ids, example.n_tokens_full
            answers = example.answer_spans if train_on == "all_assistant_turns" else example.answer_spans[-1:]
            trained = [span for span in answers if span[0] < span[1]]
            if mask:
                trained = without_masked(trained, hidden)
        ids.extend(tokens)
        offsets.append(len(ids))
        for start, end in trained:
            spans.extend((number, start, end))
        full_lengths.append(full)
    return TokenisedRows(
        np.frombuffer(ids, dtype=np.int32),
        np.frombuffer(offsets, dtype=np.int64),
        np.frombuffer(spans, dtype=np.int64).reshape(-1, 3),
        np.frombuffer(full_lengths, dtype=np.int64),
        tuple(row["id"] for row in rows),
    )


def join(parts: list[TokenisedRows]) -> TokenisedRows:
    """Rows of all parts, in order."""
    n_rows = np.cumsum([0] + [len(part) for part in parts])
    n_tokens = np.cumsum([0] + [part.ids.size for part in parts])
    return TokenisedRows(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([[0], *(part.offsets[1:] + n for part, n in zip(parts, n_tokens, strict=False))]),
        np.concatenate([np.add(part.spans, [n, 0, 0]) for part, n in zip(parts, n_rows, strict=False)]),
        np.concatenate([part.full_lengths for part in parts]),
        tuple(row_id for part in parts for row_id in part.row_ids),
    )


def tokenise(
    rows: list[Row],
    tokenizer: Any,
    *,
    style: str,
    max_length: int,
    label_mask: str = "exact",
    train_on: str = "last_assistant_turn",
    cache_dir: str | None = None,
    workers: int | None = None,
) -> TokenisedRows:
    """Tokenised rows: from the cache; this node's first rank makes and adds the others. Collective over all ranks."""
    options = {"style": style, "max_length": max_length, "label_mask": label_mask, "train_on": train_on}
    key = hash_json(
        {
            "version": CACHE_VERSION,
            "tokenizer": hash_tokenizer(tokenizer),
            "template": hash_file(TEMPLATE_FILE),
            **options,
        }
    )
    folder = cache_folder(cache_dir) / key
    keys = [row_key(row["messages"], mask_of(row)) for row in rows]

    def encode(numbers: list[int]) -> Arrays:
        encoded = _encode_parallel([rows[i] for i in numbers], tokenizer, options, workers)
        return {name: getattr(encoded, name) for name in ARRAYS}

    found = cached_rows(folder, keys, encode) if local_rank() == 0 else None
    barrier()
    if found is None:
        found = cached_rows(folder, keys, None)
    assert found is not None, folder
    return TokenisedRows(**found, row_ids=tuple(row["id"] for row in rows))


def cache_folder(cache_dir: str | None) -> Path:
    if cache_dir:
        return Path(cache_dir) / "tokens"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "guardrail" / "tokens"


def hash_tokenizer(tokenizer: Any) -> str:
    """Hash of the tokenizer's files; of its class and vocabulary when it has none on disk."""
    folder = Path(str(tokenizer.name_or_path))
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if files:
        return hash_json({file.name: hash_file(file) for file in files})
    return hash_json([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items()), tokenizer.chat_template])


def _chunks(rows: list[Row], count: int) -> Iterator[list[Row]]:
    size = -(-len(rows) // count)
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _encode_parallel(rows: list[Row], tokenizer: Any, options: dict[str, Any], workers: int | None) -> TokenisedRows:
    arguments = (options["style"], options["max_length"], options["label_mask"], options["train_on"])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = workers or max(1, min(cores, len(rows) // ROWS_PER_WORKER))
    if count == 1:
        return encode_rows(rows, tokenizer, *arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # forked workers must not share its thread pool
    with multiprocessing.get_context("fork").Pool(count) as pool:
        return join(pool.starmap(encode_rows, [(chunk, tokenizer, *arguments) for chunk in _chunks(rows, count)]))
