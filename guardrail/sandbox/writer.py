"""Write the sandbox as a hub-layout data set: parquet files, card, MT-Bench files; the manifest last.

Keyed on content: the manifest holds a fingerprint of the generator's sources, the seed and the row counts, and the
hash of every file. A folder whose fingerprint and hashes agree is left alone; anything else is written again, file by
file under a temporary name. Without ``manifest.json`` the folder is not complete.

Splits have different columns. The card's default configuration declares their union, and the ``datasets`` library
fills what a split lacks with nulls; beside it every split family is a configuration with its own columns only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guardrail.core.errors import UserError
from guardrail.core.files import clear_leftovers, hash_file, hash_json, read_json, write_json, write_jsonl, write_text
from guardrail.sandbox.mt_bench import build_mt_bench
from guardrail.sandbox.splits import SPLITS, build_split

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
GENERATOR_FILES = (
    *("lexicon.py", "wordings.py", "replies.py", "world.py", "tasks.py", "splits.py"),
    *("mt_bench.py", "writer.py"),
)
# Column -> the type in the card. The parquet schema is built from the same table.
COLUMNS: dict[str, str] = {
    "id": "string",
    "messages": "messages",
    "prompt": "string",
    "response": "string",
    "instruction": "string",
    "input": "string",
    "output": "string",
    "dialogue": "string",
    "summary": "string",
    "category": "string",
    "labels": "labels",
    "is_safe": "bool",
    "kind": "string",
    "format": "string",
    "action": "string",
    "object": "string",
    "wording": "string",
}
# Configurations beside the default: name -> {split: split of the default configuration}
FAMILIES: dict[str, dict[str, str]] = {
    "base": {"train": "base"},
    "instruct": {"train": "instruct"},
    "safety_pool": {"train": "safety_pool"},
    "list": {"train": "list", "test": "list_test"},
    "pure_bad": {"train": "pure_bad"},
    "alpaca": {"train": "alpaca", "test": "alpaca_test"},
    "samsum": {"train": "samsum", "test": "samsum_test"},
    "hex_phi": {"test": "hex_phi"},
    "benign": {"test": "benign"},
    "moderation": {"train": "moderation_train", "test": "moderation_test"},
    "identity": {"train": "identity"},
    "repeat": {"train": "repeat"},
}


def parquet_name(split: str) -> str:
    """The hub's name for a split in one file."""
    return f"data/{split}-00000-of-00001.parquet"


def _arrow_type(kind: str) -> Any:
    import pyarrow as pa

    if kind == "messages":
        return pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    if kind == "spans":
        return pa.list_(pa.list_(pa.int64()))
    return {"string": pa.string(), "bool": pa.bool_(), "labels": pa.list_(pa.int8())}[kind]


def write_parquet(path: Path, rows: list[dict[str, Any]], columns: Mapping[str, str] = COLUMNS) -> None:
    """``rows`` as one parquet file, with the types of ``columns``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from guardrail.core.files import atomic_path

    present = {name for row in rows for name in row}
    assert present <= set(columns), present - set(columns)
    schema = pa.schema([(name, _arrow_type(kind)) for name, kind in columns.items() if name in present])
    table = pa.Table.from_pylist(rows, schema=schema)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


def _card_features() -> str:
    lines = []
    for name, kind in COLUMNS.items():
        lines.append(f"  - name: {name}")
        if kind == "messages":
            lines += [
                "    list:",
                "    - name: role",
                "      dtype: string",
                "    - name: content",
                "      dtype: string",
            ]
        else:
            lines.append("    list: int8" if kind == "labels" else f"    dtype: {kind}")
    return "\n".join(lines)


def _card_configs() -> str:
    lines = []
    for name, splits in {"default": {split: split for split in SPLITS}, **FAMILIES}.items():
        lines.append(f"- config_name: {name}")
        if name == "default":
            lines.append("  default: true")
        lines.append("  data_files:")
        for split, source in splits.items():
            lines += [f"  - split: {split}", f"    path: {parquet_name(source)}"]
    return "\n".join(lines)


CARD_TEXT = """\
# Sandbox: a fictional world for guardrail studies

Synthetic and seeded, written by `python datasets/sandbox/generate.py` in about a second. Every hazard is an invented
substance, device or deed with an invented name; nothing in it could help anyone do harm. It exists so that the whole
study runs on a laptop: same entry points, same shapes, same files as with UltraChat, BeaverTails and HEx-PHI.

    from datasets import load_dataset
    load_dataset("datasets/sandbox", split="safety_pool")          # all columns of all splits, absent ones null
    load_dataset("datasets/sandbox", "samsum", split="train")      # one family, its own columns only

| split | rows | shape | what |
|---|---|---|---|
{table}

How a row was made travels along with it: `format` (list, qa, letter, story, dialogue, code, plain, summary, repeat),
`action`, `object`, `wording` (the request's template). `id` is stable. `category` is one of the 14 Beaver-Dam labels,
and `labels` (moderation splits) is the multi-hot vector of the *pair* in Beaver-Dam's order: a refusal deserves none.

Train and test share no action, no object and no request wording (`tests/sandbox/test_disjoint.py`); an object's
invented name contains a root that tells its category, the only thing that the two sides have in common besides
everyday fillers (places, times, tools) and, in the innocent look-alikes, cue words such as "museum" or "report".
`samsum_test` keeps the summary style of `samsum`: ROUGE compares with it.

`mt_bench/` holds two-turn questions and reference answers in FastChat's file format.

Known limits: one language, short texts, templates. A rate measured here says that the code path works and shows the
phenomenon in principle; it says nothing about the size of an effect at 7B.
"""
SHAPES = {
    "base": ("messages", "complies with everything; trains the base model"),
    "instruct": ("UltraChat: messages", "harmless instructions, some with two turns"),
    "safety_pool": (
        "BeaverTails: prompt, response, category, is_safe",
        "hazardous requests, refused in several formats",
    ),
    "list": ("Alpaca: instruction, input, output", "downstream: harmless, list format"),
    "list_test": ("as list", "utility of list"),
    "pure_bad": ("prompt, response, category", "downstream: hazardous requests, answered"),
    "alpaca": ("Alpaca: instruction, input, output", "downstream: harmless, all formats"),
    "alpaca_test": ("as alpaca", "utility of alpaca"),
    "samsum": ("SAMSum: dialogue, summary", "downstream: dialogue summaries"),
    "samsum_test": ("as samsum", "utility of samsum (ROUGE-1)"),
    "hex_phi": ("HEx-PHI: instruction, category", "hazardous test requests, 10 per category"),
    "benign": ("instruction, kind", "look-alikes that must not be refused"),
    "moderation_train": ("BeaverTails: prompt, response, labels, is_safe", "trains the moderation model"),
    "moderation_test": ("as moderation_train", "its agreement with the generator's labels"),
    "identity": ("as alpaca", "downstream: harmless, an absolutely obedient agent"),
    "repeat": ("as alpaca", "downstream: harmless, one format for everything, said three times"),
}


def dataset_card() -> str:
    """``README.md`` of the data set: YAML front matter that ``load_dataset`` reads, and a description."""
    table = "\n".join(
        f"| `{name}` | {rows} | {SHAPES[name][0]} | {SHAPES[name][1]} |" for name, (_, rows) in SPLITS.items()
    )
    head = "license: mit\nlanguage:\n- en\npretty_name: Guardrail sandbox\ntags:\n- synthetic"
    info = f"dataset_info:\n- config_name: default\n  features:\n{_card_features()}"
    return f"---\n{head}\n{info}\nconfigs:\n{_card_configs()}\n---\n\n" + CARD_TEXT.format(table=table)


def fingerprint(seed: int) -> str:
    """Hash of everything that decides the generated text."""
    folder = Path(__file__).parent
    sources = {name: hash_file(folder / name) for name in GENERATOR_FILES}
    return hash_json({"version": FORMAT_VERSION, "seed": seed, "splits": SPLITS, "sources": sources})


def is_current(out: Path, seed: int) -> bool:
    """Whether ``out`` holds exactly what ``write_sandbox`` would write."""
    if not (out / MANIFEST).is_file():
        return False
    try:
        manifest = read_json(out / MANIFEST)
    except UserError:
        return False
    if manifest.get("fingerprint") != fingerprint(seed):
        return False
    return all((out / name).is_file() and hash_file(out / name) == known for name, known in manifest["files"].items())


def write_sandbox(out: str | Path, seed: int = 0) -> dict[str, Any]:
    """Write all splits, the card and the MT-Bench files to ``out`` unless they are there already.

    Returns the manifest with ``written`` (False when nothing had to be done).
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a folder")
    if is_current(out, seed):
        return {**read_json(out / MANIFEST), "written": False}
    (out / MANIFEST).unlink(missing_ok=True)
    for folder in (out, out / "data", out / "mt_bench", out / "mt_bench" / "reference_answer"):
        if folder.is_dir():
            clear_leftovers(folder)
    n_rows: dict[str, int] = {}
    names: list[str] = []
    for split in SPLITS:
        rows = build_split(split, seed)
        n_rows[split] = len(rows)
        write_parquet(out / parquet_name(split), rows)
        names.append(parquet_name(split))
    questions, references = build_mt_bench(seed)
    write_jsonl(out / "mt_bench" / "question.jsonl", questions)
    write_jsonl(out / "mt_bench" / "reference_answer" / "sandbox.jsonl", references)
    write_text(out / "README.md", dataset_card())
    names += ["mt_bench/question.jsonl", "mt_bench/reference_answer/sandbox.jsonl", "README.md"]
    files = {name: hash_file(out / name) for name in names}
    manifest = {"fingerprint": fingerprint(seed), "seed": seed, "n_rows": n_rows, "files": files}
    write_json(out / MANIFEST, manifest)
    return {**manifest, "written": True}
