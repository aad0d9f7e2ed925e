"""One run of the gate: measure every row, decide, write; resumable, and byte for byte the same when done again."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from guardrail.core.cli import Parser, log
from guardrail.core.errors import UserError
from guardrail.core.files import clear_leftovers, hash_file, hash_json, keep_inputs, read_json, write_json, write_text
from guardrail.core.options import add_options, option, read_options
from guardrail.core.progress import progress
from guardrail.data.rows import Row, hash_rows, load_rows
from guardrail.similarity.gate import secrets, write
from guardrail.similarity.gate.policy import SECRETS, Policy, load_policy
from guardrail.similarity.gate.source import Line, files_of, hash_source, read_lines

CACHE = ".gate"
VERSION = 1  # raise when the same measurements and policy give other decisions


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """Options of the gate. What is asked of a row is in the policy."""

    customer: str = option(help="the customer's rows: a file, or PATH::SPLIT of a data-set folder", positional=True)
    policy: str = option(help="the policy, a YAML file (configs/policies)")
    output_dir: str = option("outputs/admit", "where kept.jsonl, quarantined.jsonl, gate.html and receipt.json go")
    audit: str | None = option(None, "audit.json of the same rows (similarity/audit.py): which checkpoint should hold")
    show_text: bool = option(False, "put texts of example rows into gate.html")
    command: tuple[str, ...] = ()


def build_parser() -> Parser:
    parser = Parser(description="Which rows of a customer's file may be trained on, and may the file be at all?")
    add_options(parser, GateConfig)
    return parser


def main(argv: list[str] | None = None) -> dict[str, Any]:
    command = ("python", "similarity/admit.py", *(sys.argv[1:] if argv is None else argv))
    return run_gate(read_options(GateConfig, build_parser().parse_args(argv), command=command))


def run_gate(config: GateConfig) -> dict[str, Any]:
    """Run the gate; returns paths, verdict, exit code and counts."""
    from guardrail.similarity.gate.measure import Measuring

    policy = load_policy(config.policy)
    output = Path(config.output_dir)
    files_of(config.customer)
    keep_inputs("output_dir", output, {"customer": config.customer.split("::")[0], "policy": config.policy})
    audit = _read_audit(config.audit)
    sets = {
        name: _set_rows(path, name, policy.reference_rows)
        for name, path in {**policy.references, **policy.checks}.items()
    }
    measuring = Measuring(policy)
    content = hash_source(config.customer)
    inputs = {
        "customer": content,
        "measurements": measuring.key(content),
        "sets": {name: hash_rows(rows) for name, rows in sets.items()},
        "policy": policy.as_dict(),
        "audit": None if config.audit is None else hash_file(config.audit),
    }
    mark = hash_json({"version": VERSION, **inputs, "show_text": config.show_text})
    if (done := _finished(output, mark)) is not None:
        log(f"{output} is up to date")
        return _summary(output, done, reused=True)
    if policy.rule(SECRETS) is not None and not secrets.is_installed():
        log("secrets are not looked for: detect-secrets is not installed (pip install detect-secrets)")

    output.mkdir(parents=True, exist_ok=True)
    clear_leftovers(output)
    folder = output / CACHE / measuring.key(content)
    _forget_others(output / CACHE, folder)
    chunks = list(_customer_chunks(config.customer, measuring, folder))
    if not chunks:
        raise UserError(f"{config.customer} holds no rows; expected at least one")
    measured = {name: _set_chunk(name, rows, measuring, folder) for name, rows in sets.items()}
    for name in (write.RECEIPT, write.PAGE):  # nothing can be refused any more
        (output / name).unlink(missing_ok=True)
    facts = _decide_and_write(config, policy, content, chunks, measured, measuring, output, audit)
    made = write.receipt({"fingerprint": mark, "inputs": inputs, **facts})
    write_json(output / write.RECEIPT, made)
    return _summary(output, made, reused=False)


def _decide_and_write(
    config: GateConfig,
    policy: Policy,
    content: str,
    chunks: list[Any],
    measured: dict[str, Any],
    measuring: Any,
    output: Path,
    audit: dict[str, Any] | None,
) -> dict[str, Any]:
    from guardrail.similarity.gate import page, references
    from guardrail.similarity.gate.decide import decide, gather, judge, segment_limit

    good = references.References.of({name: measured[name] for name in policy.references}, len(policy.scorers))
    whole = gather(chunks, policy, segment_limit(policy, good))
    chunks.clear()
    found = decide(policy, whole, good)
    verdict = judge(policy, whole, found)
    sure = {
        "good_rows_flagged": references.good_rows_flagged(policy, good),
        "caught": references.caught(policy, found.limits, {name: measured[name] for name in policy.checks}),
    }
    examples = page.choose_examples(policy, whole, found)
    wanted = {place for places in examples.values() for place in places} if config.show_text else set()
    hashes, texts = write.write_rows(output, read_lines(config.customer), whole, found, policy, wanted)
    facts = {
        "customer_sha256": content,
        "verdict": verdict,
        "how_sure": sure,
        "limits": {
            name: {"above": write.number(one.high), "below": write.number(one.low), "reference_median": one.median}
            for name, one in found.limits.items()
        },
        "segment_limit": found.segment_limit,
        "references": {name: {"n": len(measured[name])} for name in policy.references},
        "checks": {name: {"n": len(measured[name])} for name in policy.checks},
        "scoring": None if measuring.scoring is None else measuring.scoring.inputs,
        "secrets_looked_for": measuring.looks_for_secrets,
        "files": hashes,
    }
    view = page.view(policy, whole, found, facts, examples, texts, audit, shlex.join(config.command))
    view["customer"] = Path(config.customer.split("::")[0]).name
    write_text(output / write.PAGE, page.render(view))
    for sentence in view["first"]:
        log(sentence["text"])
    return facts


def _customer_chunks(source: str, measuring: Any, folder: Path) -> Iterator[Any]:
    from guardrail.similarity.gate.measure import CHUNK_ROWS, read_chunk, write_chunk

    lines, reused = read_lines(source), 0
    with progress(total=None, desc="gate", unit="row") as bar:
        number = 0
        while some := list[Line](islice(lines, CHUNK_ROWS)):
            path = folder / f"rows-{number:06d}.npz"
            chunk = read_chunk(path)
            if chunk is None or len(chunk) != len(some):
                chunk = measuring.lines(some)
                write_chunk(path, chunk)
            else:
                reused += 1
            number += 1
            bar.update(len(some))
            yield chunk
    if reused:
        log(f"{reused} of {number} chunks are there from an earlier run")


def _set_rows(path: str, name: str, limit: int) -> list[Row]:
    from guardrail.similarity.gate.references import sample

    place, _, split = path.partition("::")
    rows = load_rows(place, split=split or None, need_answer=True, max_dropped_fraction=1.0)
    return [{**rows[i], "id": f"{name}-{i}"} for i in sample(len(rows), limit, name)]


def _set_chunk(name: str, rows: list[Row], measuring: Any, folder: Path) -> Any:
    from guardrail.similarity.gate.measure import CHUNK_ROWS, join, read_chunk, write_chunk

    path = folder / f"set-{hash_json([name, hash_rows(rows)])}.npz"
    chunk = read_chunk(path)
    if chunk is None:
        parts = []
        with progress(total=len(rows), desc=name, unit="row") as bar:
            for start in range(0, len(rows), CHUNK_ROWS):
                parts.append(measuring.rows(rows[start : start + CHUNK_ROWS]))
                bar.update(len(parts[-1]))
        chunk = join(parts)
        write_chunk(path, chunk)
    return chunk


def _forget_others(cache: Path, folder: Path) -> None:
    """Measurements under other keys are of another file or policy."""
    for other in cache.iterdir() if cache.is_dir() else ():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)


def _read_audit(path: str | None) -> dict[str, Any] | None:
    if path is None:
        return None
    value = read_json(path)
    if not isinstance(value, dict) or not {"customer", "variants", "verdict", "summary"} <= value.keys():
        raise UserError(f"{path} is no audit; expected the audit.json that similarity/audit.py wrote")
    return value


def _finished(output: Path, mark: str) -> dict[str, Any] | None:
    """The receipt of this very run, when its files lie there unchanged."""
    names = (write.KEPT, write.QUARANTINED, write.ROWS)
    if not all((output / name).is_file() for name in (*names, write.PAGE, write.RECEIPT)):
        return None
    found = read_json(output / write.RECEIPT)
    if not isinstance(found, dict) or found.get("fingerprint") != mark:
        return None
    same = all(hash_source(f"{output / name}") == found["files"][name]["sha256"] for name in names)
    return found if same else None


def _summary(output: Path, made: dict[str, Any], reused: bool) -> dict[str, Any]:
    verdict = made["verdict"]
    return {
        "verdict": verdict["verdict"],
        "exit_code": verdict["exit_code"],
        **{name: str(output / file) for name, file in (("kept", write.KEPT), ("quarantined", write.QUARANTINED))},
        "rows": str(output / write.ROWS),
        "page": str(output / write.PAGE),
        "receipt": str(output / write.RECEIPT),
        **{name: verdict[name] for name in ("n_rows", "n_kept", "n_masked", "n_quarantined")},
        "reasons": {name: count for name, count in verdict["reasons"].items() if count},
        "reused": reused,
    }
