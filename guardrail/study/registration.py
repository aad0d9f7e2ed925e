"""When was the primary comparison declared? Every declaration under which a study was started, and what was known then.

`outputs/<study>/primary.json` keeps them, with how many fine-tuned models had been judged at that time. Whoever deletes
that file can hide a change; whoever reads the report can ask for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from guardrail.core.files import hash_json, read_json, write_json
from guardrail.core.provenance import utc_now
from guardrail.study.declaration import Primary, digest_of
from guardrail.study.records import FAILED
from guardrail.study.records import FOLDER as RECORDS

FILE = "primary.json"
JUDGED = ("harmfulness.cells.", "probe_harmfulness.cells.")  # records of judged answers of fine-tuned models


def n_judged(folder: Path) -> int:
    """How many fine-tuned models of the study have been judged, under whatever settings."""
    records = folder / RECORDS
    found = [path for path in records.iterdir() if path.name.startswith(JUDGED)] if records.is_dir() else []
    done = [path for path in found if any(file.name != FAILED for file in path.glob("*.json"))]
    return len({path.name.partition(".cells.")[2] for path in done})


def history(folder: Path) -> list[dict[str, Any]]:
    """The declarations under which the study was started, oldest first."""
    path = folder / FILE
    return list(read_json(path)["declarations"]) if path.is_file() else []


def declare(folder: Path, primary: Primary | None, seeds: Iterable[int]) -> list[dict[str, Any]]:
    """Note the declaration, or that there is none any more, unless it is the last one noted; returns all of them.

    Seeds are noted too: who adds some after seeing results has looked more than once.
    """
    entries = history(folder)
    now = {
        "digest": digest_of(primary),
        "declared": None if primary is None else dataclasses.asdict(primary),
        "seeds": list(seeds),
    }
    last = {key: entries[-1][key] for key in now} if entries else None
    if hash_json(last) == hash_json(now) or (not entries and primary is None):
        return entries
    entries.append({**now, "n_judged": n_judged(folder), "time_utc": utc_now()})
    write_json(folder / FILE, {"declarations": entries})
    return entries


def standing(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """When the last declaration was made: ``status`` and a sentence.

    ``before``: no result existed. ``after``: results existed already, and nothing was declared before.
    ``changed``: another declaration was in force when results existed. Seeds that were added later are said, too.
    """
    if not entries:
        return {"status": "none", "digest": None, "earlier": [], "note": "No primary comparison was declared."}
    digest = entries[-1]["digest"]
    start = next(i for i, entry in enumerate(entries) if all(e["digest"] == digest for e in entries[i:]))
    made, before = entries[start], [entry for entry in entries[:start] if entry["digest"] is not None]
    earlier = list(dict.fromkeys(entry["digest"] for entry in before))
    results = f"{made['n_judged']} fine-tuned models had been judged"
    if not made["n_judged"]:
        status, note = "before", f"Declared before any result existed ({made['time_utc']})."
    elif before:
        status = "changed"
        what = f"is {digest}" if digest else "was withdrawn"
        note = f"The declaration was CHANGED when {results}: it was {before[-1]['digest']} and {what}."
    else:
        status, note = "after", f"Declared only when {results}: read it as exploratory."
    seeds = made["seeds"]
    added = [s for entry in entries[start + 1 :] if entry["n_judged"] for s in entry["seeds"] if s not in seeds]
    if added:
        note += f" Seeds added after results existed: {', '.join(map(str, dict.fromkeys(added)))}."
    return {"status": status, "digest": digest, "earlier": earlier, "note": note}
