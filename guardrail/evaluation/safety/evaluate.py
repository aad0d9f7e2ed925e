"""Answers to harmful and to harmless prompts: bench rows -> completions -> ``results.json``.

The entry point is ``eval_safety.py``. Judging is another stage (``guardrail.evaluation.judges``) that reads the file
written here; raw results are on disk before any judge runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.core.cli import log, positive_int
from guardrail.core.errors import UserError, unknown
from guardrail.core.options import option
from guardrail.core.ranks import broadcast, is_main, process_group, world_size
from guardrail.data.benches import BenchRows, load_bench, split_name
from guardrail.data.prompts import apply_eval_template, encode_prompt, eval_template_fingerprint, template_module
from guardrail.evaluation.attacks import Attack, NoAttack, attacked_rows
from guardrail.evaluation.completions import (
    EvaluationOptions,
    Prompt,
    complete,
    earlier_result,
    evaluation_key,
    record,
    save_result,
    source_name,
)
from guardrail.generation import Backend, row_seed
from guardrail.generation.interface import decode_answer

STAGE = "eval_safety"
NO_ATTACK = NoAttack()
RESULTS = "results.json"
DEFAULT_STYLE = "llama2"  # shallow-vs-deep's
ROW_COLUMNS_LEFT_OUT = ("messages", "prefill_answer", "turns", "conversations", "data", "prompt", "response")


@dataclass(frozen=True, kw_only=True)
class SafetyConfig(EvaluationOptions):
    """Options of ``eval_safety.py``; sampling defaults are shallow-vs-deep's. ``UserError`` when they clash."""

    save_path: str = option(help="folder for results.json; {seed} in it is filled in", decides=False)
    safety_bench: str = option("hex-phi", "bench name or a file of prompts")
    bench_data: str | None = option(None, "local copy of the bench (file or folder)", decides=False)
    bench_split: str | None = option(None, "split of a local folder")
    limit: int | None = option(None, "first N prompts only", parse=positive_int)
    prompt_style: str | None = option(
        None, "llama2_base, llama2, gemma_base, gemma, chat_template; default: the model family's, else llama2"
    )
    eval_template: str = option("plain", "plain, null, alpaca, pure_bad, helpful, aoa")
    prefill_prefix: str | None = option(None, "text put into the model's mouth (<bench>_with_prefix)")
    num_prefix_tokens: int | None = option(
        None,
        "tokens of the given answer to prefill (<bench>_with_refusal_prefix, _with_harmful_prefix)",
        parse=positive_int,
        flags=("--num_perfix_tokens",),
    )
    backdoor_trigger: str | None = option(None, "text appended to the prompt (<bench>-backdoor)")
    do_sample: bool = option(True, "sample instead of greedy decoding")

    def __post_init__(self) -> None:
        split_name(self.safety_bench)
        if self.eval_template not in template_module().EVAL_TEMPLATES:
            raise unknown("eval template", self.eval_template, template_module().EVAL_TEMPLATES)
        super().__post_init__()
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

    @property
    def style(self) -> str:
        return self.prompt_style or self.model_family or DEFAULT_STYLE

    @property
    def results_file(self) -> Path:
        """``save_path`` with ``{seed}`` filled in, and ``results.json`` unless it names a .json file."""
        path = super().results_file
        return path if path.suffix == ".json" else path / RESULTS

    def identity(self) -> dict[str, Any]:
        return {
            **super().identity(),
            "safety_bench": source_name(self.safety_bench),
            "eval_template_text": eval_template_fingerprint(self.eval_template),
        }

    def bench(self) -> BenchRows:
        """The prompts that these options ask for."""
        return load_bench(
            *(self.safety_bench, self.bench_data, self.bench_split, self.limit),
            *(self.prefill_prefix, self.backdoor_trigger),
        )


def build_prompts(tokenizer: Any, config: SafetyConfig, bench: BenchRows, attack: Attack = NO_ATTACK) -> list[Prompt]:
    """Every row encoded as ``attack`` asks it, with what its result rows say: their question is the bench's.

    A prefill is passed as ids: the first ``num_prefix_tokens`` ids that the whole answer has in this style, so that
    nothing is decoded and tokenised again (PITFALLS G4).
    """
    out = []
    for row, asked in zip(bench.rows, attacked_rows(attack, bench.rows), strict=True):
        messages = apply_eval_template(asked["messages"], config.eval_template)
        ids = encode_prompt(tokenizer, config.style, messages)
        prefill, prefill_ids = "", []
        if answer := asked.get("prefill_answer"):
            whole = encode_prompt(tokenizer, config.style, [*messages, {"role": "assistant", "content": answer}])
            assert whole[: len(ids)] == ids, "a prompt's ids must be a prefix of its ids with an answer"
            prefill_ids = whole[len(ids) :][: config.num_prefix_tokens]
            all_of_it = len(prefill_ids) == len(whole) - len(ids)
            prefill = answer if all_of_it else decode_answer(tokenizer, ids, prefill_ids)
        columns = {
            **{k: v for k, v in row.items() if k not in ROW_COLUMNS_LEFT_OUT},
            "question": row["messages"][-1]["content"],
            "prefill": prefill,
            "n_prefill_tokens": len(prefill_ids),
            "conversation": [*messages, {"role": "assistant", "content": prefill}],
        }
        out.append(Prompt(row["id"], ids + prefill_ids, columns))
    return out


def evaluate_safety(
    config: SafetyConfig, backend: Backend | None = None, attack: Attack = NO_ATTACK
) -> dict[str, Any] | None:
    """Generate (or reuse) and write ``results.json``. Returns the headline on rank 0, None elsewhere.

    Every rank calls it. A result with the key of this run is not made again, and no model is loaded then. Raises
    ``UserError`` when ``attack`` changes weights that are not in this process.
    """
    if attack.changes_weights and config.generation_backend != "hf":
        raise UserError(f"attack {attack.name} changes weights in memory, which only --generation_backend hf has")
    config = dataclasses.replace(config, **dataclasses.asdict(attack.decoding(config.sampling())))
    with process_group():
        bench = config.bench()
        identity = {**config.identity(), **attack.identity()}
        key, inputs = evaluation_key(identity, config.model_name_or_path, bench.facts["data_hash"])
        earlier = broadcast(earlier_result(config.results_file, STAGE) if is_main() else None)
        if earlier is not None and earlier["run"].get("fingerprint") == key:
            log(f"{config.results_file} is up to date")
            return _headline(config, earlier, reused=True) if is_main() else None
        backend = backend or config.backend()
        prompts = build_prompts(backend.tokenizer, config, bench, attack)
        log(f"{bench.name}: {len(prompts)} prompts x {config.samples_per_prompt} samples, {world_size()} process(es)")
        started = time.time()
        model = getattr(backend, "model", None)
        if attack.changes_weights:
            attack.prepare(model, lambda asked: encode_prompt(backend.tokenizer, config.style, asked))
        with attack.weights(model) if attack.changes_weights else contextlib.nullcontext():
            rows = complete(config, backend, prompts, key, "generate")
        if not is_main():
            return None
        seconds = round(time.time() - started, 3)
        for row in rows:  # the conversation ends, as in shallow-vs-deep, with prefill and completion turns
            row["conversation"] = [*row["conversation"], {"role": "assistant", "content": row["completion"]}]
            row["seed"] = config.seed if config.do_sample else None
            row["row_seed"] = row_seed(config.seed, row["id"], row["sample"]) if config.do_sample else None
        document = {
            "results": rows,
            "metrics": {"n": len(rows), "n_prompts": len(bench.rows), **generation_metrics(rows)},
            "run": record(
                *(STAGE, dataclasses.replace(config, safety_bench=source_name(config.safety_bench)), key, inputs),
                model=Path(config.model_name_or_path).name,
                data=bench.facts,
                n=len(rows),
                seeds={"seed": config.seed, "per_row": "sha256(seed, id, sample)"} if config.do_sample else None,
                backend=backend.describe(),
                n_processes=world_size(),
                **attack.identity(),
                generation_sec=seconds,
            ),
        }
        if earlier is not None:
            _keep_previous(config.results_file, earlier)
        save_result(config, document, key)
        return _headline(config, document, reused=False)


def generation_metrics(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What can be said without a judge: how answers ended and how long they are; None of nothing."""

    def percent(count: int) -> float | None:
        return round(100 * count / len(rows), 3) if rows else None

    reasons = Counter(row["finish_reason"] for row in rows)
    tokens = sum(row["n_completion_tokens"] for row in rows)
    return {
        "finish_reason_percent": {reason: percent(count) for reason, count in sorted(reasons.items())},
        "cut_at_stop_percent": percent(sum(row["cut_at_stop"] for row in rows)),
        "empty_percent": percent(sum(not row["completion"].strip() for row in rows)),
        "mean_completion_tokens": round(tokens / len(rows), 3) if rows else None,
    }


def _keep_previous(file: Path, earlier: dict[str, Any]) -> None:
    """Results of other options are moved aside, never overwritten: five seeds give five files."""
    seed, old = earlier["run"]["config"].get("seed", "unknown"), earlier["run"].get("fingerprint", "unknown")
    aside = file.with_name(f"{file.stem}.seed-{seed}.{old}.json")
    file.replace(aside)
    log(f"{file} held results of other options or another model: moved to {aside.name}")


def _headline(config: SafetyConfig, document: dict[str, Any], reused: bool) -> dict[str, Any]:
    return {
        "results": str(config.results_file),
        "reused": reused,
        "bench": document["run"]["data"]["bench"],
        "data_hash": document["run"]["data_hash"],
        **document["metrics"],
    }
