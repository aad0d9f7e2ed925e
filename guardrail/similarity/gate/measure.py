"""What is known of every row before anything is decided: chunk by chunk, one file each, without any text.

    <out>/.gate/<key>/rows-000012.npz        a chunk of the customer's rows
    <out>/.gate/<key>/set-<name>.npz         rows of a reference or of a check

The key covers the file's content, the scorers with their models and sets, and what the policy asks of texts, but no
threshold: another limit reads the same measurements. A chunk is whole or absent.
Shapes: n rows of a chunk, S scorers, P places of a signature, K sentences.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from guardrail.core.errors import UserError
from guardrail.core.files import atomic_path, hash_json
from guardrail.data.rows import Row, response
from guardrail.similarity.gate import duplicates, secrets
from guardrail.similarity.gate.policy import DUPLICATE, SECRETS, Policy
from guardrail.similarity.gate.segments import segment_rows
from guardrail.similarity.gate.source import FORMAT_CODES, Line, parse
from guardrail.similarity.scorers.interface import Batch
from guardrail.similarity.selection.composition import is_list

if TYPE_CHECKING:
    from guardrail.similarity.scorers.run import RowScoring

VERSION = 1  # raise when the same rows and policy give other measurements
CHUNK_ROWS = 256
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Chunk:
    """Measurements of n rows in order.

    ``format`` (n,) codes by their place in `FORMAT_CODES`; ``own_ids`` (n,) hashes of ids, 0 without one; ``scores``
    (n, S) with NaN where there is none, ``why`` (n, S) then the place of the reason in ``reasons``, -1 elsewhere;
    ``secrets`` (n,) bits; ``text_hashes`` (n,) 16 bytes, ``signatures`` (n, P); ``shape`` (n, 4) characters of prompt
    and answer, sentences, list or not; ``segments`` (K, 3) row, start, end, and their ``segment_scores`` (K,).
    """

    lines: Array
    hashes: Array
    format: Array
    own_ids: Array
    scores: Array
    why: Array
    reasons: Array
    secrets: Array
    text_hashes: Array
    signatures: Array
    shape: Array
    segments: Array
    segment_scores: Array

    def __len__(self) -> int:
        return len(self.lines)


class Measuring:
    """The scorers of one policy, loaded once, over any number of chunks."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        names = policy.scorers
        self.segment_scorer = policy.segments.scorer if policy.segments else None
        wanted = tuple(dict.fromkeys((*names, *([self.segment_scorer] if self.segment_scorer else []))))
        self.scoring: RowScoring | None = None
        if wanted:
            from guardrail.similarity.scorers.run import RowScoring

            self.scoring = RowScoring(policy.scoring_config(wanted))
        self.names = names
        if self.scoring is not None and (gone := self.scoring.not_applicable):
            name, why = next(iter(gone.items()))
            raise UserError(f"scorer {name} is not applicable here: {why}; leave it out of the policy")

    @property
    def looks_for_secrets(self) -> bool:
        return self.policy.rule(SECRETS) is not None and secrets.is_installed()

    def key(self, content: Any) -> str:
        """Hash of what decides the measurements of rows with this ``content`` hash."""
        return hash_json(
            {
                "version": VERSION,
                "content": content,
                "scoring": None if self.scoring is None else self.scoring.key,
                "scorers": list(self.names),
                "segments": self.segment_scorer,
                "secrets": secrets.version() if self.looks_for_secrets else None,
                "duplicates": self.policy.rule(DUPLICATE) is not None,
            }
        )

    def lines(self, lines: Sequence[Line]) -> Chunk:
        """Measure a chunk of the customer's file."""
        parsed = [parse(line) for line in lines]
        codes = [FORMAT_CODES.index(one.code) for one in parsed]
        own_ids = [one.own_id for one in parsed]
        heads = (np.array([line.number for line in lines]), np.array([line.hash for line in lines], dtype="S16"))
        return self._measure([one.row for one in parsed], *heads, np.array(codes, dtype=np.uint8), own_ids)

    def rows(self, rows: Sequence[Row]) -> Chunk:
        """Measure the rows of a reference or of a check."""
        n = len(rows)
        zeros = np.zeros(n, dtype=np.uint8)
        return self._measure(list(rows), np.arange(1, n + 1), np.zeros(n, dtype="S16"), zeros, [0] * n)

    def _measure(
        self, found: list[Row | None], numbers: Array, hashes: Array, codes: Array, own_ids: list[int]
    ) -> Chunk:
        n = len(found)
        places = [place for place, row in enumerate(found) if row is not None]
        rows = [row for row in found if row is not None]
        scores, why = np.full((n, len(self.names)), np.nan), np.full((n, len(self.names)), -1, dtype=np.int16)
        reasons: list[str] = []
        if rows and self.scoring is not None and self.names:
            given = self.scoring.score(rows)
            for column, name in enumerate(self.names):
                scores[places, column] = given[name].values
                for place, reason in given[name].reasons.items():
                    if reason not in reasons:
                        reasons.append(reason)
                    why[places[place], column] = reasons.index(reason)
        compares = self.policy.rule(DUPLICATE) is not None
        texts = [duplicates.normal_text(row) for row in rows] if compares else []
        text_hashes = np.zeros(n, dtype="S32")
        signs = np.zeros((n, duplicates.PLACES if compares else 0), dtype=np.uint32)
        if texts:
            text_hashes[places] = [duplicates.text_hash(text).hex() for text in texts]
            signs[places] = duplicates.signatures(texts)
        bits = np.zeros(n, dtype=np.uint64)
        if self.looks_for_secrets:
            bits[places] = [secrets.find_secrets(row) for row in rows]
        shape = np.zeros((n, 4), dtype=np.int64)
        pieces = [segment_rows(row) for row in rows]
        for place, row, (spans, _) in zip(places, rows, pieces, strict=True):
            prompt = sum(len(message["content"]) for message in row["messages"][:-1])
            shape[place] = (prompt, len(response(row)), max(1, len(spans)), is_list(response(row)))
        segments, segment_scores = self._segments(places, pieces)
        return Chunk(
            numbers.astype(np.int64),
            hashes,
            codes,
            np.array(own_ids, dtype=np.uint64),
            scores,
            why,
            np.array(reasons or [""]),
            bits,
            text_hashes,
            signs,
            shape,
            segments,
            segment_scores,
        )

    def _segments(self, places: list[int], pieces: list[tuple[list[Any], list[Row]]]) -> tuple[Array, Array]:
        if self.segment_scorer is None or self.scoring is None:
            return np.zeros((0, 3), dtype=np.int64), np.zeros(0)
        spans = [(place, *span) for place, (found, _) in zip(places, pieces, strict=True) for span in found]
        rows = [row for _, some in pieces for row in some]
        scores = np.zeros(0)
        if rows:
            self.scoring.prepare()
            only = self.scoring.working.get(self.segment_scorer)
            if only is None:
                why = self.scoring.not_applicable[self.segment_scorer]
                raise UserError(f"segments cannot be scored by {self.segment_scorer}: {why}; leave segments out")
            parts = [
                only.score(Batch(rows[i : i + CHUNK_ROWS], self.scoring.resources)).values
                for i in range(0, len(rows), CHUNK_ROWS)
            ]
            scores = np.concatenate(parts)
        return np.array(spans, dtype=np.int64).reshape(-1, 3), scores


def write_chunk(path: Path, chunk: Chunk) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **{item.name: getattr(chunk, item.name) for item in fields(Chunk)})
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def read_chunk(path: Path) -> Chunk | None:
    """The chunk in ``path``; None when it is absent or cannot be read: then it is measured again."""
    try:
        with np.load(path, allow_pickle=False) as found:
            return Chunk(**{item.name: found[item.name] for item in fields(Chunk)})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def join(parts: Sequence[Chunk]) -> Chunk:
    """The rows of all parts, in order; reasons for missing scores are not carried over."""
    starts = np.cumsum([0, *(len(part) for part in parts)])
    values = {item.name: np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(Chunk)}
    values["segments"] = np.concatenate(
        [part.segments + np.array([start, 0, 0]) for part, start in zip(parts, starts, strict=False)]
    ).astype(np.int64)
    return Chunk(**values)
