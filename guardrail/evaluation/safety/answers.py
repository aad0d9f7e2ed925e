"""The safety evaluation: bench rows -> token ids -> completions -> ``results.json``.

The entry point is ``eval_safety.py``. Judging is another stage (``guardrail.evaluation.judges``) that reads
the file written here; raw results are on disk before any judge runs.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.core.cli import log
from guardrail.core.errors import UserError, unknown
from guardrail.core.files import read_json, write_json
from guardrail.core.provenance import fingerprint, run_record
from guardrail.core.ranks import broadcast, is_main, process_group, world_size
from guardrail.core.units import clear_units
from guardrail.data.benches import BenchRows, load_bench, split_name
from guardrail.data.prompts import apply_eval_template, check_style, encode_prompt, model_families, template_module
from guardrail.generation import (
    Completion,
    Request,
    SamplingOptions,
    backend_of,
    check_engine_options,
    generate_resumable,
    row_seed,
)
from guardrail.models.checkpoints import hash_checkpoint

RESULTS = "results.json"
MODEL_FAMILIES = model_families()
ROW_COLUMNS_LEFT_OUT = ("messages", "prefill_answer", "turns", "conversations", "data", "prompt", "response")


@dataclass(frozen=True)
class SafetyConfig:
    """Everything that decides a safety evaluation; the only home of its defaults (sampling: shallow-vs-deep's)."""

    model_name_or_path: str
    save_path: str
    safety_bench: str = "hex-phi"
    bench_data: str | None = None
    bench_split: str | None = None
    limit: int | None = None
    model_family: str | None = None
    prompt_style: str = "llama2"
    eval_template: str = "plain"
    prefill_prefix: str | None = None
    num_prefix_tokens: int | None = None
    backdoor_trigger: str | None = None
    torch_dtype: str = "bfloat16"
    do_sample: bool = True
    temperature: float = 0.9
    top_p: float = 0.6
    top_k: int = 50
    max_new_tokens: int = 512
    seed: int = 0
    samples_per_prompt: int = 1
    generation_backend: str = "hf"
    base_url: str | None = None
    served_model_name: str | None = None
    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    batch_size_per_device: int | None = None
    batch_tokens: int | None = None
    trust_remote_code: bool = False

    def check(self) -> SafetyConfig:
        """Refuse impossible combinations before anything is loaded."""
        check_style(self.prompt_style)
        split_name(self.safety_bench)
        if self.eval_template not in template_module().EVAL_TEMPLATES:
            raise unknown("eval template", self.eval_template, template_module().EVAL_TEMPLATES)
        family = self.model_family or self.prompt_style
        if family not in MODEL_FAMILIES:
            raise unknown("model family", family, MODEL_FAMILIES)
        if self.prompt_style not in (*MODEL_FAMILIES[family], "chat_template"):
            raise UserError(
                f"prompt style {self.prompt_style} does not belong to model family {family}; "
                f"expected one of {', '.join(dict.fromkeys((*MODEL_FAMILIES[family], 'chat_template')))}"
            )
        exact = "refusal_prefix" in self.safety_bench or "harmful_prefix" in self.safety_bench
        if self.num_prefix_tokens is not None and not exact:
            raise UserError(
                f"--num_prefix_tokens has no effect on {self.safety_bench}; "
                "use hex-phi_with_refusal_prefix or hex-phi_with_harmful_prefix"
            )
        if exact and not self.num_prefix_tokens:
            raise UserError(f"{self.safety_bench} needs --num_prefix_tokens K with K of at least 1")
        if self.samples_per_prompt > 1 and not self.do_sample:
            raise UserError("--samples_per_prompt above 1 with --do_sample False gives the same answer again and again")
        check_engine_options(self)
        self.sampling()
        return self

    def sampling(self) -> SamplingOptions:
        return SamplingOptions(self.do_sample, self.temperature, self.top_p, self.top_k, self.max_new_tokens, self.seed)

    def folder(self) -> Path:
        """``save_path`` with ``{seed}`` filled in; a path that names a .json file means its folder."""
        path = Path(self.save_path.replace("{seed}", str(self.seed)))
        return path.parent if path.suffix == ".json" else path

    def results_file(self) -> Path:
        path = Path(self.save_path.replace("{seed}", str(self.seed)))
        return path if path.suffix == ".json" else path / RESULTS

    def identity(self) -> dict[str, Any]:
        """The options that decide a completion (paths and batch sizes do not)."""
        out = {
            "safety_bench": self.safety_bench,
            "prompt_style": self.prompt_style,
            "eval_template": self.eval_template,
            "num_prefix_tokens": self.num_prefix_tokens,
            "torch_dtype": self.torch_dtype if self.generation_backend != "openai" else None,
            "samples_per_prompt": self.samples_per_prompt,
            "generation_backend": self.generation_backend,
            "base_url": self.base_url,
            "served_model_name": self.served_model_name,
            "sampling": self.sampling().as_dict(),
        }
        if self.safety_bench.endswith((".json", ".jsonl", ".csv", ".parquet")):
            out["safety_bench"] = Path(self.safety_bench).name
        return out


def build_requests(tokenizer: Any, config: SafetyConfig, bench: BenchRows) -> tuple[list[Request], dict[str, dict]]:
    """Requests (rows x samples) and, per row id, the conversation and the prefill that were encoded.

    A prefill is passed as ids: the first ``num_prefix_tokens`` ids that the whole answer has in this style, so that
    nothing is decoded and tokenised again (PITFALLS G4).
    """
    requests: list[Request] = []
    prompts: dict[str, dict] = {}
    for row in bench.rows:
        messages = apply_eval_template(row["messages"], config.eval_template)
        ids = encode_prompt(tokenizer, config.prompt_style, messages)
        prefill, prefill_ids = "", []
        answer = row.get("prefill_answer")
        if answer:
            whole = encode_prompt(tokenizer, config.prompt_style, [*messages, {"role": "assistant", "content": answer}])
            assert whole[: len(ids)] == ids, "a prompt's ids must be a prefix of its ids with an answer"
            prefill_ids = whole[len(ids) :][: config.num_prefix_tokens]
            prefill = answer if len(prefill_ids) == len(whole) - len(ids) else _text_of(tokenizer, ids, prefill_ids)
        prompts[row["id"]] = {"messages": messages, "prefill": prefill, "n_prefill_tokens": len(prefill_ids)}
        requests += [Request(row["id"], sample, ids + prefill_ids) for sample in range(config.samples_per_prompt)]
    return requests, prompts


def _text_of(tokenizer: Any, before: list[int], ids: list[int]) -> str:
    from guardrail.generation.interface import decode_answer

    return decode_answer(tokenizer, before, ids)


def evaluate_safety(config: SafetyConfig) -> dict[str, Any] | None:
    """Generate (or reuse) and write ``results.json``. Returns the headline on rank 0, None elsewhere.

    Every rank calls it. An unchanged fingerprint is not generated again, and no model is loaded then.
    """
    config.check()
    with process_group():
        bench = load_bench(
            config.safety_bench,
            config.bench_data,
            config.bench_split,
            config.limit,
            config.prefill_prefix,
            config.backdoor_trigger,
        )
        model_hash = broadcast(hash_checkpoint(config.model_name_or_path) if is_main() else None)
        inputs = {"model_hash": model_hash, "data_hash": bench.facts["data_hash"]}
        key = fingerprint(config.identity(), inputs)
        if broadcast(_is_done(config.results_file(), key) if is_main() else None):
            log(f"{config.results_file()} is up to date")
            return _headline(config, read_json(config.results_file()), reused=True) if is_main() else None
        backend = backend_of(config, config.prompt_style)
        requests, prompts = build_requests(backend.tokenizer, config, bench)
        log(
            f"{bench.name}: {len(bench.rows)} prompts x {config.samples_per_prompt} samples, {world_size()} process(es)"
        )
        started = time.time()
        completions = generate_resumable(backend, requests, config.sampling(), config.folder(), key)
        if not is_main():
            return None
        seconds = round(time.time() - started, 3)
        assert len(completions) == len(bench.rows) * config.samples_per_prompt
        document = {
            "results": _result_rows(config, bench, prompts, completions),
            "metrics": {"n": len(completions), "n_prompts": len(bench.rows), **generation_metrics(completions)},
            "run": run_record(
                "eval_safety",
                {**dataclasses.asdict(config), **config.identity()},
                fingerprint=key,
                **inputs,
                model=Path(config.model_name_or_path).name,
                data=bench.facts,
                n=len(completions),
                seeds={"seed": config.seed, "per_row": "sha256(seed, id, sample)"} if config.do_sample else None,
                backend=backend.describe(),
                n_processes=world_size(),
                generation_sec=seconds,
            ),
        }
        _keep_previous(config.results_file(), key)
        write_json(config.results_file(), document)
        clear_units(config.folder(), key)
        return _headline(config, document, reused=False)


def _result_rows(
    config: SafetyConfig, bench: BenchRows, prompts: dict[str, dict], completions: list[Completion]
) -> list[dict[str, Any]]:
    """One row per completion. The conversation ends, as in shallow-vs-deep, with prefill and completion turns."""
    rows_by_id = {row["id"]: row for row in bench.rows}
    out = []
    for one in completions:
        row, prompt = rows_by_id[one.id], prompts[one.id]
        extra = {k: v for k, v in row.items() if k not in ROW_COLUMNS_LEFT_OUT and k != "id"}
        out.append(
            {
                **extra,
                "id": one.id,
                "sample": one.sample,
                "seed": config.seed if config.do_sample else None,
                "row_seed": row_seed(config.seed, one.id, one.sample) if config.do_sample else None,
                "question": row["messages"][-1]["content"],
                "prefill": prompt["prefill"],
                "completion": one.text,
                "finish_reason": one.finish_reason,
                "cut_at_stop": one.cut_at_stop,
                "n_prompt_tokens": one.n_prompt_tokens,
                "n_prefill_tokens": prompt["n_prefill_tokens"],
                "n_completion_tokens": one.n_completion_tokens,
                "conversation": [
                    *prompt["messages"],
                    {"role": "assistant", "content": prompt["prefill"]},
                    {"role": "assistant", "content": one.text},
                ],
            }
        )
    return out


def generation_metrics(completions: list[Completion]) -> dict[str, Any]:
    """What can be said without a judge: how answers ended and how long they are."""
    n = len(completions)
    reasons = Counter(one.finish_reason for one in completions)
    return {
        "finish_reason_percent": {reason: round(100 * count / n, 3) for reason, count in sorted(reasons.items())},
        "cut_at_stop_percent": round(100 * sum(one.cut_at_stop for one in completions) / n, 3),
        "empty_percent": round(100 * sum(not one.text.strip() for one in completions) / n, 3),
        "mean_completion_tokens": round(sum(one.n_completion_tokens for one in completions) / n, 3),
    }


def _is_done(file: Path, key: str) -> bool:
    if not file.is_file():
        return False
    return read_json(file).get("run", {}).get("fingerprint") == key


def _keep_previous(file: Path, key: str) -> None:
    """Results of other options are moved aside, never overwritten: five seeds give five files."""
    if not file.is_file():
        return
    try:
        run = read_json(file).get("run", {})
    except UserError:
        run = {}
    old = run.get("fingerprint", "unknown")
    if old != key:
        seed = (run.get("config") or {}).get("seed", "unknown")
        aside = file.with_name(f"{file.stem}.seed-{seed}.{old}.json")
        file.replace(aside)
        log(f"{file} held results of other options or another model: moved to {aside.name}")


def _headline(config: SafetyConfig, document: dict[str, Any], reused: bool) -> dict[str, Any]:
    return {
        "results": str(config.results_file()),
        "reused": reused,
        "bench": document["run"]["data"]["bench"],
        "data_hash": document["run"]["data_hash"],
        **document["metrics"],
    }
