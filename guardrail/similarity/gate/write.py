"""The gate's files: kept and quarantined rows as the bytes that they were, one line of numbers per row, the receipt.

    kept.jsonl          rows to train on, in their order; a masked row has a column ``loss_mask`` more
    quarantined.jsonl   the other rows
    rows.jsonl          one line per row: its line and hash, decision, reasons, scores, percentiles; no text and no id
    receipt.json        hashes, versions, policy, limits, counts; written last

Only the first two hold text of rows (and gate.html, when --show_text True asks for it).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from guardrail.core.files import atomic_path
from guardrail.core.provenance import git_state, library_versions
from guardrail.data.loss_mask import COLUMN, mask_of, merged
from guardrail.similarity.gate import secrets
from guardrail.similarity.gate.decide import Decisions, Whole
from guardrail.similarity.gate.policy import MASK, QUARANTINE, Policy
from guardrail.similarity.gate.source import FORMAT_CODES, Line, parse

KEPT, QUARANTINED, ROWS, PAGE, RECEIPT = "kept.jsonl", "quarantined.jsonl", "rows.jsonl", "gate.html", "receipt.json"
DIGITS = 6
PACKAGES = ("datasketch", "detect-secrets")


class Hashed:
    """A binary file that is hashed while it is written."""

    def __init__(self, handle: BinaryIO) -> None:
        self.handle, self.digest, self.lines = handle, hashlib.sha256(), 0

    def write(self, content: bytes) -> None:
        self.handle.write(content)
        self.digest.update(content)
        self.lines += 1

    def facts(self) -> dict[str, Any]:
        return {"sha256": self.digest.hexdigest(), "n_rows": self.lines}


@contextlib.contextmanager
def hashed_file(path: Path) -> Iterator[Hashed]:
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        yield Hashed(handle)


def with_mask(line: Line, spans: list[tuple[int, int]]) -> bytes:
    """The line's bytes with a column ``loss_mask`` at the end; a mask that is there already is joined with it."""
    value = json.loads(line.content)
    row = parse(line).row
    assert row is not None, "a masked row was read before"
    mask = [list(span) for span in merged([*mask_of(row), *spans])]
    if isinstance(value, dict) and COLUMN not in value:
        body = line.content.rstrip()
        return body[:-1].rstrip() + f', "{COLUMN}": {json.dumps(mask)}}}'.encode()
    value = {"messages": value} if isinstance(value, list) else value
    return json.dumps({**value, COLUMN: mask}, ensure_ascii=False).encode()


def write_rows(
    output: Path, lines: Iterable[Line], whole: Whole, found: Decisions, policy: Policy, wanted: set[int]
) -> tuple[dict[str, Any], dict[int, list[dict[str, str]]]]:
    """Write the three files of rows; returns their hashes, and the conversations of the rows ``wanted`` (by place)."""
    texts: dict[int, list[dict[str, str]]] = {}
    with (
        hashed_file(output / KEPT) as kept,
        hashed_file(output / QUARANTINED) as quarantined,
        hashed_file(output / ROWS) as rows,
    ):
        for place, line in enumerate(lines):
            decision = str(found.decision[place])
            content = line.content
            if decision == MASK:
                content = with_mask(line, [(first, last) for first, last, _ in whole.masks[place]])
            (quarantined if decision == QUARANTINE else kept).write(content + line.end)
            facts = row_facts(place, line, whole, found, policy)
            rows.write(json.dumps(facts, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            if place in wanted:
                row = parse(line).row
                texts[place] = row["messages"] if row else [{"role": "line", "content": repr(line.content[:2000])}]
        assert place + 1 == len(whole), "the file changed meanwhile"
        return {KEPT: kept.facts(), QUARANTINED: quarantined.facts(), ROWS: rows.facts()}, texts


def row_facts(place: int, line: Line, whole: Whole, found: Decisions, policy: Policy) -> dict[str, Any]:
    """A row's line of rows.jsonl."""
    out: dict[str, Any] = {
        "line": line.number,
        "hash": line.hash,
        "decision": str(found.decision[place]),
        "reasons": [name for name, hits in found.reasons.items() if hits[place]],
        "risk": number(found.risk[place]),
        "scores": {name: number(whole.scores[place, i]) for i, name in enumerate(policy.scorers)},
        "percentiles": {name: number(found.percentiles[place, i]) for i, name in enumerate(policy.scorers)},
    }
    if whole.format[place]:
        out["format"] = FORMAT_CODES[whole.format[place]]
    if whole.duplicate_of[place] >= 0:
        out["duplicate_of_line"] = int(whole.lines[whole.duplicate_of[place]])
    if whole.secrets[place]:
        out["secrets"] = secrets.kinds_of(int(whole.secrets[place]))
    if place in whole.masks:
        out["segments"] = [[first, last, number(score)] for first, last, score in whole.masks[place]]
    return out


def number(value: float) -> float | None:
    """As JSON can hold it; None where there is none."""
    value = float(value)
    return round(value, DIGITS) if math.isfinite(value) else None


def versions() -> dict[str, str]:
    out = library_versions()
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            out[name] = importlib.metadata.version(name)
    return out


def receipt(facts: dict[str, Any]) -> dict[str, Any]:
    """The receipt: ``facts`` and what software this was. No time: the same input gives the same bytes."""
    return {**facts, "software": {"git": git_state(), "versions": versions()}}
