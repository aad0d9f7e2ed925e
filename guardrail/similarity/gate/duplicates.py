"""Near-duplicates of a whole file from small signatures: texts are never compared with each other.

A row's text (last question and answer, NFKC, case folded, white space collapsed) becomes a hash, which finds equal
rows, and a MinHash signature of its three-word shingles (datasketch; Broder 1997), whose share of equal places
estimates the Jaccard similarity of two rows with a standard error of at most 0.045. Rows that agree in one of 16 bands
of 8 places are compared (banding: Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, chapter 3): of rows with
similarity 0.9, 99.99% do. The first row of a group stays; a later one is a duplicate of the earliest like it.

Known limit: within a band's group a row is compared with the first row of the group and with the one before it.
Shapes: N rows, P places.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Any

import numpy as np

from guardrail.data.rows import Row

PLACES, BANDS, SHINGLE_WORDS = 128, 16, 3
Array = np.ndarray[Any, Any]


def normal_text(row: Row) -> str:
    """The last question and answer as they are compared."""
    text = "\n".join(message["content"] for message in row["messages"][-2:])
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def text_hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


def shingles(text: str) -> set[str]:
    """Every three words in a row, punctuation apart; of a shorter text, the text."""
    words = re.findall(r"\w+|[^\w\s]", text)
    return {" ".join(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))}


def signatures(texts: list[str]) -> Array:
    """(n, PLACES) uint32."""
    from datasketch import MinHash

    sets = [[one.encode("utf-8", "surrogatepass") for one in sorted(shingles(text))] for text in texts]
    made = MinHash.bulk(sets, num_perm=PLACES, seed=1) if sets else []
    return np.array([one.hashvalues for one in made], dtype=np.uint32).reshape(-1, PLACES)


def find_duplicates(hashes: Array, signs: Array, jaccard: float) -> Array:
    """(N,) the row that each row repeats, or -1. ``hashes`` (N,) 16 bytes, ``signs`` (N, PLACES).

    Rows without a text have an empty hash and repeat nothing.
    """
    N = len(hashes)
    out = np.full(N, -1, dtype=np.int64)
    there = np.flatnonzero(hashes != b"")
    _, first, group = np.unique(hashes[there], return_index=True, return_inverse=True)
    earliest = there[first[group]]
    out[there] = np.where(earliest == there, -1, earliest)
    rest = there[out[there] < 0]  # one of each text
    rows = PLACES // BANDS
    for band in range(BANDS):
        part = np.ascontiguousarray(signs[rest, band * rows : (band + 1) * rows])
        keys = part.view(np.dtype((np.void, part.dtype.itemsize * rows))).ravel()
        order = np.argsort(keys, kind="stable")
        ordered = rest[order]
        same = np.zeros(len(order), dtype=bool)
        same[1:] = keys[order][1:] == keys[order][:-1]
        starts = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
        later = np.flatnonzero(same)
        for partners in (ordered[starts[later]], ordered[later - 1]):
            mine = ordered[later]
            alike = (signs[mine] == signs[partners]).mean(axis=1) >= jaccard
            for row, partner in zip(mine[alike], partners[alike], strict=True):
                if out[row] < 0 or partner < out[row]:
                    out[row] = partner
    for row in np.flatnonzero(out >= 0):  # in order: the partner's own original is known by then
        if out[out[row]] >= 0:
            out[row] = out[out[row]]
    return out
