"""Malformed inputs by generation: every one is refused in one line that says where and what to do, or is dealt with.

    python benchmarks/malformed.py                              # 1,200 distinct inputs, about two minutes on two cores
    python benchmarks/malformed.py --n 200 --kinds rows,flags --seed 7

Kinds: ``rows`` (json, jsonl, gz, csv, parquet), ``flags``, ``studies``, ``answers`` (files for a judge), ``stores``
(.npy, .pt, .safetensors), ``checkpoints``, ``replies`` (of a judge's server). Each goes to the ``main`` of a real entry
point in this process. Checked: no exception but ``UserError``; one line that names the file, line, flag or key and says
what was expected or what to do; no file left behind; nothing accepted that is wrong. A judge's reply is the one thing
that may not stop a run: a bad one is a failed judgement. The last line is JSON; exit code 1 if anything is found.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import http.server
import importlib
import io
import json
import os
import random
import re
import runpy
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from guardrail.core import openai_client
from guardrail.core.cli import Parser, positive_int, run
from guardrail.core.errors import UserError, unknown

REPOSITORY = Path(__file__).resolve().parents[1]
CASE_LIMIT_SEC = 60
ADVICE = re.compile(
    r"expected|did you mean|available|known: |use |give |choose|run |copy |add |write |save |see |must |needs? |"
    r"extract|without|leave|complete|cannot read|not valid|unknown|no such|lower|twice|required|not an? |is no |"
    r"hold|has "
)
WORDS = ("boat", "lamp", "river", "moonstone", "kettle", "garden", "letter", "bridge", "piano", "apple")
MIX, PREPARE, SELECT = "datasets/mix.py", "datasets/prepare.py", "similarity/get_top_similarity_dataset_reps_general.py"
JUDGES, STUDY = "guardrail.evaluation.judges.__main__", "guardrail.study.check"
SAFETY, EXTRACT = "eval_safety.py", "similarity/get_representation.py"
CLUSTER, TRAIN = "similarity/get_high_similarity_group.py", "guardrail.training.sft"
# Entry point -> the flags that it needs: what is wrong is one more, or one of another value.
FLAGGED = {
    MIX: ["--instruct=r", "--safety=r", "--task=list", "--sim=high", "--out=out"],
    PREPARE: ["alpaca", "--source=r"],
    SELECT: ["--dataset_folder=d", "--dataset_dir=r"],
    EXTRACT: ["--dataset_folder=d", "--model_id=m", "--model_name_or_path=m/m/m"],
    SAFETY: ["--model_name_or_path=m/m/m", "--save_path=out"],
    "eval_utility.py": ["--model_name_or_path=m/m/m", "--save_path=out.json", "--dataset=gsm8k"],
    CLUSTER: ["--dataset_folder=d", "--model_id=m", "--dataset_data=r", "--dataset_reps_dir=r"],
    "similarity/score_rows.py": ["--rows=r", "--out=s.jsonl"],
    "similarity/admit.py": ["missing.jsonl", "--policy=missing.yaml"],
    "similarity/audit.py": ["--customer=r", "--alignment=a=r", "--output_dir=out"],
    "__main__.py": ["--model_id=m", "--output_dir=out", "--benchmark=mt_bench"],
    JUDGES: ["missing.json", "--judge=key_word"],
    STUDY: ["missing.yaml"],
    TRAIN: ["--train_template=Alpaca", "--output_dir=out", "--model_name_or_path=m/m/m", "--train_datasets=r"],
    "guardrail.evaluation.compare": ["a.json", "b.json"],
}


@dataclass(frozen=True)
class Case:
    """One input. ``names``: texts of which the message must hold one; ``reply``: what the judge's server answers."""

    kind: str
    what: str
    target: str
    argv: tuple[str, ...]
    files: dict[str, bytes] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    reply: bytes | None = None

    def identity(self) -> str:
        content = [(name, hashlib.sha256(data).hexdigest()) for name, data in sorted(self.files.items())]
        return repr((self.target, self.argv, content, self.reply))


def words(rng: random.Random, n: int = 4) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(n)) + f" {rng.randrange(10**6)}"


# Rows ------------------------------------------------------------------------------------------------------


def good_rows(rng: random.Random, n: int = 4) -> list[dict[str, Any]]:
    return [
        {"id": f"r{i}", "prompt": words(rng), "response": words(rng), "is_safe": bool(i % 2), "note": {"n": i}}
        for i in range(n)
    ]


def lines(rows: Sequence[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def junk(rng: random.Random) -> Any:
    """A value that is no text, number or null."""
    return rng.choice([[words(rng)], {"x": words(rng)}, True, [[rng.random()]], {"text": {"deep": words(rng)}}])


def broken_row(rng: random.Random, row: dict[str, Any]) -> Any:
    """A row that JSON can hold and that is no conversation."""
    turn = {"role": "user", "content": row["prompt"]}
    other = {"role": "assistant", "content": row["response"]}
    choices: list[Callable[[], Any]] = [
        lambda: {**row, rng.choice(["prompt", "response"]): junk(rng)},
        lambda: {f"{rng.choice(WORDS)}{rng.randrange(99)}": words(rng)},
        lambda: rng.choice([rng.randrange(10**6), words(rng), [row], True, None, rng.random()]),
        lambda: {"messages": [{**turn, "role": rng.choice(WORDS)}, other]},
        lambda: {"messages": [other, turn]},
        lambda: {"messages": [turn, turn, other]},
        lambda: {"messages": [{**turn, "content": junk(rng)}, other]},
        lambda: {"messages": [{"role": "user"}, other]},
        lambda: {"messages": rng.choice([[], words(rng), {"x": words(rng)}, rng.randrange(10**6)])},
        lambda: {"data": rng.choice([words(rng), [], {"x": words(rng)}])},
        lambda: {"conversations": [{"from": rng.choice(WORDS), "value": words(rng)}]},
        lambda: {"turns": words(rng)},
        lambda: {**row, "id": junk(rng)},
        lambda: {**row, "id": "r0" if row["id"] != "r0" else "r1"},
    ]
    return rng.choice(choices)()


def broken_text(rng: random.Random, rows: list[dict[str, Any]], at: int) -> bytes:
    """Lines of which one is no JSON, or JSON that no file of rows may hold."""
    parts = [json.dumps(row) for row in rows]
    good, depth = parts[at], rng.randrange(101, 6000)
    parts[at] = rng.choice(
        [
            good[: rng.randrange(1, len(good) - 1)],
            good.replace(rng.choice([":", '"', "}"]), "", 1),
            good.replace(
                '"note"', f'"{rng.choice(["NaN", "n"])}": {rng.choice(["NaN", "Infinity", "-Infinity"])}, "x"'
            ),
            good.replace('"note"', f'"n": 1e{rng.randrange(400, 9999)}, "x"'),
            good.replace('"note"', f'"n": {"9" * rng.randrange(4400, 9000)}, "x"'),
            good.replace('"prompt": "', f'"prompt": "\\ud8{rng.randrange(16):x}{rng.randrange(16):x}'),
            good.replace('"note"', f'"n": {"[" * depth}{"]" * depth}, "x"'),
            good.replace('"prompt": "', '"prompt": "\0'),
            good.replace('"prompt": "', '"prompt": "\udc80'),
        ]
    )
    return "".join(part + "\n" for part in parts).encode("utf-8", "surrogateescape")


def csv_text(rng: random.Random, rows: list[dict[str, Any]], at: int) -> bytes:
    table = [f'{row["id"]},"{row["prompt"]}","{row["response"]}"' for row in rows]
    header = "id,prompt,response"
    way = rng.randrange(6)
    if way == 0:
        table[at] = table[at][:-1]
        table[at + 1 :] = [one.replace('"', "") for one in table[at + 1 :]]
    elif way == 1:
        table[at] += f",{rng.choice(WORDS)}"
    elif way == 2:
        table[at] = table[at].rsplit(",", 1)[0]
    elif way == 3:
        header = "id,prompt,prompt"
    elif way == 4:
        table[at] = table[at].replace('"', '"x"', 1)
    text = "\n".join([header, *table]) + "\n"
    return text.encode() if way != 5 else text.replace(" ", " \xe9", 1).encode("latin-1")


def parquet_bytes(columns: dict[str, list[Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def rows_cases(rng: random.Random, folder: Path) -> Iterator[Case]:
    while True:
        rows = good_rows(rng)
        at = rng.randrange(len(rows))
        way = rng.randrange(10)
        broken = [broken_row(rng, row) if i == at else row for i, row in enumerate(rows)]
        name, what = rng.choice(["rows.jsonl", "rows.json"]), "row"
        if way < 3:
            content = (lines(broken) if name == "rows.jsonl" else json.dumps(broken)).encode()
        elif way < 6:
            name, what, content = "rows.jsonl", "text", broken_text(rng, rows, at)
        elif way == 6:
            name, what, content = "rows.csv", "csv", csv_text(rng, rows, at)
        elif way == 7:
            name, what = "rows.jsonl.gz", "gz"
            content = gzip.compress(lines(rows).encode(), mtime=0)
            content = content[: rng.randrange(1, len(content) - 1)]
        elif way == 8:
            name, what = "rows.parquet", "parquet"
            texts = [row["prompt"] for row in rows]
            strange = rng.choice([[[t] for t in texts], [t.encode() for t in texts], [{"a": t} for t in texts]])
            whole = parquet_bytes({"prompt": texts, "response": strange})
            content = rng.choice([whole, whole[: rng.randrange(len(whole))]])
        else:
            what = "file"
            blank = " \n" * rng.randrange(99)
            content = rng.choice([blank, lines(rows).encode("utf-16"), lines(rows).encode("utf-32"), rng.randbytes(40)])
            content = content.encode() if isinstance(content, str) else content
        good = lines(good_rows(random.Random(0))).encode()
        targets = [
            (MIX, ("--instruct", name, "--safety", "good.jsonl", "--task=list", "--sim=high", "--out=out")),
            (MIX, ("--instruct", "good.jsonl", "--safety", name, "--task=list", "--sim=low", "--size=2", "--out=out")),
            (PREPARE, ("alpaca", "--source", name, "--out=out")),
            (SELECT, ("--dataset_folder=out", "--dataset_dir", name, "--selector=random", "--select_n=2")),
        ]
        target, argv = rng.choice(targets)
        yield Case("rows", what, target, argv, {name: content, "good.jsonl": good}, (name,))
        if what == "row" and way == 0:
            flags = [{**row, "is_safe": rng.choice([words(rng), 2 + rng.random(), [True], "", None])} for row in rows]
            argv = ("beavertails", "--source", "rows.jsonl", "--out=out")
            yield Case("rows", "flag", PREPARE, argv, {"rows.jsonl": lines(flags).encode()}, ("rows.jsonl",))


# Flags -----------------------------------------------------------------------------------------------------


@functools.lru_cache
def flags_of(target: str) -> dict[str, str]:
    """Flag -> the rest of its entry in ``--help``."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        entry(target)(["--help"])
    body = text.getvalue()
    body = body[body.index("\n\n", body.index("usage:")) :]
    parts = re.split(r"\n  (?=-)", body)[1:]
    return {part.split()[0].rstrip(","): " ".join(part.split()[1:]) for part in parts if part.startswith("--")}


def misspelt(rng: random.Random, flag: str) -> str:
    at = rng.randrange(2, len(flag))
    return rng.choice([flag[:at] + flag[at + 1 :], flag[:at] + rng.choice("xqz") + flag[at:], flag + rng.choice("sxq")])


def flags_cases(rng: random.Random, folder: Path) -> Iterator[Case]:
    while True:
        target = rng.choice(list(FLAGGED))
        flags = flags_of(target)
        flag = rng.choice([name for name in flags if name != "--help"])
        default = re.search(r"\(default: ([^)]*)\)$", flags[flag])
        value = f"{rng.choice(WORDS)}{rng.randrange(99)}"
        if rng.random() < 0.4:
            flag = misspelt(rng, flag)
            if flag in flags or flag == "--":
                continue
        elif "{" not in flags[flag].split(" ")[0] and not (default and re.fullmatch(r"True|False|[\d.]+", default[1])):
            continue
        argv = [one for one in FLAGGED[target] if one.split("=")[0] != flag]
        yield Case("flags", target, target, (*argv, f"{flag}={value}"), {}, (flag, value, flag.lstrip("-")))


# Study files -----------------------------------------------------------------------------------------------


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from paths_in(inner, (*path, key))


def studies_cases(rng: random.Random, folder: Path) -> Iterator[Case]:
    import yaml

    text = (REPOSITORY / "configs" / "studies" / "quickstart.yaml").read_text(encoding="utf-8")
    text = re.sub(r"(?m)^#.*\n", "", text)
    while True:
        study = yaml.safe_load(text)
        path = rng.choice(list(paths_in(study)))
        holder = functools.reduce(lambda inner, key: inner[key], path[:-1], study)
        key, value = path[-1], holder[path[-1]]
        way = rng.randrange(4)
        if way == 0 and isinstance(holder, dict) and path[0] != "tasks":
            holder[f"{key}{rng.choice('xqz')}{rng.randrange(99)}"] = holder.pop(key)
        elif way == 1:
            holder[key] = {rng.choice(WORDS): words(rng)} if not isinstance(value, dict) else words(rng)
        elif way == 2 and isinstance(value, bool | int | float):
            holder[key] = rng.choice([words(rng), [words(rng)], {"x": words(rng)}])
        elif way == 3:
            broken = text.replace(":", rng.choice([": [", ": {", ":\t'", ": &", ": *"]), rng.randrange(1, 40))
            yield Case("studies", "yaml", STUDY, ("study.yaml", "--plan"), {"study.yaml": broken.encode()}, ("study",))
            continue
        else:
            continue
        names = (*map(str, path), "study.yaml")
        content = yaml.safe_dump(study).encode()
        yield Case("studies", ".".join(map(str, path)), STUDY, ("study.yaml", "--plan"), {"study.yaml": content}, names)


# Answers and a judge's replies -----------------------------------------------------------------------------


def good_answers(rng: random.Random) -> dict[str, Any]:
    rows = [
        {"id": f"a{i}", "sample": 0, "question": words(rng), "prefill": "", "completion": words(rng), "category": "x"}
        for i in range(2)
    ]
    run_block = {"data_hash": "d" * 16, "fingerprint": "f" * 16, "data": {"harmful": True, "bench": "x"}}
    return {"results": rows, "metrics": {}, "run": run_block}


def answers_cases(rng: random.Random, folder: Path) -> Iterator[Case]:
    argv = ("results.json", "--judge=key_word", "--output_dir=out", "--figure=False")
    while True:
        document = good_answers(rng)
        row = rng.choice(document["results"])
        text = json.dumps(document)
        way = rng.randrange(5)
        if way == 0:
            text = text[: rng.randrange(1, len(text) - 1)]
        elif way == 1:
            row[rng.choice(["question", "completion"])] = junk(rng)
            text = json.dumps(document)
        elif way == 2:
            del row[rng.choice(["question", "completion"])]
            text = json.dumps(document)
        elif way == 3:
            document["results"] = rng.choice([[], junk(rng), words(rng), [words(rng)], rng.randrange(10**6), [[]]])
            text = json.dumps(document)
        else:
            bad = rng.choice(["NaN", f"1e{rng.randrange(400, 999)}x", f'"\\ud8{rng.randrange(10, 99)}"', "[" * 3000])
            text = text.replace('"category": "x"', f'"category": {bad}', rng.randrange(1, 3))
        yield Case("answers", str(way), JUDGES, argv, {"results.json": text.encode()}, ("results",))


def replies_cases(rng: random.Random, folder: Path) -> Iterator[Case]:
    def choice(content: Any) -> dict[str, Any]:
        return {"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}]}

    openai_client.FIRST_WAIT_SEC = 0.0  # the waits between attempts are not what is looked at here
    argv = ("results.json", "--judge=openai", "--rubric_model=judge", "--output_dir=out", "--figure=False")
    argv = (*argv, f"--judge_base_url={reply_server()}", "--rubric_max_attempts=1")
    while True:
        text = words(rng)
        body = rng.choice(
            [
                rng.randbytes(30),
                json.dumps(choice(text)).encode()[: rng.randrange(1, 60)],
                json.dumps(junk(rng)).encode(),
                json.dumps({"choices": rng.choice([[], [text], [{}], text, None, {"x": text}])}).encode(),
                json.dumps(choice(junk(rng))).encode(),
                json.dumps(choice(None)).encode() + b" " * rng.randrange(99),
                json.dumps(choice(f"#thescore: {rng.randrange(6, 10**6)}")).encode(),
                json.dumps(choice(f"{text} \ud800 Rating: [[{rng.randrange(1, 9)}]]")).encode(),
                b"[" * rng.randrange(2000, 9000),
                json.dumps(choice(text)).replace('"stop"', f"{rng.random()}").encode(),
            ]
        )
        content = json.dumps(good_answers(rng)).encode()
        yield Case("replies", "body", JUDGES, argv, {"results.json": content}, ("judge", "server"), body)


class ReplyHandler(http.server.BaseHTTPRequestHandler):
    """Lists one model; answers every question with the current case's bytes."""

    body = b""

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.answer(b'{"data": [{"id": "judge"}]}')

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(ReplyHandler.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: its lines would be the output of a case."""


@functools.lru_cache
def reply_server() -> str:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), ReplyHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}/v1"


# Stores and checkpoints ------------------------------------------------------------------------------------


def npy(value: Any) -> bytes:
    import numpy as np

    out = io.BytesIO()
    np.save(out, value)
    return out.getvalue()


def pt(value: Any) -> bytes:
    import torch

    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def stores_cases(rng: random.Random, folder: Path) -> Iterator[Case]:
    import numpy as np
    import torch
    from safetensors.torch import save

    def array(*shape: int) -> Any:
        return np.random.default_rng(rng.randrange(10**9)).normal(size=shape).astype(np.float32)

    pool = lines(good_rows(random.Random(0), 6)).encode()
    while True:
        which = rng.choice(["pool", "anchors"])
        n = {"pool": 6, "anchors": 3}[which]
        good, holed = array(n, 4), array(n, 4)
        holed[rng.randrange(n), rng.randrange(4)] = rng.choice([np.nan, np.inf, -np.inf])
        words_, size = np.array([[words(rng)]]), rng.randrange(2, 30)
        strange = [array(n), array(n, 2, 2), holed, array(0, size), array(n, 4) + 1j, words_, array(n, 0)]
        strange += [array(n + size, 4)] * (which == "pool") + [array(n, 4 + size)] * (which == "anchors")
        suffix = rng.choice(["npy", "pt", "safetensors"])
        if suffix == "npy":
            content = npy(rng.choice(strange))
            whole = npy(good)
        elif suffix == "pt":
            tensors = [torch.from_numpy(v) for v in strange if v.dtype.kind in "fc"]
            values = [*tensors, {"a": words(rng)}, [words(rng)], words(rng), Path(words(rng)), rng.randrange(10**6)]
            content = pt(rng.choice(values))
            whole = pt(torch.from_numpy(good))
        else:
            tensors = [torch.from_numpy(v) for v in strange if v.dtype.kind == "f"]
            two = {"a": torch.from_numpy(array(n, 4)), "b": torch.from_numpy(array(n, 4))}
            content = save(rng.choice([{}, two, {"x": rng.choice(tensors)}]))
            whole = save({"x": torch.from_numpy(good)})
        cut = whole[: rng.randrange(len(whole))] if rng.random() < 0.5 else rng.randbytes(rng.randrange(1, 90))
        files = {"pool.npy": npy(array(6, 4))}
        files["anchors.npy"] = npy(array(3, 4))
        name = f"{which}.{suffix}"
        files[name] = rng.choice([content, cut])
        argv = [f"--dataset_reps_dir={name if which == 'pool' else 'pool.npy'}", "--select_n=2"]
        argv += [f"--anchoring_reps_dir={name if which == 'anchors' else 'anchors.npy'}", "--dataset_folder=out"]
        files["rows.jsonl"] = pool
        yield Case("stores", suffix, SELECT, (*argv, "--dataset_dir=rows.jsonl", "--save_folder=s"), files, (name,))


def tiny_checkpoint(folder: Path) -> Path:
    """A random LLaMA of two layers in several shards, with a byte-level tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", "<pad>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(vocabulary), max_position_embeddings=2048, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="20KB")
    return folder


def checkpoints_cases(rng: random.Random, folder: Path) -> Iterator[Case]:
    from safetensors.torch import load, save

    whole = {f"model/{f.name}": f.read_bytes() for f in tiny_checkpoint(folder / "base").iterdir()}
    shards = sorted(name for name in whole if name.endswith(".safetensors"))
    prompts = lines([{"id": "p", "prompt": "Name a boat."}]).encode()
    numbers = ("hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size", "num_attention_heads")
    while True:
        files = dict(whole)
        way = rng.randrange(5)
        name = rng.choice(sorted(set(whole) - {"model/generation_config.json"}))
        if way == 0:
            files[name] = files[name][: rng.randrange(len(files[name].rstrip()))]
        elif way == 1:
            name = rng.choice([n for n in whole if n.endswith((".safetensors", "config.json"))])
            if "token" in name or "generation" in name:
                continue
            del files[name]
        elif way == 2:
            name = rng.choice(shards)
            tensors = load(files[name])
            victim = rng.choice(sorted(tensors))
            if victim == "lm_head.weight":  # a head that extraction does without
                continue
            if rng.random() < 0.5:
                del tensors[victim]
            else:
                tensors[victim] = tensors[victim].repeat(rng.randrange(2, 9), *[1] * (tensors[victim].dim() - 1))
            files[name] = save(tensors, {"format": "pt"})
        elif way == 3:
            name = "model/config.json"
            config = json.loads(files[name])
            config[rng.choice(numbers)] = rng.choice([words(rng), rng.randrange(3, 99) * 2, None, [1], -1])
            files[name] = json.dumps(config).encode()
        else:
            name = rng.choice([n for n in whole if n.endswith(".json") and "generation" not in n])
            files[name] = rng.choice(
                [b"", rng.randbytes(20), b"[]", b'"x"', b"[" * 4000, json.dumps(words(rng)).encode()]
            )
        files["prompts.jsonl"] = prompts
        bench = ["--safety_bench=prompts.jsonl", "--max_new_tokens=1", "--torch_dtype=float32", "--save_path=out"]
        target, argv = rng.choice(
            [
                (SAFETY, ["--model_name_or_path=model", "--do_sample=False", *bench]),
                (EXTRACT, ["--dataset_folder=out", "--dataset_data=prompts.jsonl", "--model_id=m",
                    "--text=prompt", "--model_name_or_path=model"]),
            ]
        )  # fmt: skip
        yield Case("checkpoints", f"{way} {name}", target, tuple(argv), files, (name, "model"))


# Running ---------------------------------------------------------------------------------------------------

# kind -> its cases, and its share of them. What needs torch comes last: it is imported once.
KINDS: dict[str, tuple[Callable[[random.Random, Path], Iterator[Case]], float]] = {
    "rows": (rows_cases, 0.36),
    "flags": (flags_cases, 0.25),
    "studies": (studies_cases, 0.12),
    "answers": (answers_cases, 0.08),
    "replies": (replies_cases, 0.05),
    "stores": (stores_cases, 0.08),
    "checkpoints": (checkpoints_cases, 0.06),
}


@functools.lru_cache
def entry(target: str) -> Callable[[list[str]], Any]:
    """The ``main`` of an entry point of the repository or of a module."""
    if target.endswith(".py"):
        found: Callable[[list[str]], Any] = runpy.run_path(str(REPOSITORY / target))["main"]
    else:
        found = importlib.import_module(target).main
    return found


def too_long(signum: int, frame: Any) -> None:
    raise TimeoutError(f"no end after {CASE_LIMIT_SEC} s")


def run_case(case: Case, folder: Path) -> tuple[str, str]:
    """(outcome, message): ``refused``, ``accepted``, ``traceback``, ``vague``, ``left_behind``."""
    for name, content in case.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    ReplyHandler.body = case.reply or b""
    here, out = os.getcwd(), io.StringIO()
    os.chdir(folder)
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(CASE_LIMIT_SEC)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            entry(case.target)(list(case.argv))
        outcome, message = "accepted", ""
    except UserError as error:
        outcome, message = "refused", str(error)
    except SystemExit as error:
        outcome, message = (
            ("refused" if error.code == 2 else "traceback"),
            f"exit {error.code}: {out.getvalue()[-300:]}",
        )
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        outcome = "traceback"
        message = f"{type(error).__name__}: {str(error)[:200]} ({Path(frame.filename).name}:{frame.lineno})"
    finally:
        signal.alarm(0)
        os.chdir(here)
    left = sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock" and str(path.relative_to(folder)) not in case.files
    )
    if outcome == "refused" and left:
        return "left_behind", f"{', '.join(left[:3])} after: {message}"
    if outcome == "accepted" and any(".tmp-" in name for name in left):
        return "left_behind", f"{', '.join(left[:3])}"
    if outcome == "refused" and (
        len(message.splitlines()) != 1 or not ADVICE.search(message) or not any(n in message for n in case.names)
    ):
        return "vague", message
    return outcome, message


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--n", type=positive_int, default=1200, help="distinct inputs")
    parser.add_argument("--kinds", default=",".join(KINDS), help="some of: " + ", ".join(KINDS))
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    args = parser.parse_args(argv)
    kinds = args.kinds.split(",")
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("kind of input", kind, KINDS)
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    started, share = time.time(), sum(KINDS[kind][1] for kind in kinds)
    found: dict[str, list[dict[str, str]]] = {name: [] for name in ("accepted", "tracebacks", "left_behind", "vague")}
    counts: Counter[str] = Counter()
    by_kind: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory(prefix="guardrail-malformed-") as temporary:
        for kind in kinds:
            wanted = round(args.n * KINDS[kind][1] / share) if kind != kinds[-1] else args.n - counts["cases"]
            seen: set[str] = set()
            outcomes: Counter[str] = Counter()
            for case in KINDS[kind][0](random.Random(f"{args.seed} {kind}"), Path(temporary) / kind):
                if len(seen) >= wanted:
                    break
                if case.identity() in seen:
                    continue
                seen.add(case.identity())
                folder = Path(temporary) / "case"
                folder.mkdir()
                outcome, message = run_case(case, folder)
                shutil.rmtree(folder)
                if outcome == "accepted" and kind == "replies":
                    outcome = "handled"
                outcomes[outcome] += 1
                counts["cases"] += 1
                counts[outcome] += 1
                if outcome not in ("refused", "handled"):
                    entry_of = {
                        "kind": kind,
                        "what": case.what,
                        "target": case.target,
                        "argv": " ".join(case.argv)[:300],
                    }
                    found["tracebacks" if outcome == "traceback" else outcome].append(
                        {**entry_of, "message": message[:400]}
                    )
            by_kind[kind] = dict(outcomes)
    head = {"cases": counts["cases"], "refused": counts["refused"], "handled": counts["handled"]}
    return {**head, **found, "by_kind": by_kind, "seed": args.seed, "seconds": round(time.time() - started, 1)}


if __name__ == "__main__":
    names = ("accepted", "tracebacks", "left_behind", "vague")
    run(main, exit_code=lambda result: int(any(result[name] for name in names)))
