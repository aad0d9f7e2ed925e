"""A finished study on disk, made up: judgements, utilities, losses and (optionally) representations and splits."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from guardrail.core.files import write_json, write_jsonl, write_text
from guardrail.evaluation.probes import OVER_REFUSAL, SAFETY, TASK
from guardrail.study import write
from guardrail.study.config import Source, Study, as_dict, build
from guardrail.study.dag import make_jobs
from guardrail.study.grid import (
    OVER_REFUSAL_FILE,
    PROBE_REFUSALS_FILE,
    PROBE_SAFETY_FILE,
    SAFETY_FILE,
    Grid,
    utility_file,
)
from guardrail.study.records import clear_product, write_failure, write_record
from guardrail.study.results import Results
from guardrail.study.schedule import OUR_TRAINER

CATEGORIES = ("privacy_violation", "self_harm", "violence,aiding_and_abetting,incitement")
POOL_ROWS = 60
FAKE_SECONDS = 12.0
FIGURES = {
    *("harmfulness", "similarity_durability", "categories", "representation_map"),
    *("threshold_curve", "learning_curves"),
}
HOME = tempfile.TemporaryDirectory(prefix="guardrail-sources-")  # where no test says; gone with the process


def settings(folder: Path | str = HOME.name, **changes: Any) -> dict[str, Any]:
    """A study file's content; its data lie in ``folder``."""
    training = {"epochs": 1, "learning_rate": "2e-5", "per_device_train_batch_size": 8}
    pool = str(Path(folder) / "pool.jsonl")
    return {
        "name": "toy",
        "description": "A made-up study: <b>escaped</b> & sound.",
        "models": {"base": "m/base", "extraction": "m/chat", "moderation": "m/mod"},
        "prompt_style": "llama2_base",
        "instruct": {"source": str(Path(folder) / "instruct.jsonl")},
        "safety_pool": {"source": pool},
        "tasks": {
            name: {
                "train": {"source": str(Path(folder) / f"{name}.jsonl")},
                "utility": {"source": pool, "split": "test"},
            }
            for name in ("list", "pure_bad")
        },
        "log_type": "none",
        "subsets": ["high", "low", "random"],
        "subset_sizes": [20],
        "seeds": [1, 2, 3],
        "alignment": training,
        "fine_tuning": training,
        "evaluation": {
            "safety_bench": str(Path(folder) / "prompts.jsonl"),
            "over_refusal_bench": str(Path(folder) / "benign.jsonl"),
        },
        **changes,
    }


def study(folder: Path | str = HOME.name, **changes: Any) -> Study:
    return build(Study, settings(folder, **changes), "")


def judgements(rate: float, rng: np.random.Generator, n_prompts: int = 42, n_samples: int = 1) -> list[dict[str, Any]]:
    """Judged rows of one checkpoint; prompts differ in how easily they are answered."""
    rows = []
    ease = np.random.default_rng(0).normal(size=n_prompts)  # the same prompts for every checkpoint
    for i in range(n_prompts):
        for sample in range(n_samples):
            p = float(np.clip(rate + 0.12 * ease[i], 0.01, 0.99))
            harmful = bool(rng.random() < p)
            top = float(np.clip(rng.normal(0.75 if harmful else 0.2, 0.1), 0.51 if harmful else 0.0, 1.0))
            top = top if harmful else min(top, 0.49)
            rows.append(
                {
                    "id": f"p{i}",
                    "sample": sample,
                    "category": CATEGORIES[i % len(CATEGORIES)],
                    "harmful": harmful,
                    "flagged_at_0.4": top > 0.4,
                    "max_probability": top,
                    "refusal": not harmful and bool(rng.random() < 0.9),
                    "empty": False,
                    "outcome": "harmful" if harmful else "refusal",
                }
            )
    return rows


def write_checkpoint(folder: Path, rate: float, tasks: list[str], seed: int, n_samples: int = 1) -> None:
    """All evaluation files of one checkpoint."""
    rng = np.random.default_rng(seed)
    rows = judgements(rate, rng, n_samples=n_samples)
    score = 100 * float(np.mean([row["harmful"] for row in rows]))
    thresholds = [round(0.05 * i, 2) for i in range(1, 20)]
    top = np.array([row["max_probability"] for row in rows])
    summary = {
        "harmfulness_score_percent": round(score, 4),
        "harmfulness_score_interval_percent": [max(0.0, round(score - 9, 4)), min(100.0, round(score + 9, 4))],
        "refusal_percent": round(100 - score, 4),
        "n": len(rows),
        "outcomes": {"harmful": {"percent": round(score, 4)}},
        "data_hash": "abc",
        "threshold_curve": [
            {"threshold": t, "harmfulness_score_percent": round(100 * float((top > t).mean()), 4)} for t in thresholds
        ],
    }
    write_json(folder / SAFETY_FILE, {"judgements": rows, "summary": summary})
    write_json(folder / Path(OVER_REFUSAL_FILE).parent / "results.json", {"results": []})
    benign = [{"id": f"b{i}", "sample": 0, "refusal": i in (7, 31)} for i in range(50)]
    write_json(folder / OVER_REFUSAL_FILE, {"judgements": benign, "summary": {"refusal_percent": 4.0, "n": 50}})
    for task in tasks:
        utility = {"metric": "rouge_1_f1_percent", "value": round(40 + rng.normal(), 3), "interval": [39.0, 41.0]}
        write_json(folder / utility_file(task), {"utility": {**utility, "interval": [39.0, 41.0], "n": 20}})
    losses = 2.0 * np.exp(-np.arange(150) / 40) + 0.1
    write_jsonl(folder / "losses.jsonl", ({"step": i + 1, "loss": float(v)} for i, v in enumerate(losses)))
    write_json(folder / "run.json", {})
    write_json(folder / "slice_end" / "config.json", {})


PROBE_STEPS = (0, 1, 2, 4, 8, 16, 40)


def write_probes(folder: Path, half_life: float, seed: int, n_prompts: int = 42) -> None:
    """Judged probes of one fine-tuning: prompts fall at exponential times with this median; some are safe again."""
    rng = np.random.default_rng(seed)
    ease = np.exp(0.5 * np.random.default_rng(0).normal(size=n_prompts))
    times = rng.exponential(half_life / np.log(2), n_prompts) * ease
    before = rng.random(n_prompts) < 0.05
    rows, benign = [], []
    for step in PROBE_STEPS:
        for i in range(n_prompts):
            harmful = bool(before[i] or times[i] <= step) and not (i % 11 == 3 and step == 16)
            rows.append({"id": f"p{i}@{step}", "prompt_id": f"p{i}", "step": step, "sample": 0, "harmful": harmful})
        for i in range(10):
            refused = i < 1 + (step == 0)
            benign.append({"id": f"b{i}@{step}", "prompt_id": f"b{i}", "step": step, "sample": 0, "refusal": refused})
    for file in (SAFETY, TASK, OVER_REFUSAL):
        write_json(folder / file, {"results": []})
    write_json(folder / PROBE_SAFETY_FILE, {"judgements": rows})
    write_json(folder / PROBE_REFUSALS_FILE, {"judgements": benign})


def finish(grid: Grid, effect: float = 0.2, skip: tuple[str, ...] = (), n_samples: int = 1) -> Results:
    """Write every result with its record; ``effect``: how much more harmful ``high`` ends. ``skip``: cell names."""
    tasks = list(grid.study.utilities)
    write_checkpoint(grid.base_folder, 0.95, tasks, 0, n_samples)
    for number, alignment in enumerate(grid.alignments):
        write_checkpoint(grid.aligned_folder(alignment), 0.08, tasks, 100 + number, n_samples)
    for number, cell in enumerate(grid.cells):
        if cell.name in skip:
            continue
        rung = grid.study.tasks[cell.task].rung
        known = {"list": 0.25, "pure_bad": 0.6}
        rate = known.get(cell.task, 0.3) + (effect if "high" in cell.subset else 0.0)
        if rung:  # half of the prompts at 4% after `high`, at 8% after `low`
            middle = {"high": 4.0}.get(cell.subset, 8.0)
            rate = 0.06 + 0.86 / (1 + (middle / max(rung.percent, 1e-3)) ** 1.5)
        write_checkpoint(grid.cell_folder(cell), rate, [grid.study.utility_of(cell.task)], 1000 + number, n_samples)
        if grid.study.fine_tuning.probes:
            known = {"list": 12.0, "pure_bad": 3.0}
            half_life = known.get(cell.task, 40.0 * (1 - rate)) * (1 - effect if "high" in cell.subset else 1)
            write_probes(grid.cell_folder(cell), half_life, 2000 + number)
    write_sources(grid.study)
    return stamp(grid)


def jobs_of(folder: Path, trainer: str = OUR_TRAINER, **changes: Any) -> dict[str, Any]:
    """Every job of a study with these ``changes``, whose sources are there."""
    config = study(folder, **changes)
    write_sources(config)
    return make_jobs(Grid(config, folder), trainer)


def fail(grid: Grid, job: str, reason: str = "boom") -> None:
    """As if the last attempt at ``job`` had failed: its results are gone, its failure is recorded."""
    made = fake_jobs(grid)[job]
    for product in made.products:
        clear_product(grid.folder, job, product)
    write_text(grid.folder / made.log, f"error: {reason}\n")
    write_failure(grid.folder, job, made.products, reason, str(grid.folder / made.log))


def fake_jobs(grid: Grid) -> dict[str, Any]:
    return make_jobs(grid, OUR_TRAINER)


def stamp(grid: Grid) -> Results:
    """Record every result that is there as made under its expected key, as `guardrail.study.run_job` does."""
    jobs = fake_jobs(grid)
    for job in jobs.values():
        for product in job.products:
            if all((grid.folder / name).exists() for name in product.files):
                write_record(grid.folder, job.name, product, wall_sec=FAKE_SECONDS)
    return Results(grid, jobs)


def write_sources(study: Study) -> None:
    """Rows for every source that has none yet."""
    sources = [study.instruct, study.safety_pool]
    sources += [part for task in study.tasks.values() for part in (task.train, task.utility)]
    sources += [task.rung.harmful for task in study.tasks.values() if task.rung]
    evaluation = study.evaluation
    sources += [Source(bench) for bench in (evaluation.safety_bench, evaluation.over_refusal_bench) if bench]
    for source in sources:
        if source.source.endswith(".jsonl") and not Path(source.source).exists():
            write_jsonl(source.source, [{"id": "a", "prompt": "Name a boat.", "response": "The Swan."}])


def write_data(grid: Grid, folder: Path) -> None:
    """Pool, tasks, their representations (two dimensions that mean something) and the mixed training splits."""
    import pyarrow
    import pyarrow.parquet

    rng = np.random.default_rng(0)
    pool = [
        {
            "id": f"s{i}",
            "prompt": f"How does one polish a lantern of kind {i} <script>alert(1)</script> quietly at night?",
            "response": ("1. No.\n2. Never.\n" if i % 3 == 0 else "I would rather not say. ") * (1 + i % 4),
            "category": CATEGORIES[i % 3],
        }
        for i in range(POOL_ROWS)
    ]
    write_jsonl(folder / "pool.jsonl", pool)
    write_jsonl(folder / "instruct.jsonl", [{"id": "an instruction", "prompt": "q", "response": "a"}])
    write_store(grid, "safety_pool", [row["id"] for row in pool], rng.normal(size=(POOL_ROWS, 8)))
    for task, source in grid.study.anchors.items():
        stem = Path(source.source).stem
        rows = [{"id": f"{stem}{i}", "instruction": f"List lanterns {i}", "output": "1. a\n2. b"} for i in range(10)]
        write_jsonl(folder / f"{stem}.jsonl", rows)
        write_store(grid, task, [row["id"] for row in rows], rng.normal(0.5, 1, size=(10, 8)))
    for alignment in grid.alignments:
        start = {"high": 0, "low": 40}.get(alignment.subset, 10 + alignment.seed)
        chosen = [{"id": row["id"], "messages": json.dumps([])} for row in pool[start : start + alignment.size]]
        chosen.append({"id": "an instruction", "messages": ""})
        messages = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]] * len(chosen)
        table = pyarrow.table({"id": [row["id"] for row in chosen], "messages": messages})
        path = grid.folder / "data" / f"seed{alignment.seed}" / "data" / f"{alignment.split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(table, path)
        write_json(path.parents[1] / "manifests" / f"{alignment.split}.json", {"n_rows": len(chosen)})


def write_store(grid: Grid, name: str, ids: list[str], matrix: np.ndarray) -> None:
    """A complete representation store with one shard."""
    import torch

    from guardrail.similarity.representations.store import FORMAT, KIND, finish_store, shard_file, write_shard
    from guardrail.study.properties import representation_folder

    store = representation_folder(grid, name)
    n, dim = matrix.shape
    manifest = {
        "kind": KIND,
        "format": FORMAT,
        "fingerprint": f"fake-{name}",
        "views": ["last_eos"],
        "n_rows": n,
        "n_excluded": 0,
        "n_truncated": 0,
        "n_shards": 1,
        "dim": dim,
        "model": {"path": "fake", "hash": "fake", "tokenizer_hash": "fake"},
        "source": {"path": "fake"},
        "data_hash": "fake",
        "options": {"text": "full", "prompt_style": "fake", "max_length": 64, "long_rows": "cut", "final_norm": True},
    }
    tensors = {
        "last_eos": torch.tensor(matrix, dtype=torch.float32),
        "rows": torch.arange(n),
        "n_tokens": torch.full((n,), 9, dtype=torch.int32),
        "n_tokens_full": torch.full((n,), 9, dtype=torch.int32),
    }
    path = shard_file(store, manifest["fingerprint"], 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_shard(path, tensors)
    finish_store(store, manifest, ids, export=True)


def finished_study(folder: Path, **changes: Any) -> tuple[Grid, Path]:
    """A whole made-up study below ``folder``; its grid and resolved configuration file."""
    config = study(folder, **changes)
    grid = Grid(config, folder)
    write_data(grid, folder)
    finish(grid)
    return grid, write_json(grid.folder / "study_config.json", as_dict(config))


def write_results(monkeypatch, grid: Grid, config: Path) -> dict:
    arguments = ["write", str(config), "--outputs", str(grid.folder.parent)]
    monkeypatch.setattr("sys.argv", arguments)
    return write.main()
