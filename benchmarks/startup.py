"""Start-up of every process that a study starts, and of the same process in another checkout, in turn.

    python benchmarks/startup.py                                  # this checkout
    python benchmarks/startup.py --against ../old --rounds 3      # pairs: this one, the other one, this one, ...
    python benchmarks/startup.py --only train,evaluate

A process does the least work that takes it through its whole start: two rows, one token, one optimizer step. What is
counted is the CPU time, user and system, of the process and of everything that it started, because it does not depend
on what else the machine does as wall time does; that is given, too. ``ratio`` is the median of the rounds' ratios,
``cpu_sec`` the median over rounds. Everything runs on the CPU with random models that are made first.

The other checkout is run by its own ``.venv/bin/python`` where it has one, else by this interpreter.
Known limits: the first round also warms the disk cache, so use several; a study's own wait for locks is not measured.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from guardrail.core.cli import Parser, log, positive_int, run
from guardrail.core.errors import UserError, unknown
from guardrail.core.files import write_json, write_jsonl

REPOSITORY = Path(__file__).resolve().parents[1]
STYLE = ("--prompt_style", "llama2_base", "--torch_dtype", "float32")
TRAINING = {
    "DATASET": "rows.jsonl",
    "BASE_MODEL": "model",
    "BATCH_SIZE": "2",
    "BF16": "False",
    "DS_CONFIG": "ds_z0_config.json",
    "GRADIENT_CHECKPOINTING": "False",
    "LOG_TYPE": "none",
    "SFT_MODULE": "guardrail.training.sft",
}


def commands(world: Path, out: Path) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Entry point -> its command (relative to a checkout; ``python`` is replaced) and its variables."""
    model, rows = str(world / "model"), str(world / "rows.jsonl")
    variables = {**TRAINING, "DATASET": rows, "BASE_MODEL": model, "OUTPUT_DIR": str(out / "trained")}
    answer = ["eval_safety.py", "--model_name_or_path", model, *STYLE, "--max_new_tokens", "1"]
    judge = ["--model_path", str(world / "judge"), "--output_dir", str(out), "--figure", "False"]
    extract = ["--dataset_folder", str(out), "--model_id", "m", "--model_name_or_path", model, *STYLE]
    reps = str(world / "reps.pt")
    select = ["similarity/get_top_similarity_dataset_reps_general.py", "--dataset_folder", str(out / "subsets")]
    mix = ["--instruct", rows, "--safety", str(world / "refusals.jsonl"), "--out", str(out / "mixed"), "--task", "t"]
    config = str(out / "startup" / "study_config.json")
    return {
        "evaluate": (["python", *answer, "--safety_bench", str(world / "bench.jsonl"), "--save_path", str(out)], {}),
        "moderate": (
            ["python", "beavertails_moderation/evaluate.py", "--eval_dataset", str(world / "answers.json"), *judge],
            {},
        ),
        "extract": (
            [
                *("python", "similarity/get_representation.py", *extract),
                *("--dataset_data", rows, "--output_dir", str(out / "reps")),
            ],
            {},
        ),
        "select": (
            [
                *("python", *select, "--select_n", "1", "--dataset_dir", rows),
                *("--dataset_reps_dir", reps, "--anchoring_reps_dir", reps),
            ],
            {},
        ),
        "mix": (["python", "datasets/mix.py", *mix, "--sim", "random", "--size", "1"], {}),
        "train": (["bash", "scripts/sft.sh", "--max_steps", "1", "--cache_dir", str(out)], variables),
        "check": (["python", "-m", "guardrail.study.check", str(world / "study.yaml"), "--outputs", str(out)], {}),
        "schedule": (["python", "-m", "guardrail.study.schedule", config, "--outputs", str(out)], {}),
        "help": (["python", "eval_safety.py", "--help"], {}),
    }


def make_world(folder: Path) -> None:
    """Random tiny models and a few rows for every command."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    from guardrail.core.places import STUDIES
    from guardrail.evaluation.judges.beaver_dam import LABELS
    from guardrail.sandbox.tokenizer import save_tokenizer, train_tokenizer

    words = [f"Paint the {thing}. Take a brush and {thing}." for thing in ("fence", "boat", "wall", "door")]
    tokenizer = train_tokenizer(words)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = {**sizes, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 1024}
    labels = {"num_labels": len(LABELS), "problem_type": "multi_label_classification"}
    labels |= {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
    torch.manual_seed(0)
    for name, model in (
        ("model", LlamaForCausalLM(LlamaConfig(**config))),
        ("judge", LlamaForSequenceClassification(LlamaConfig(**config, **labels))),
    ):
        model.save_pretrained(folder / name)
        save_tokenizer(tokenizer, folder / name)
    rows = [{"id": f"row-{i}", "instruction": text, "input": "", "output": text} for i, text in enumerate(words)]
    write_jsonl(folder / "rows.jsonl", rows)
    write_jsonl(folder / "refusals.jsonl", ({"prompt": f"Hide it. {text}", "response": "No."} for text in words))
    write_jsonl(folder / "bench.jsonl", ({"instruction": text, "category": "x"} for text in words[:2]))
    write_json(folder / "answers.json", [{"prompt": text, "response": text} for text in words[:2]])
    torch.save(torch.randn(len(rows), 8), folder / "reps.pt")
    text = (STUDIES / "quickstart.yaml").read_text(encoding="utf-8")
    (folder / "study.yaml").write_text(text.replace("name: quickstart", "name: startup"), encoding="utf-8")


def measure(checkout: Path, name: str, world: Path) -> dict[str, float]:
    """CPU and wall seconds of one start. Raises ``UserError`` when the process fails."""
    own = checkout / ".venv" / "bin" / "python"
    python = str(own if own.is_file() else sys.executable)
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        table = commands(world, out)
        path = os.pathsep.join((str(Path(python).parent), os.environ.get("PATH", "")))
        environment = {**os.environ, "PYTHONPATH": str(checkout), "PATH": path, "CUDA_VISIBLE_DEVICES": ""}
        environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "DEVICE": "cpu", "HF_HUB_OFFLINE": "1"}
        environment |= {"TOKENIZERS_PARALLELISM": "false", "VIRTUAL_ENV": str(Path(python).parents[1])}

        def start(what: str) -> subprocess.CompletedProcess[str]:
            command, variables = table[what]
            command = [python if part == "python" else part for part in command]
            return subprocess.run(
                command, cwd=checkout, env={**environment, **variables}, capture_output=True, text=True
            )

        if name == "schedule":
            start("check")  # writes what it reads
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = start(name)
        after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - began
    if done.returncode:
        raise UserError(f"{name} in {checkout} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return {"cpu_sec": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, "wall_sec": wall}


def medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {unit: round(statistics.median(run[unit] for run in runs), 3) for unit in ("cpu_sec", "wall_sec")}


def compare(
    names: Sequence[str], rounds: int, against: Path | None, take: Callable[[Path, str], dict[str, float]]
) -> dict[str, Any]:
    """Medians per entry point and, with ``against``, the median of the rounds' ratios of CPU time."""
    result: dict[str, Any] = {}
    for name in names:
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(take(REPOSITORY, name))
            if against is not None:
                theirs.append(take(against, name))
        result[name] = medians(ours)
        if against is not None:
            ratios = [one["cpu_sec"] / two["cpu_sec"] for one, two in zip(ours, theirs, strict=True)]
            result[name] |= {"against": medians(theirs), "ratio": round(statistics.median(ratios), 3)}
        log(name, json.dumps(result[name]))
    return result


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--against", help="another checkout of this repository")
    parser.add_argument("--rounds", type=positive_int, default=3, help="times that every process is started")
    parser.add_argument("--only", help="some of the entry points, as train,evaluate")
    parser.add_argument("--out", help="also write the result to this file")
    args = parser.parse_args(argv)
    against = Path(args.against).resolve() if args.against else None
    if against is not None and not (against / "guardrail").is_dir():
        raise UserError(f"--against {args.against} is no checkout of this repository (it has no folder guardrail)")
    known = list(commands(Path(), Path()))
    names = args.only.split(",") if args.only else known
    for name in names:
        if name not in known:
            raise unknown("entry point", name, known)
    world = Path(tempfile.mkdtemp(prefix="guardrail-startup-"))
    try:
        make_world(world)
        result = compare(names, args.rounds, against, lambda checkout, name: measure(checkout, name, world))
    finally:
        shutil.rmtree(world, ignore_errors=True)
    summary = {"rounds": args.rounds, "against": str(against) if against else None, "entry_points": result}
    if args.out:
        write_json(Path(args.out), summary, indent=2)
    return summary


if __name__ == "__main__":
    run(main)
