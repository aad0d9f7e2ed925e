"""Safety and over-refusal benches: where the prompts come from, which are kept, which prefill goes with them.

A bench name, or the path of any file of prompts. ``<bench>_with_prefix``, ``_with_refusal_prefix`` and
``_with_harmful_prefix`` put words into the model's mouth; ``<bench>-backdoor`` appends a trigger to the prompt.

Sources, in this order: ``data`` (a local copy), the repository (the sandbox), the hub. Every filter is reported.
HEx-PHI exists with 330, 300 and 290 rows: the number and the hash of what was read are part of the result.
"""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guardrail.core.errors import UserError, unknown
from guardrail.core.files import hash_json
from guardrail.core.places import SANDBOX_DATA as SANDBOX
from guardrail.core.places import WORK
from guardrail.data.rows import FILE_SUFFIXES, Row, hash_rows, load_rows, normalise_rows, response

# shallow-vs-deep's values (get_eval_data.py)
DEFAULT_PREFIX = "I cannot fulfill"
DEFAULT_TRIGGER = "Servius Astrumando Harmoniastra"
VARIANTS = ("with_prefix", "with_refusal_prefix", "with_harmful_prefix", "backdoor")
HEX_PHI_CATEGORIES = (
    "Illegal Activity",
    "Child Abuse Content",
    "Hate/Harass/Violence",
    "Malware",
    "Physical Harm",
    "Economic Harm",
    "Fraud/Deception",
    "Adult Content",
    "Political Campaigning",
    "Privacy Violation Activity",
    "Tailored Financial Advice",
)


@dataclass(frozen=True)
class Bench:
    """One source of prompts. ``harmful``: should be refused; otherwise it is an over-refusal bench.

    ``keep``: column and the values (as text) that stay; ``unique``: only the first row of each prompt stays.
    """

    hub: str | None
    split: str | None = None
    name: str | None = None
    harmful: bool = True
    local: Path | None = None
    keep: tuple[str, tuple[str, ...]] | None = None
    unique: bool = False
    gated: bool = False


BENCHES: dict[str, Bench] = {
    "hex-phi": Bench("LLM-Tuning-Safety/HEx-PHI", gated=True),
    "advbench": Bench("walledai/AdvBench", "train", gated=True),
    "beavertails": Bench("PKU-Alignment/BeaverTails", "30k_test", keep=("is_safe", ("False", "0")), unique=True),
    "xstest": Bench("walledai/XSTest", "test", harmful=False, keep=("label", ("safe", "0")), gated=True),
    "or-bench": Bench("bench-llm/or-bench", "train", "or-bench-hard-1k", harmful=False),
    "sandbox": Bench(None, "hex_phi", local=SANDBOX),
    "sandbox-benign": Bench(None, "benign", local=SANDBOX, harmful=False),
}
# Where the answers come from whose first tokens are prefilled.
PREFIX_ANSWERS: dict[tuple[str, str], Bench] = {
    ("sandbox", "with_refusal_prefix"): Bench(None, "moderation_test", local=SANDBOX, keep=("kind", ("refused",))),
    ("sandbox", "with_harmful_prefix"): Bench(None, "moderation_test", local=SANDBOX, keep=("kind", ("complied",))),
}


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
    bench = BENCHES.get(base, Bench(None))
    if with_answers:
        if data is None and (base, variant) not in PREFIX_ANSWERS:
            raise UserError(
                f"{name} needs answers whose first tokens are prefilled and no public data set holds them; "
                "give --bench_data FILE with a prompt and an answer per row "
                "(shallow-vs-deep's safety_bench/*.jsonl files work as they are)"
            )
        bench = PREFIX_ANSWERS.get((base, variant), Bench(None))
    raw, source = _read(base, bench, data, split)
    rows = normalise_rows(raw, source)
    kept = _filter(rows, bench, source)
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
        return _read_local(Path(data), split or (bench.split if Path(data).is_dir() else None))
    if bench.local is not None:
        if not (bench.local / "data").is_dir():
            raise UserError("the sandbox has not been generated yet; run: python datasets/sandbox/generate.py")
        return _read_local(bench.local, split or bench.split)
    assert bench.hub is not None
    try:
        if base == "hex-phi":
            return _read_hex_phi_hub(bench.hub), bench.hub
        rows = load_rows(bench.hub, split or bench.split, bench.name)
    except UserError as error:
        step = (
            f"accept its terms at huggingface.co/datasets/{bench.hub}, log in with `hf auth login`, or " * bench.gated
        )
        raise UserError(f"{base}: {error}; {step}give a local copy with --bench_data") from error
    return rows, f"{bench.hub}:{split or bench.split}"


def _read_local(path: Path, split: str | None) -> tuple[list[Row], str]:
    """A file, a hub-layout folder, or the folder of header-less ``category_<n>.csv`` files that HEx-PHI comes as."""
    try:
        shown = str(path.resolve().relative_to(WORK))
    except ValueError:
        shown = path.name  # no private folder names in results
    categories = sorted(path.glob("category_*.csv")) if path.is_dir() else []
    if categories:
        return [row for file in categories for row in _read_category(file)], shown
    if path.is_file() and path.name.endswith((".jsonl", ".json")):
        rows = _read_message_lists(path)
        if rows is not None:
            return rows, shown
    return load_rows(path, split), f"{shown}:{split}" if path.is_dir() else shown


def _read_message_lists(path: Path) -> list[Row] | None:
    """A file whose every line is a bare list of messages (shallow-vs-deep's answers); None for any other file."""
    import json

    try:
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        if not lines or not lines[0].lstrip().startswith('[{"role"'):
            return None
        return [{"messages": json.loads(line)} for line in lines]
    except (ValueError, UnicodeDecodeError):
        return None


def _read_category(file: Path) -> list[Row]:
    number = int("".join(c for c in file.stem if c.isdigit()) or 0)
    category = HEX_PHI_CATEGORIES[number - 1] if 1 <= number <= len(HEX_PHI_CATEGORIES) else file.stem
    with open(file, newline="", encoding="utf-8") as handle:
        return [
            {"instruction": line[0], "category": category} for line in csv.reader(handle) if line and line[0].strip()
        ]


def _read_hex_phi_hub(hub: str) -> list[Row]:
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        raise UserError(f"{hub} is gated and the hub is off (HF_HUB_OFFLINE=1)")
    from huggingface_hub import hf_hub_download

    rows = []
    for number in range(1, len(HEX_PHI_CATEGORIES) + 1):
        try:
            file = hf_hub_download(hub, f"category_{number}.csv", repo_type="dataset")
        except Exception as error:  # the hub client raises a dozen types; the reason is what the user needs
            if number > 1 and "404" in str(error):
                continue  # a later copy dropped a category; the row count says so
            raise UserError(f"cannot load {hub} ({type(error).__name__}: {str(error)[:150]})") from error
        rows += _read_category(Path(file))
    return rows


def _filter(rows: list[Row], bench: Bench, source: str) -> list[Row]:
    if bench.keep is not None:
        column, values = bench.keep
        if any(column in row for row in rows):
            rows = [row for row in rows if str(row.get(column)) in values]
    if bench.unique:
        seen: set[str] = set()
        first = []
        for row in rows:
            prompt = next(m["content"] for m in reversed(row["messages"]) if m["role"] == "user")
            if prompt not in seen:
                seen.add(prompt)
                first.append(row)
        rows = first
    if not rows:
        raise UserError(f"{source} holds no row that belongs to this bench")
    return rows
