"""How many rows and tokens each part of a study reads, trains on and writes.

Rows that are here are counted, and the characters of a sample say how long they are. For published sets that are not
here yet, row counts and lengths are those of their cards; each says which. Padding follows from how much rows differ
in length and how many lie in one batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.core.errors import UserError
from guardrail.study.config import Source
from guardrail.study.planning.assumptions import Book
from guardrail.study.sources import count_rows

N_SAMPLE = 2000
MESSAGES_OVERHEAD = 60  # characters of JSON around a conversation


@dataclass(frozen=True)
class Volume:
    """``rows`` of ``tokens`` each on average; ``variation``: standard deviation over mean; ``source`` of both."""

    rows: float
    tokens: float
    variation: float
    source: str

    def with_rows(self, rows: float) -> Volume:
        return Volume(rows, self.tokens, self.variation, self.source)


@dataclass(frozen=True)
class Published:
    """A public set: rows, and either tokens or bytes of text per row."""

    rows: float
    source: str
    tokens: float | None = None
    characters: float | None = None


# Names as in datasets/prepare.py. Bytes: `num_bytes` of the hub's cards, with what is there twice taken out.
PUBLISHED: dict[str, Published] = {
    "ultrachat": Published(
        207_865,
        "1,090 steps x 128 x 2,048 tokens packed from 207,865 rows (card of alignment-handbook/zephyr-7b-sft-full; "
        "Mistral's tokenizer, 32,000 tokens as Llama-2's)",
        tokens=1_375,
    ),
    "beavertails": Published(
        134_000,
        "44.6% safe of 300,567 (Ji et al. 2023); 418 bytes a row (card of mlabonne/SafeBeaverTails: 40.3 MB, 96,428 "
        "rows)",
        characters=390,
    ),
    "alpaca": Published(
        52_002,
        "918 bytes a row, the texts twice and a template of 170 once (cards of tatsu-lab/alpaca)",
        characters=370,
    ),
    "samsum": Published(14_732, "9.48 MB (card of the data set)", characters=640),
    "list": Published(100, "about 100 rows in the paper; Alpaca's length", characters=370),
    "pure_bad": Published(100, "100 rows in the paper; assumed as long as Alpaca's", characters=370),
    "gsm8k": Published(7_473, "card of openai/gsm8k", characters=520),
}
PUBLISHED_TESTS = {"samsum": 819, "gsm8k": 1_319, "alpaca": 819}
BENCH_PROMPTS = {"hex-phi": 330, "xstest": 250, "sandbox": 140, "sandbox-benign": 140}
SANDBOX_ROWS = {  # guardrail.sandbox.splits; used where the folder was not written yet
    "instruct": 1500,
    "safety_pool": 3000,
}
UNKNOWN_ROWS = 1000


def known_as(source: str) -> str | None:
    """The published set behind a folder or hub name: `datasets/ultrachat`, `knkarthick/samsum`."""
    name = Path(source).name.lower().replace("-", "_")
    return next((known for known in PUBLISHED if name == known or name.startswith(f"{known}_")), None)


def volume(source: Source, book: Book, tests: bool = False) -> Volume:
    """Rows and tokens of a source; of its held-out part with ``tests`` where only the card is known.

    Raises ``UserError`` for a wrong split of a source that is here.
    """
    measured = _local(source.source, source.split, book["characters_per_token"], book["template_tokens"])
    if measured is not None:
        return measured
    name = known_as(source.source)
    if name is None:
        rows = book.note("rows", UNKNOWN_ROWS, "rows", f"assumed: {source.source} is not here")
        tokens = book.note("tokens_per_row", 300, "tokens", f"assumed: {source.source} is not here")
        return Volume(rows, tokens, book["length_variation"], "assumed")
    card = PUBLISHED[name]
    if tests and name in PUBLISHED_TESTS:
        rows = float(PUBLISHED_TESTS[name])
    else:
        rows = book.note(f"{name}_rows", card.rows, "rows", card.source)
    counted = card.tokens
    if counted is None:
        assert card.characters is not None
        counted = card.characters / book["characters_per_token"] + book["template_tokens"]
    tokens = book.note(f"{name}_tokens", round(counted, 1), "tokens per row", card.source)
    return Volume(rows, tokens, book["length_variation"], "card")


@functools.lru_cache(maxsize=128)
def _local(source: str, split: str | None, per_token: float, template: float) -> Volume | None:
    """A source that is here, by its own rows; None for one that is not."""
    from guardrail.data.rows import load_rows

    try:
        rows = count_rows(Source(source, split))
    except UserError:
        if Path(source).exists():
            raise
        return None
    if not rows:
        return None
    sample = load_rows(source, split, limit=N_SAMPLE)
    lengths = [
        sum(len(message["content"]) for message in row["messages"]) / per_token + template for row in sample
    ] or [template]
    mean = sum(lengths) / len(lengths)
    spread = math.sqrt(sum((length - mean) ** 2 for length in lengths) / len(lengths))
    return Volume(rows, mean, spread / mean, f"{rows:,} rows here, lengths of {len(sample):,}")


def join(parts: list[Volume]) -> Volume:
    """Rows of all parts together: counts add, lengths mix."""
    rows = sum(part.rows for part in parts)
    if rows == 0:
        return Volume(0, 1, 0, "empty")
    mean = sum(part.rows * part.tokens for part in parts) / rows
    square = sum(part.rows * part.tokens**2 * (1 + part.variation**2) for part in parts) / rows
    variation = math.sqrt(max(square - mean**2, 0.0)) / mean
    return Volume(rows, mean, variation, "; ".join(dict.fromkeys(part.source for part in parts)))


@functools.lru_cache(maxsize=1024)
def padding(n_rows: int, variation: float, n_points: int = 4000) -> float:
    """How many tokens a padded batch of ``n_rows`` holds per real one: E[max of n] / E for log-normal lengths.

    E[max] = integral over u of Q(u) n u^(n-1) with the quantile function Q; midpoints of ``n_points`` intervals of u^n.
    """
    if n_rows <= 1 or variation <= 0:
        return 1.0
    from statistics import NormalDist

    sigma = math.sqrt(math.log(1 + variation**2))
    normal = NormalDist()
    total = 0.0
    for i in range(n_points):
        u = ((i + 0.5) / n_points) ** (1 / n_rows)
        total += math.exp(sigma * normal.inv_cdf(u) - sigma**2 / 2)
    return total / n_points


def padding_of(options: Mapping[str, Any], rows: Volume) -> float:
    """Tokens of a training's batches per real one; 1 where its batching leaves out pads, or nearly all of them."""
    if options.get("batching", "padded") != "padded":
        return 1.0
    return padding(options["per_device_train_batch_size"], round(rows.variation, 2))


def bench_prompts(bench: str, data: str | None, limit: int | None) -> float:
    """Prompts of a bench, known by name or counted in its file."""
    count: float | None = None
    for path in (data, bench):
        if count is None and path and Path(path).is_file():
            count = count_rows(Source(path))
    count = BENCH_PROMPTS.get(bench, 300) if count is None else count
    return min(count, limit) if limit else count
