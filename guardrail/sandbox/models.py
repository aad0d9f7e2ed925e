"""Which tiny model is trained from what, and how: base, uncensored chat model, moderation model.

    base        LLaMA, trained on split ``base``; complies with everything
    chat        base + split ``instruct``, no safety data: the model that representations come from
    moderation  LlamaForSequenceClassification with Beaver-Dam's 14 labels: the base model's body, ``moderation_train``

One after the other, by the same two ranks. A rank is a process of one thread, and there are always two, so that
weights do not depend on how many cores there are. Each folder appears whole or not at all and carries
``training.json``; a folder whose fingerprint (data, options, format of the text) is unchanged is left alone. One run at
a time holds a model's lock.

Known limit: bit-equal weights need the same machine type and the same torch; other machines differ in the last digits.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from guardrail.core.cli import Parser, log, positive_int
from guardrail.core.errors import UserError
from guardrail.core.files import (
    atomic_path,
    clear_leftovers,
    hash_file,
    hash_json,
    read_json,
    require_free_space,
    write_json,
)
from guardrail.core.places import IMPORT_ROOT, SANDBOX_DATA, SANDBOX_MODELS
from guardrail.core.ranks import barrier, is_main
from guardrail.sandbox.lexicon import CATEGORY_NAMES
from guardrail.sandbox.training import Example, TrainOptions, shared, train
from guardrail.sandbox.writer import parquet_name

STYLE = "llama2_base"
NEEDED_BYTES = 100 * 2**20
TRAINING_RECORD = "training.json"
AGREEMENT_RECORD = "agreement.json"
CODE_VERSION = 4  # raise it when a change here changes weights
STAGES = ("base", "chat", "moderation")
RANKS = 2
LEAST_AGREEMENT = 0.96  # last digits differ between machines, and a judge by half a point with them
DATA_OF = {
    "base": ("base",),
    "chat": ("base", "instruct"),
    "moderation": ("base", "moderation_train", "moderation_test"),
}
OPTIONS = {
    "base": TrainOptions(learning_rate=5e-3, matrix_learning_rate=0.02, tokens_per_batch=2048),
    "chat": TrainOptions(learning_rate=5e-4, tokens_per_batch=1024),
    "moderation": TrainOptions(learning_rate=1e-3, tokens_per_batch=1024, learnt_loss=0.01),
}
ARCHITECTURE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "initializer_range": 0.05,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},  # texts are short: copying is learnt sooner
}


def read_split(data: str | Path, split: str) -> list[dict[str, Any]]:
    """Rows of one sandbox split."""
    import pyarrow.parquet as pq

    path = Path(data) / parquet_name(split)
    if not path.is_file():
        raise UserError(
            f"no such file: {path}; write the sandbox first: python datasets/sandbox/generate.py --out {data}"
        )
    with pq.ParquetFile(path) as file:
        return file.read().to_pylist()


def _text_format() -> str:
    """The chat string that models learn, as a value to fingerprint."""
    from guardrail.data.prompts import template_module

    style = template_module().STYLES[STYLE]
    probe = [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant")]
    return repr(style.segments(probe, "</s>")) + repr(style.default_system)


def fingerprint(stage: str, data: str | Path, seed: int, row_limit: int | None) -> str:
    """Hash of everything that decides the weights of ``stage``, the stages before it included."""
    from guardrail.sandbox.tokenizer import FRAME_REPEATS, VOCABULARY_SIZE

    for split in DATA_OF[stage]:
        if not (Path(data) / parquet_name(split)).is_file():
            read_split(data, split)  # raises the error
    before = [fingerprint("base", data, seed, row_limit)] if stage != "base" else []
    files = {split: hash_file(Path(data) / parquet_name(split)) for split in DATA_OF[stage]}
    options = [asdict(OPTIONS[stage]), RANKS, ARCHITECTURE, VOCABULARY_SIZE, FRAME_REPEATS]
    return hash_json([CODE_VERSION, stage, before, files, options, _text_format(), seed, row_limit])


def is_done(stage: str, out: Path, expected: str) -> bool:
    """Whether the folder of ``stage`` was written from ``expected``."""
    record = out / stage / TRAINING_RECORD
    return record.is_file() and json.loads(record.read_text(encoding="utf-8")).get("fingerprint") == expected


def _configuration(kind: type, tokenizer: Any, **extra: Any) -> Any:
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return kind(vocab_size=len(tokenizer), tie_word_embeddings=True, **ids, **ARCHITECTURE, **extra)


def _language_examples(rows: list[dict[str, Any]], tokenizer: Any) -> list[Example]:
    """Token-identical to the study's training text, loss on all answers."""
    from guardrail.data.prompts import encode_supervised

    encoded = [encode_supervised(tokenizer, STYLE, row["messages"]) for row in rows]
    return [Example(e.input_ids, e.labels(train_on="all_assistant_turns")) for e in encoded]


@functools.lru_cache(maxsize=1)
def _base_split(data: str) -> tuple[list[dict[str, Any]], Any]:
    """Rows of split ``base`` and the tokenizer made of them: of one run, every model has the same."""
    from guardrail.sandbox.splits import texts_of
    from guardrail.sandbox.tokenizer import train_tokenizer

    rows = read_split(data, "base")
    return rows, train_tokenizer(text for row in rows for text in texts_of(row))


def _save_model(model: Any, folder: Path) -> None:
    """Save, with the rotary base under transformers 4's name too: it would silently fall back to its default."""
    model.save_pretrained(folder)
    config = read_json(folder / "config.json")
    config["rope_theta"] = ARCHITECTURE["rope_parameters"]["rope_theta"]
    write_json(folder / "config.json", config, indent=2)


def _train_stage(stage: str, data: str, out: Path, seed: int, row_limit: int | None) -> None:
    """Train one model and write its folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
    from transformers.utils import logging

    from guardrail.sandbox.moderation import agreement, encode_pair, moderation_probabilities
    from guardrail.sandbox.tokenizer import save_tokenizer

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    start = time.perf_counter()
    parent = os.getppid()

    def report(text: str) -> None:
        if os.getppid() != parent:
            sys.exit("the run that started this training is gone")
        if is_main():
            log(f"[{stage}] {text}")

    base_rows, tokenizer = _base_split(data)
    options = TrainOptions(**{**asdict(OPTIONS[stage]), "seed": seed})
    record: dict[str, Any] = {}
    model: Any
    torch.manual_seed(seed)
    if stage == "moderation":
        rows = read_split(data, "moderation_train")[:row_limit]
        labels = {"id2label": dict(enumerate(CATEGORY_NAMES)), "label2id": {n: i for i, n in enumerate(CATEGORY_NAMES)}}
        problem = {"num_labels": len(CATEGORY_NAMES), "problem_type": "multi_label_classification", **labels}
        model = LlamaForSequenceClassification(_configuration(LlamaConfig, tokenizer, **problem))
        model.model.load_state_dict(
            LlamaForCausalLM.from_pretrained(out / "base", dtype=torch.float32).model.state_dict()
        )

        def encode(part: list[dict[str, Any]]) -> list[Example]:
            return [Example(encode_pair(tokenizer, row["prompt"], row["response"]), row["labels"]) for row in part]

        examples = shared(rows, encode)
    elif stage == "base":
        rows = base_rows[:row_limit]
        model = LlamaForCausalLM(_configuration(LlamaConfig, tokenizer))
        examples = shared(rows, lambda part: _language_examples(part, tokenizer))
    else:
        rows = read_split(data, "instruct")[:row_limit]
        model = LlamaForCausalLM.from_pretrained(out / "base", dtype=torch.float32)
        examples = shared(rows, lambda part: _language_examples(part, tokenizer))
    report(f"{len(rows)} rows, {sum(p.numel() for p in model.parameters()):,} parameters")
    record["training"] = train(model, examples, options, tokenizer.pad_token_id, stage != "moderation", report)
    held_out = read_split(data, "moderation_test") if stage == "moderation" else []
    pairs = [(row["prompt"], row["response"]) for row in held_out]
    probabilities = shared(pairs, lambda part: list(moderation_probabilities(model, tokenizer, part))) if pairs else []
    if not is_main():
        return
    with atomic_path(out / stage) as folder:
        _save_model(model, folder)
        save_tokenizer(tokenizer, folder)
        if stage == "moderation":
            found = agreement(
                torch.stack(probabilities), [row["labels"] for row in held_out], [row["kind"] for row in held_out]
            )
            write_json(folder / AGREEMENT_RECORD, found)
            record["agreement"] = {name: found[name] for name in ("n", "flagged", "per_label_min", "exact_match")}
            report(
                f"agreement on {found['n']} held-out pairs: {found['flagged']:.4f}, "
                f"least label {found['per_label_min']:.4f}"
            )
        record |= {"fingerprint": fingerprint(stage, data, seed, row_limit), "stage": stage, "seed": seed}
        record |= {"n_rows": len(rows), "options": asdict(options), "wall_sec": round(time.perf_counter() - start, 1)}
        write_json(folder / TRAINING_RECORD, record)
    report(f"written to {out / stage} after {record['wall_sec']} s")


def run_stages(stages: Sequence[str], data: str, out: str | Path, seed: int, row_limit: int | None = None) -> None:
    """Train models in this process (one of the ranks), in the order of `STAGES`, whether they are there or not."""
    for stage in STAGES:
        if stage in stages:
            _train_stage(stage, data, Path(out), seed, row_limit)
            barrier()  # the next one reads what the first rank wrote


@contextlib.contextmanager
def _locks(out: Path, stages: Sequence[str]) -> Iterator[None]:
    """One run at a time per model; a lock goes with the process, also after ``kill -9``."""
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        for stage in stages:
            handle = stack.enter_context(open(out / f".{stage}.lock", "w", encoding="utf-8"))
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                log(f"waiting for another run on {out / stage}")
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _train_in_ranks(stages: Sequence[str], common: list[str]) -> None:
    """Train ``stages`` in ranks that meet in a file; raise when one fails."""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    paths = (environment.get("PYTHONPATH"), str(IMPORT_ROOT))
    environment["PYTHONPATH"] = os.pathsep.join(part for part in paths if part)
    environment |= {"WORLD_SIZE": str(RANKS), "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "guardrail.sandbox.worker", "--stages", *stages, *common]
    with tempfile.TemporaryDirectory() as folder:
        command += ["--rendezvous", str(Path(folder) / "ranks")]
        processes = [subprocess.Popen(command, env={**environment, "RANK": str(rank)}) for rank in range(RANKS)]
        try:
            while any(process.poll() is None for process in processes):
                if any(process.poll() for process in processes):
                    break  # the other ranks would wait for the one that failed
                time.sleep(0.1)
        finally:
            failed = any(process.poll() for process in processes)
            for process in processes:
                if process.poll() is None:
                    process.terminate()
                process.wait()
    if failed:
        raise UserError(f"training of {', '.join(stages)} failed; the reason is in the lines above")


def quality_warning(agreement: dict[str, Any]) -> str | None:
    """What to say of a judge that agrees with the generator less often than numbers of the sandbox rest on."""
    if agreement["flagged"] >= LEAST_AGREEMENT:
        return None
    return (
        f"warning: the judge agrees on {100 * agreement['flagged']:.1f}% of {agreement['n']} held-out pairs; numbers "
        f"of the sandbox rest on {100 * LEAST_AGREEMENT:.0f}% (another --seed trains another judge)"
    )


def train_models(
    out: str | Path,
    data: str | Path,
    seed: int = 0,
    row_limit: int | None = None,
    stages: Sequence[str] = STAGES,
) -> dict[str, Any]:
    """Train those of ``stages`` that are missing in ``out``; returns the folders and the headline numbers.

    ``row_limit`` cuts every training split (tests). ``chat`` and ``moderation`` need ``base``: in ``out``, or in
    ``stages`` too.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a folder")
    expected = {stage: fingerprint(stage, data, seed, row_limit) for stage in STAGES}
    if "base" not in stages and not is_done("base", out, expected["base"]):
        raise UserError(f"no base model of this data and seed in {out}; add base to --stages")
    require_free_space(out, NEEDED_BYTES)
    with _locks(out, [stage for stage in STAGES if stage in stages]):
        clear_leftovers(out)
        todo = [stage for stage in STAGES if stage in stages and not is_done(stage, out, expected[stage])]
        common = ["--data", str(data), "--out", str(out), "--seed", str(seed)]
        if row_limit is not None:
            common += ["--row_limit", str(row_limit)]
        if todo:
            _train_in_ranks(todo, common)
    result: dict[str, Any] = {stage: str(out / stage) for stage in STAGES if stage in stages}
    result["trained"] = todo
    if "moderation" in stages:
        result["agreement"] = read_json(out / "moderation" / TRAINING_RECORD)["agreement"]
        if row_limit is None and (warning := quality_warning(result["agreement"])):
            log(warning)
    return result


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """``datasets/sandbox/train_models.py``."""
    parser = Parser(description="Train the sandbox's tiny models.")
    parser.add_argument("--data", default=str(SANDBOX_DATA), help="sandbox data-set folder")
    parser.add_argument("--out", default=str(SANDBOX_MODELS), help="folder of the models")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and row order")
    parser.add_argument(
        "--stages", nargs="+", default=STAGES, choices=STAGES, help="which models; chat and moderation need base"
    )
    parser.add_argument("--row_limit", type=positive_int, default=None, help="cut every training split (for tests)")
    args = parser.parse_args(argv)
    start = time.perf_counter()
    result = train_models(args.out, args.data, args.seed, args.row_limit, args.stages)
    return {**result, "seconds": round(time.perf_counter() - start, 1)}
