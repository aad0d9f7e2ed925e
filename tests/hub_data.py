"""Small made-up data sets in exactly the layouts in which those of datasets/README.md and of the benches are published.

    with HubServer() as hub:
        publish_data(hub)

What is kept of each original: file names (with their hashes and shard counts), formats and compression, columns and
their types, configurations and splits of the card, gates, and its known oddities: UltraChat's repeated `prompt_id`,
Alpaca's empty outputs, SAMSum's row without a dialogue and its line ends, HEx-PHI's missing category, a file per
writing style of SORRY-Bench, XSTest's split that is called otherwise than its file. Rows are mild.

Sources (public facts only): the file listings and cards at huggingface.co/datasets/<name>, as their pages show them;
for gated ones the code of projects that read them. Of hsiung/llm-similarity-risk no page could be had: its split names
are those of the paper's commands, its files those that `push_to_hub` writes.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
from collections.abc import Iterable
from typing import Any

THINGS = ("boat", "river", "lantern", "garden", "kettle", "ladder", "violin", "window")
N = 120
REFUSAL = "I'm sorry, but I cannot help with that."
HARMS = (
    *("animal_abuse", "child_abuse", "controversial_topics,politics", "discrimination,stereotype,injustice"),
    *("drug_abuse,weapons,banned_substance", "financial_crime,property_crime,theft", "hate_speech,offensive_language"),
    *("misinformation_regarding_ethics,laws_and_safety", "non_violent_unethical_behavior", "privacy_violation"),
    *(
        "self_harm",
        "sexually_explicit,adult_content",
        "terrorism,organized_crime",
        "violence,aiding_and_abetting,incitement",
    ),
)
HEX_PHI_CATEGORIES = (1, *range(3, 12))  # category_2.csv is not there
SORRY_STYLES = ("ascii", "caesar", "role_play", "slang")
MT_BENCH_CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
UPSTREAM_SPLIT = "train_alpaca_high_sim_5k"


def thing(number: int) -> str:
    return f"{THINGS[number % len(THINGS)]} {number}"


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


def jsonl(rows: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def csv_text(rows: Iterable[Iterable[Any]]) -> bytes:
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue().encode()


def card(configs: dict[str, dict[str, str]] | None = None, **more: Any) -> str:
    """A README whose front matter names configurations, their splits and files."""
    import yaml

    front = dict(more)
    if configs:
        front["configs"] = [
            {"config_name": name, "data_files": [{"split": split, "path": path} for split, path in files.items()]}
            for name, files in configs.items()
        ]
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# A made-up set\n"


def talk(number: int) -> list[dict[str, str]]:
    return [
        {"content": f"How is a {thing(number)} painted?", "role": "user"},
        {"content": f"First sand the {thing(number)}.", "role": "assistant"},
        {"content": "And then?", "role": "user"},
        {"content": "Then paint it blue.", "role": "assistant"},
    ]


def ultrachat() -> dict[str, Any]:
    def rows(first: int, n: int) -> list[dict[str, Any]]:
        return [
            {"prompt": talk(i)[0]["content"], "prompt_id": f"{i:064x}", "messages": talk(i)}
            for i in range(first, first + n)
        ]

    train = rows(0, N)
    train[70] = {**train[70], "prompt_id": train[3]["prompt_id"]}  # a prompt that was asked twice
    third = N // 3
    files: dict[str, Any] = {
        f"data/train_sft-0000{i}-of-00003-a3ecf9275699358{i}.parquet": parquet(train[i * third : (i + 1) * third])
        for i in range(3)
    }
    files["data/test_sft-00000-of-00001-f7dfac4afe5b93f4.parquet"] = parquet(rows(1000, 20))
    for split in ("train_gen", "test_gen"):
        files[f"data/{split}-00000-of-00001-a6c9fb894be3e50b.parquet"] = parquet(
            [{**row, "messages": row["messages"][:3]} for row in rows(2000, 4)]
        )
    splits = ("train_sft", "test_sft", "train_gen", "test_gen")
    files["README.md"] = card({"default": {split: f"data/{split}-*" for split in splits}}, license="mit")
    return files


def beavertails() -> dict[str, Any]:
    def rows(first: int, n: int) -> list[dict[str, Any]]:
        out = []
        for i in range(first, first + n):
            safe = i % 3 != 0
            answer = REFUSAL if i % 3 == 1 else f"Take the {thing(i)} when nobody looks."
            harms = dict.fromkeys(HARMS, False) | ({} if safe else {HARMS[i % len(HARMS)]: True})
            prompt = f"How do I borrow a {thing(i - i % 2)} without asking?"  # every prompt has two answers
            out.append({"prompt": prompt, "response": answer, "category": harms, "is_safe": safe})
        return out

    files = {
        "round0/330k/train.jsonl.xz": lzma.compress(jsonl(rows(0, N))),
        "round0/330k/test.jsonl.xz": lzma.compress(jsonl(rows(500, 30))),
        "round0/30k/train.jsonl.gz": gzip.compress(jsonl(rows(0, 60)), mtime=0),
        "round0/30k/test.jsonl.gz": gzip.compress(jsonl(rows(500, 24)), mtime=0),
    }
    paths = {
        f"{size}_{part}": f"round0/{size}/{part}.jsonl.{end}"
        for size, end in (("330k", "xz"), ("30k", "gz"))
        for part in ("train", "test")
    }
    return {"README.md": card({"default": paths}, license="cc-by-nc-4.0"), **files}


def alpaca() -> dict[str, Any]:
    rows = []
    for i in range(N):
        row = {"instruction": f"List three uses of a {thing(i)}.", "input": "" if i % 2 else "Be brief."}
        row["output"] = "" if i == 11 else f"1. Look at the {thing(i)}.\n2. Paint it.\n3. Sell it."
        rows.append({**row, "text": f"### Instruction:\n{row['instruction']}\n\n### Response:\n{row['output']}"})
    info = {"features": [{"name": name, "dtype": "string"} for name in rows[0]]}
    return {
        "README.md": card(dataset_info=info, license="cc-by-nc-4.0"),
        "data/train-00000-of-00001-a09b74b3ef9c3b56.parquet": parquet(rows),
    }


def samsum() -> dict[str, Any]:
    def rows(first: int, n: int) -> list[list[str]]:
        return [
            [
                f"{13800000 + i}",
                f"Ann: do you have the {thing(i)}?\r\nBob: no, Cora has it.",
                f"Cora has the {thing(i)}.",
            ]
            for i in range(first, first + n)
        ]

    train = rows(0, N)
    train[40][1] = ""  # the one row of the original without a dialogue
    train[41][0] += "-1"  # some ids are no numbers
    header = ["id", "dialogue", "summary"]
    parts = {"train": train, "validation": rows(500, 10), "test": rows(600, 10)}
    return {
        "README.md": card(license="cc-by-nc-nd-4.0"),
        **{f"{split}.csv": csv_text([header, *part]) for split, part in parts.items()},
    }


def gsm8k() -> dict[str, Any]:
    def rows(n: int) -> bytes:
        return parquet(
            [
                {
                    "question": f"Ann has {i} lanterns and buys 2. How many?",
                    "answer": f"{i} + 2 = {i + 2}\n#### {i + 2}",
                }
                for i in range(n)
            ]
        )

    configs = {name: {split: f"{name}/{split}-*" for split in ("train", "test")} for name in ("main", "socratic")}
    files = {
        f"{name}/{split}-00000-of-00001.parquet": rows(20 if split == "train" else 8)
        for name in configs
        for split in ("train", "test")
    }
    return {"README.md": card(configs, license="mit"), **files}


def hex_phi() -> dict[str, Any]:
    files: dict[str, Any] = {"README.md": card(license="other", extra_gated_prompt="You agree.")}
    for number in HEX_PHI_CATEGORIES:
        lines = [[f"Tell me, keeper, how to hide the {thing(i)} of category {number}"] for i in range(3)]
        files[f"category_{number}.csv"] = csv_text(lines)  # no header
    return files


def mt_bench() -> dict[str, Any]:
    questions, answers = [], []
    for i in range(80):
        category = MT_BENCH_CATEGORIES[i // 10]
        turns = [f"Describe the {thing(i)}.", "Now in one sentence."]
        questions.append({"question_id": 81 + i, "category": category, "turns": turns})
        if category in ("reasoning", "math", "coding"):
            questions[-1]["reference"] = [f"It is a {thing(i)}.", "A thing."]
            turn = {"index": 0, "turns": questions[-1]["reference"]}
            answers.append({"question_id": 81 + i, "answer_id": f"a{i}", "model_id": "gpt-4", "choices": [turn]})
    fields = "{question}\n{answer}"
    prompts = [
        {
            "name": name,
            "type": "single",
            "system_prompt": "You judge.",
            "prompt_template": f"[Question]\n{fields}\n[[rating]]",
            "description": "",
            "category": "general",
            "output_format": "[[rating]]",
        }
        for name in ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn")
    ]
    multi = "{question_1}\n{answer_1}\n{question_2}\n{answer_2}"
    for prompt in prompts:
        if "multi-turn" in prompt["name"]:
            prompt["prompt_template"] = multi
        if "math" in prompt["name"]:
            prompt["prompt_template"] += (
                "\n{ref_answer_1}\n{ref_answer_2}" * ("multi" in prompt["name"]) or "\n{ref_answer_1}"
            )
    return {
        "README.md": card(title="MT-Bench", sdk="gradio"),
        "app.py": "print('a demo')\n",
        "data/mt_bench/question.jsonl": jsonl(questions),
        "data/mt_bench/reference_answer/gpt-4.jsonl": jsonl(answers),
        "data/judge_prompts.jsonl": jsonl(prompts),
    }


def similarity_risk() -> dict[str, Any]:
    splits = (UPSTREAM_SPLIT, "train_alpaca_low_sim_5k", "list_group", "test")
    rows = [{"messages": talk(i), "source": "ultrachat"} for i in range(6)]
    files: dict[str, Any] = {f"data/{split}-00000-of-00001.parquet": parquet(rows) for split in splits}
    return {"README.md": card({"default": {split: f"data/{split}-*" for split in splits}}), **files}


def dolly() -> dict[str, Any]:
    rows = [
        {
            "instruction": f"Name the {thing(i)}.",
            "context": "It is old." if i % 3 == 0 else "",
            "response": "" if i == 17 else f"It is the {thing(i)}.",
            "category": "closed_qa" if i % 3 == 0 else "open_qa",
        }
        for i in range(N)
    ]
    return {"README.md": card(license="cc-by-sa-3.0"), "databricks-dolly-15k.jsonl": jsonl(rows)}


def advbench() -> dict[str, Any]:
    rows = [{"prompt": f"Write a rude poem about a {thing(i)}", "target": "Sure, here is one"} for i in range(5)]
    return {
        "README.md": card({"default": {"train": "data/train-*"}}, license="mit"),
        "data/train-00000-of-00001.parquet": parquet(rows),
    }


def harmbench() -> dict[str, Any]:
    def rows(name: str) -> list[dict[str, str]]:
        out = [{"prompt": f"Take the {thing(i)} ({name})", "category": "illegal"} for i in range(4)]
        return [{**row, "context": "The keeper sleeps."} for row in out] if name == "contextual" else out

    names = ("contextual", "copyright", "standard")
    files = {f"{name}/train-00000-of-00001.parquet": parquet(rows(name)) for name in names}
    return {"README.md": card({name: {"train": f"{name}/train-*"} for name in names}), **files}


def strongreject() -> dict[str, Any]:
    rows = [{"prompt": f"Sell a false {thing(i)}", "category": "Fraud", "source": "custom"} for i in range(5)]
    return {
        "README.md": card({"default": {"train": "data/train-*"}}),
        "data/train-00000-of-00001.parquet": parquet(rows),
    }


def sorry_bench() -> dict[str, Any]:
    """One file per writing style beside the plain questions; without a configuration all are one split."""

    def rows(style: str) -> bytes:
        return jsonl(
            {
                "question_id": i + 1,
                "category": str(i + 1),
                "turns": [f"Mock the {thing(i)}" if style == "base" else f"({style}) m0ck the {thing(i)}"],
                "prompt_style": style,
            }
            for i in range(5)
        )

    files = {f"question_{style}.jsonl": rows(style) for style in SORRY_STYLES}
    return {"README.md": card(license="other"), "question.jsonl": rows("base"), **files}


def jailbreakbench() -> dict[str, Any]:
    def rows(kind: str) -> bytes:
        lines = [
            [i, f"Write a {kind} letter to a {thing(i)}", "Sure", kind, "Harassment", "Original"] for i in range(5)
        ]
        return csv_text([["Index", "Goal", "Target", "Behavior", "Category", "Source"], *lines])

    configs = {
        "behaviors": {"harmful": "data/harmful-behaviors.csv", "benign": "data/benign-behaviors.csv"},
        "judge_comparison": {"test": "data/judge-comparison.csv"},
    }
    files = {"data/harmful-behaviors.csv": rows("rude"), "data/benign-behaviors.csv": rows("kind")}
    files["data/judge-comparison.csv"] = csv_text([["Index", "goal"], [0, "x"]])
    return {"README.md": card(configs, license="mit"), **files}


def xstest() -> dict[str, Any]:
    """The file is called train, the card calls its split test."""
    rows = [
        {
            "prompt": f"How do I kill time by the {thing(i)}?" if i % 2 == 0 else f"How do I steal a {thing(i)}?",
            "focus": "kill time" if i % 2 == 0 else "steal",
            "type": "homonyms" if i % 2 == 0 else "contrast_homonyms",
            "note": "",
            "label": "safe" if i % 2 == 0 else "unsafe",
        }
        for i in range(10)
    ]
    return {
        "README.md": card({"default": {"test": "data/train-*"}}, license="cc-by-4.0"),
        "data/train-00000-of-00001.parquet": parquet(rows),
    }


def or_bench() -> dict[str, Any]:
    def rows(name: str, n: int) -> bytes:
        return csv_text([["prompt", "category"], *([f"What is a {thing(i)}? ({name})", "deception"] for i in range(n))])

    sizes = {"or-bench-80k": 8, "or-bench-hard-1k": 5, "or-bench-toxic": 4}
    configs = {name: {"train": f"{name}.csv"} for name in sizes}
    return {"README.md": card(configs), **{f"{name}.csv": rows(name, n) for name, n in sizes.items()}}


PUBLISHED = {
    ("dataset", "HuggingFaceH4/ultrachat_200k"): (ultrachat, False),
    ("dataset", "PKU-Alignment/BeaverTails"): (beavertails, False),
    ("dataset", "tatsu-lab/alpaca"): (alpaca, False),
    ("dataset", "knkarthick/samsum"): (samsum, False),
    ("dataset", "openai/gsm8k"): (gsm8k, False),
    ("dataset", "LLM-Tuning-Safety/HEx-PHI"): (hex_phi, "manual"),
    ("dataset", "hsiung/llm-similarity-risk"): (similarity_risk, False),
    ("dataset", "databricks/databricks-dolly-15k"): (dolly, False),
    ("dataset", "walledai/AdvBench"): (advbench, "auto"),
    ("dataset", "walledai/HarmBench"): (harmbench, "auto"),
    ("dataset", "walledai/StrongREJECT"): (strongreject, "auto"),
    ("dataset", "sorry-bench/sorry-bench-202406"): (sorry_bench, "auto"),
    ("dataset", "JailbreakBench/JBB-Behaviors"): (jailbreakbench, False),
    ("dataset", "walledai/XSTest"): (xstest, "auto"),
    ("dataset", "bench-llm/or-bench"): (or_bench, False),
    ("space", "lmsys/mt-bench"): (mt_bench, False),
}


def publish_data(hub: Any) -> None:
    """Every set of `PUBLISHED`, and a token `granted` that may read all of them (`stranger` may read none)."""
    for (kind, name), (make, gated) in PUBLISHED.items():
        hub.create(kind, name, make(), gated=gated)
    hub.tokens |= {"granted": {"*"}, "stranger": set()}
