"""One utility evaluation: rows -> completions -> scores -> one results file. See ``eval_utility.py`` for the command.

The results file is ``{"results": [...], "metrics": {...}, "utility": {...}, "run": {...}}``. Completions are kept on
disk batch by batch until it is written, so that neither a kill nor a failing scorer loses work. A file whose run
fingerprint fits is left alone; one that holds the completions asked for is scored again without a model.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.core.cli import log
from guardrail.core.errors import UserError, unknown
from guardrail.core.files import write_json
from guardrail.core.provenance import fingerprint, run_record
from guardrail.core.ranks import barrier, is_main, process_group
from guardrail.data.prompts import check_style
from guardrail.evaluation.utility import scoring
from guardrail.evaluation.utility.tasks import TaskRows, check_dataset, describe, load_task
from guardrail.models.checkpoints import hash_checkpoint, resolve_checkpoint

GENERATION_FORMAT = 1  # raised when the meaning of a stored completion changes
LOSS_ONLY = "loss"


@dataclass(frozen=True)
class UtilityConfig:
    """All options of ``eval_utility.py``; the only home of their defaults. Raises ``UserError`` when they clash.

    Sampling defaults are shallow-vs-deep-alignment's, which apply with ``do_sample`` only: greedy is the default.
    """

    model_name_or_path: str
    dataset: str
    save_path: str
    torch_dtype: str = "bfloat16"
    data_source: str | None = None
    split: str | None = None
    limit: int | None = None
    model_family: str = "llama2_base"
    prompt_style: str | None = None
    evaluator: str = "rouge_1"
    heldout_loss: bool = False
    do_sample: bool = False
    temperature: float = 0.9
    top_p: float = 0.6
    top_k: int = 50
    max_new_tokens: int = 1024
    seed: int = 0
    samples_per_prompt: int = 1
    generation_backend: str = "hf"
    base_url: str | None = None
    served_model_name: str | None = None
    batch_size_per_device: int | None = None
    batch_tokens: int | None = None
    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        from guardrail.evaluation.safety.answers import MODEL_FAMILIES
        from guardrail.generation import check_engine_options
        from guardrail.models.loading import DTYPES

        check_dataset(self.dataset)
        scoring.check_evaluator(self.evaluator)
        if self.model_family not in MODEL_FAMILIES:
            raise unknown("model family", self.model_family, MODEL_FAMILIES)
        fitting = dict.fromkeys((*MODEL_FAMILIES[self.model_family], "chat_template"))
        if check_style(self.style) not in fitting:
            raise UserError(
                f"prompt style {self.style} does not belong to model family {self.model_family}; "
                f"expected one of {', '.join(fitting)}"
            )
        if self.torch_dtype not in DTYPES:
            raise unknown("value for --torch_dtype:", self.torch_dtype, DTYPES)
        check_engine_options(self)
        if self.wants_loss and self.generation_backend != "hf":
            raise UserError(
                f"the held-out loss is computed with --generation_backend hf, not {self.generation_backend}; "
                "measure it in a second run with --evaluator loss"
            )
        if self.samples_per_prompt > 1 and not self.do_sample:
            raise UserError("--samples_per_prompt above 1 repeats one greedy answer; add --do_sample True")
        if not self.save_path.endswith(".json"):
            raise UserError(f"--save_path names the results file and ends with .json; got {self.save_path!r}")

    @property
    def style(self) -> str:
        """The prompt style that was asked for; a model's name never decides it."""
        return self.prompt_style or self.model_family

    @property
    def results_file(self) -> Path:
        """``save_path`` with ``{seed}`` filled in."""
        return Path(self.save_path.replace("{seed}", str(self.seed)))

    @property
    def wants_generation(self) -> bool:
        return self.evaluator != LOSS_ONLY

    @property
    def wants_loss(self) -> bool:
        return self.heldout_loss or self.evaluator == LOSS_ONLY

    def generation_facts(self) -> dict[str, Any]:
        """The options that decide a completion."""
        return {
            "format": GENERATION_FORMAT,
            "style": self.style,
            "dtype": self.torch_dtype,
            "backend": self.generation_backend,
            "served_model_name": self.served_model_name,
            "samples_per_prompt": self.samples_per_prompt,
            "sampling": sampling_options(self).as_dict(),
        }

    def scoring_facts(self) -> dict[str, Any]:
        """The options that decide a number, given the completions."""
        return {"evaluator": self.evaluator, "heldout_loss": self.wants_loss}


def sampling_options(config: UtilityConfig) -> Any:
    """The decoding options of this run; only those that apply are part of its fingerprint."""
    from guardrail.generation import SamplingOptions

    if not config.do_sample:
        return SamplingOptions(do_sample=False, max_new_tokens=config.max_new_tokens)
    return SamplingOptions(
        do_sample=True,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
    )


def evaluate_utility(config: UtilityConfig) -> dict[str, Any]:
    """Run one evaluation (or find it done) and return the paths and headline numbers.

    Raises ``UserError`` for every wrong input, before a model is loaded.
    """
    resolve_checkpoint(config.model_name_or_path)
    task = load_task(config.dataset, config.data_source, config.split, config.limit)
    inputs = {"model": hash_checkpoint(config.model_name_or_path), "data": task.data_hash}
    generation_key = fingerprint(config.generation_facts(), inputs)
    run_key = fingerprint({"generation": generation_key, **config.scoring_facts()}, inputs)
    save_path = config.results_file
    earlier = _read_earlier(save_path)
    if earlier is not None and earlier["run"].get("fingerprint") == run_key:
        log(f"{save_path}: unchanged, not run again")
        return _headline(save_path, earlier, reused=True)

    work = save_path.with_name(f".{save_path.name}.work")
    rows = _reusable_rows(earlier, generation_key, task) if config.wants_generation else _loss_rows(task)
    with process_group():
        backend = _make_backend(config) if config.wants_loss or rows is None else None
        if rows is None:
            rows = generate_rows(config, task, backend, work, generation_key)
        losses = _losses(config, task, backend) if config.wants_loss else None
        result: dict[str, Any] | None = None
        if is_main():
            result = _assemble(config, task, rows, losses)
            result["run"] = run_record(
                "eval_utility",
                {**dataclasses.asdict(config), "prompt_style": config.style},
                fingerprint=run_key,
                generation_fingerprint=generation_key,
                model_hash=inputs["model"],
                data=describe(task),
                n=len(task.rows),
                seeds={"generation": config.seed if config.do_sample else None, "bootstrap": 0},
                generation=backend.describe() if backend is not None and config.wants_generation else None,
            )
            write_json(save_path, result)
            shutil.rmtree(work, ignore_errors=True)
        barrier()
    return _headline(save_path, result, reused=False) if result is not None else {}


def _read_earlier(save_path: Path) -> dict[str, Any] | None:
    """An earlier results file of this stage; ``None`` when there is none. Another stage's file is refused."""
    if not save_path.exists():
        return None
    try:
        value = json.loads(save_path.read_text(encoding="utf-8"))
        stage = value["run"]["stage"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{save_path} exists and is no utility result; give another --save_path or remove it"
        ) from error
    if stage != "eval_utility":
        raise UserError(f"{save_path} is a result of {stage}; give another --save_path")
    return value


def _reusable_rows(earlier: dict[str, Any] | None, generation_key: str, task: TaskRows) -> list[dict[str, Any]] | None:
    """Rows of an earlier file that holds exactly these completions (scored in another way)."""
    if earlier is None or earlier["run"].get("generation_fingerprint") != generation_key:
        return None
    rows = [{**row, "scores": None} for row in earlier["results"]]
    if any("completion" not in row for row in rows) or {row["id"] for row in rows} != {r["id"] for r in task.rows}:
        return None
    log("the completions are there from an earlier run: scoring them again")
    return rows


def _loss_rows(task: TaskRows) -> list[dict[str, Any]]:
    return [{"id": row["id"], "messages": row["messages"], "reference": row["reference"]} for row in task.rows]


def _make_backend(config: UtilityConfig) -> Any:
    from guardrail.generation import backend_of

    return backend_of(config, config.style)


def generate_rows(
    config: UtilityConfig, task: TaskRows, backend: Any, work: Path, generation_key: str
) -> list[dict[str, Any]]:
    """Result rows (one per ``id`` x ``sample``) without scores, in task order, on every rank."""
    from guardrail.evaluation.utility.context import backend_context, fit_conversation, prompt_limit
    from guardrail.generation import Request, generate_resumable

    limit = prompt_limit(backend_context(backend), config.max_new_tokens)
    fitted = {r["id"]: fit_conversation(backend.tokenizer, config.style, r["messages"], limit) for r in task.rows}
    requests = [
        Request(row["id"], sample, fitted[row["id"]].prompt_ids)
        for row in task.rows
        for sample in range(config.samples_per_prompt)
    ]
    completions = generate_resumable(backend, requests, sampling_options(config), work, generation_key, task.name)
    by_id = {row["id"]: row for row in task.rows}
    return [
        {
            "id": one.id,
            "sample": one.sample,
            "messages": fitted[one.id].messages,
            "completion": one.text,
            "reference": by_id[one.id]["reference"],
            "finish_reason": one.finish_reason,
            "n_prompt_tokens": one.n_prompt_tokens,
            "n_completion_tokens": one.n_completion_tokens,
            "cut_at_stop": one.cut_at_stop,
            "prompt_cut_tokens": fitted[one.id].cut_tokens,
        }
        for one in completions
    ]


def _losses(config: UtilityConfig, task: TaskRows, backend: Any) -> list[Any]:
    from guardrail.evaluation.utility.context import context_tokens
    from guardrail.evaluation.utility.loss import heldout_losses

    return heldout_losses(
        config.model_name_or_path,
        backend.tokenizer,
        config.style,
        task.rows,
        torch_dtype=config.torch_dtype,
        max_length=context_tokens(config.model_name_or_path),
        model=backend.model,
        **({"batch_tokens": config.batch_tokens} if config.batch_tokens else {}),
    )


def _assemble(
    config: UtilityConfig, task: TaskRows, rows: list[dict[str, Any]], losses: list[Any] | None
) -> dict[str, Any]:
    """Score ``rows`` in place and summarise them."""
    metrics: dict[str, Any] = {"evaluator": config.evaluator}
    ids = [row["id"] for row in rows]
    if config.evaluator in scoring.SCORERS:
        pairs = [(row["completion"], row["reference"]) for row in rows]
        for row, scores in zip(rows, scoring.score_rows(config.evaluator, pairs), strict=True):
            row["scores"] = scores
        metrics |= scoring.summarise(config.evaluator, ids, [row["scores"] for row in rows])
    if config.wants_generation:
        metrics |= {
            "n": len(set(ids)),
            "n_completions": len(rows),
            "n_empty": sum(1 for row in rows if not row["completion"].strip()),
            "n_cut_at_stop": sum(1 for row in rows if row["cut_at_stop"]),
            "n_cut_at_max_new_tokens": sum(1 for row in rows if row["finish_reason"] == "length"),
            "n_prompts_cut": sum(1 for row in rows if row["prompt_cut_tokens"] and row["sample"] == 0),
        }
    if losses is not None:
        from guardrail.evaluation.utility.loss import summarise_losses

        by_id = {loss.id: loss for loss in losses}
        for row in rows:
            loss = by_id[row["id"]]
            row["loss"] = {"nll_nats": loss.nll_nats, "n_tokens": loss.n_tokens, "truncated": loss.truncated}
        metrics["heldout_loss"] = summarise_losses(losses)
    metrics["data_hash"] = task.data_hash
    return {"results": rows, "metrics": metrics, "utility": utility_block(config, task, metrics)}


def utility_block(config: UtilityConfig, task: TaskRows, metrics: dict[str, Any]) -> dict[str, Any]:
    """What a study joins to a cell: task, metric, value, interval, N, data hash; and the held-out loss."""
    name = scoring.HEADLINE.get(config.evaluator)
    return {
        "task": task.name,
        "split": task.split,
        "is_sandbox": task.is_sandbox,
        "metric": name,
        "value": metrics[name] if name else None,
        "interval": metrics[name.replace("_percent", "_interval_percent")] if name else None,
        "n": len(task.rows),
        "data_hash": task.data_hash,
        "heldout_loss": metrics.get("heldout_loss"),
    }


def _headline(save_path: Path, result: dict[str, Any], reused: bool) -> dict[str, Any]:
    block = result["utility"]
    out = {"save_path": str(save_path), "task": block["task"], "n": block["n"], "reused": reused}
    if block["metric"]:
        out |= {block["metric"]: block["value"], "interval": block["interval"]}
    if block["heldout_loss"]:
        out["heldout_loss_nats_per_token"] = block["heldout_loss"]["loss_nats_per_token"]
    return out
