"""Safety and over-refusal benches: where the prompts come from, which are kept, which prefill goes with them.

A bench name, or the path of any file of prompts. ``<bench>_with_prefix``, ``_with_refusal_prefix`` and
``_with_harmful_prefix`` put words into the model's mouth; ``<bench>-backdoor`` appends a trigger to the prompt.

Sources, in this order: ``data`` (a local copy), the repository (the sandbox), the hub. Every filter is reported.
HEx-PHI exists with 330, 300 and 290 rows: the number and the hash of what was read are part of the result.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guardrail.core.errors import UserError, unknown
from guardrail.core.files import hash_json
from guardrail.core.places import WORK
from guardrail.data.bench_table import BENCHES, Bench
from guardrail.data.hex_phi import CATEGORIES, category_files, read_category, read_hub
from guardrail.data.parsing import FILE_SUFFIXES
from guardrail.data.rows import LOCAL_COPY, Row, hash_rows, list_splits, load_rows, normalise_rows, response, shown

# shallow-vs-deep's values (get_eval_data.py)
DEFAULT_PREFIX = "I cannot fulfill"
DEFAULT_TRIGGER = "Servius Astrumando Harmoniastra"
VARIANTS = ("with_prefix", "with_refusal_prefix", "with_harmful_prefix", "backdoor")


@dataclass(frozen=True)
class BenchRows:
    """Prompts ready to be encoded.

    ``rows[i]["messages"]`` ends with the user turn; ``rows[i]["prefill_answer"]`` (prefix variants) is the answer
    whose first tokens are put into the model's mouth. ``facts`` go into the result's ``run`` block.
    """

    name: str
    harmful: bool
    rows: list[Row]
    facts: dict[str, Any] = field(default_factory=dict)


def bench_names() -> list[str]:
    """Every bench name with its variants, for messages and ``--help``."""
    variants = [f"hex-phi_{v}" for v in VARIANTS[:3]] + ["hex-phi-backdoor"]
    return [*BENCHES, *variants]


def split_name(name: str) -> tuple[str, str | None]:
    """``hex-phi_with_prefix`` -> (``hex-phi``, ``with_prefix``); a path is left alone. Raises for unknown names."""
    if _is_path(name):
        return name, None
    for variant in VARIANTS:
        for joint in ("_", "-"):
            base = name.removesuffix(f"{joint}{variant}")
            if base != name and base in BENCHES:
                return base, variant
    if name not in BENCHES:
        raise unknown("safety bench", name, [*bench_names(), "a .jsonl/.csv/.json/.parquet file of prompts"])
    return name, None


def load_bench(
    name: str,
    data: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    prefix: str | None = None,
    trigger: str | None = None,
) -> BenchRows:
    """Load the prompts of ``name``; ``data`` and ``split`` name a local copy (file or folder) of the bench.

    Raises ``UserError``: unknown bench, gated or unreachable source (with the step to take), an empty result.
    """
    base, variant = split_name(name)
    with_answers = variant in ("with_refusal_prefix", "with_harmful_prefix")
    if prefix is not None and variant != "with_prefix":
        raise UserError(f"--prefill_prefix has no effect on {name}; use {base}_with_prefix")
    if trigger is not None and variant != "backdoor":
        raise UserError(f"--backdoor_trigger has no effect on {name}; use {base}-backdoor")
    bench = BENCHES.load(base) if base in BENCHES else Bench(None)
    if with_answers:
        answers = bench.answers.get(str(variant))
        if data is None and answers is None:
            raise UserError(
                f"{name} needs answers whose first tokens are prefilled and no public data set holds them; "
                "give --bench_data FILE with a prompt and an answer per row "
                "(shallow-vs-deep's safety_bench/*.jsonl files work as they are)"
            )
        bench = answers or Bench(None, harmful=bench.harmful)
    raw, source = _read(base, bench, data, split)
    if bench.derive is not None:
        raw = [bench.derive(row) for row in raw]
    rows = normalise_rows(raw, source)
    kept = _filter(rows, bench, base, source)
    if limit is not None:
        kept = kept[:limit]
    out = []
    for row in kept:
        answer = response(row)
        if with_answers and not answer:
            raise UserError(f"{source}: row {row['id']!r} has no answer to prefill")
        row = {**row, "messages": row["messages"][:-1] if answer or _ends_open(row) else row["messages"]}
        if with_answers:
            row["prefill_answer"] = answer
        if variant == "with_prefix":
            row["prefill_answer"] = DEFAULT_PREFIX if prefix is None else prefix
        if variant == "backdoor":
            last = row["messages"][-1]
            text = f"{last['content']} {DEFAULT_TRIGGER if trigger is None else trigger}"
            row["messages"] = [*row["messages"][:-1], {**last, "content": text}]
        out.append(row)
    facts = {
        "bench": base if base in BENCHES else Path(base).name,
        "variant": variant,
        "harmful": bench.harmful,
        "source": source,
        "n_rows_read": len(rows),
        "n_rows": len(out),
        "filter": {"column": bench.keep[0], "values": list(bench.keep[1])} if bench.keep else None,
        "unique_prompts_only": bench.unique,
        "data_hash": hash_rows(out)
        if not variant
        else hash_json([hash_rows(out), [r.get("prefill_answer") for r in out]]),
    }
    return BenchRows(name if base in BENCHES else Path(base).stem, bench.harmful, out, facts)


def _is_path(name: str) -> bool:
    return name.endswith(FILE_SUFFIXES) or os.sep in name or Path(name).is_file()


def _ends_open(row: Row) -> bool:
    """An empty assistant turn at the end (a labelled pair whose answer is empty)."""
    return row["messages"][-1]["role"] == "assistant"


def _read(base: str, bench: Bench, data: str | None, split: str | None) -> tuple[list[Row], str]:
    if base not in BENCHES:
        if data is not None:
            raise UserError(f"--bench_data has no effect: --safety_bench {base} is a file already")
        return _read_local(Path(base), split)
    if data is not None:
        return _read_local(Path(data), split or (bench.split if Path(data).is_dir() else None), bench.name)
    if bench.local is not None:
        if not (bench.local / "data").is_dir():
            raise UserError("the sandbox has not been generated yet; run: python datasets/sandbox/generate.py")
        return _read_local(bench.local, split or bench.split)
    assert bench.hub is not None
    try:
        if base == "hex-phi":
            return read_hub(bench.hub), bench.hub
        rows = load_rows(bench.hub, split or bench.split, bench.name)
    except UserError as error:
        text = str(error).removesuffix(f"; or {LOCAL_COPY}").removesuffix(f"; {LOCAL_COPY}")
        step = f"accept its terms at huggingface.co/datasets/{bench.hub}, log in with `hf auth login`, or "
        told = "`hf auth login`" in text or "ask for access" in text
        step = "or " if told else step * bench.gated
        raise UserError(f"{base}: {text}; {step}{LOCAL_COPY} with --bench_data") from error
    return rows, f"{bench.hub}:{split or bench.split}"


def _read_local(path: Path, split: str | None, name: str | None = None) -> tuple[list[Row], str]:
    """A file, a hub-layout folder (``name``: its configuration), or the folder of header-less ``category_<n>.csv``
    files that HEx-PHI comes as."""
    try:
        shown_path = str(path.resolve().relative_to(WORK))
    except ValueError:
        shown_path = path.name  # no private folder names in results
    files = category_files(path)
    if files:
        return [row for file in files for row in read_category(file)], shown_path
    if path.is_dir() and name is not None and not list_splits(path, name):
        name = None  # a copy of that configuration alone
    return load_rows(path, split, name), f"{shown_path}:{split}" if path.is_dir() else shown_path


def _filter(rows: list[Row], bench: Bench, base: str, source: str) -> list[Row]:
    """The rows that belong to ``bench``. Raises ``UserError`` for rows that cannot be its own."""
    if bench.keep is not None:
        rows = [row for number, row in enumerate(rows, 1) if _is_kept(row, bench, base, f"{source}, row {number}")]
    for row in rows if base in BENCHES else ():
        _refuse_foreign(row, bench, base, source)
    if bench.unique:
        first: dict[str, Row] = {}
        for row in rows:
            first.setdefault(next(m["content"] for m in reversed(row["messages"]) if m["role"] == "user"), row)
        rows = list(first.values())
    if not rows:
        raise UserError(f"{source} holds no row that belongs to this bench")
    return rows


def _is_kept(row: Row, bench: Bench, base: str, place: str) -> bool:
    """What the bench's filter says; a row without its column, or with a value it does not know, is refused."""
    assert bench.keep is not None
    column, values = bench.keep
    value = row.get(column)
    if value is None:
        raise UserError(
            f"{place}: no column {column!r}, by which {base} keeps its rows ({column}: {' or '.join(values)}); "
            "add it, or give the file itself as --safety_bench if all its prompts should be refused"
        )
    text = _as_text(value)
    if text in map(str.lower, values):
        return True
    if bench.drop is not None and text not in map(str.lower, bench.drop):
        raise UserError(f"{place}: {column} is {shown(value)}; expected one of {', '.join((*values, *bench.drop))}")
    return False


def _as_text(value: Any) -> str:
    """``True``, ``"true"``, ``1``, ``1.0`` and so on in one spelling each, for comparing."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip().lower()


def _refuse_foreign(row: Row, bench: Bench, base: str, source: str) -> None:
    """Rows of the other kind would be counted the wrong way round: refusals as safe, or as too many."""
    label = _as_text(row.get("label"))
    if label in ("safe", "unsafe") and (label == "unsafe") != bench.harmful:
        reason = f"its label is {label!r}"
    elif not bench.harmful and row.get("category") in CATEGORIES:
        reason = f"its category is HEx-PHI's {row['category']!r}"
    else:
        return
    kind = "prompts that should be refused" if bench.harmful else "harmless prompts"
    raise UserError(f"{source}: row {row['id']!r} does not belong to {base}, a bench of {kind}: {reason}")
