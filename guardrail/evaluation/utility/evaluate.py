"""One utility evaluation: rows -> completions -> scores -> one results file. See ``eval_utility.py`` for the command.

The results file is ``{"results": [...], "metrics": {...}, "utility": {...}, "run": {...}}``. A file whose key fits is
left alone; one that holds the completions asked for is scored again without a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from guardrail.core.cli import Parser, log, positive_int
from guardrail.core.errors import UserError
from guardrail.core.options import add_options, option, read_options
from guardrail.core.provenance import fingerprint
from guardrail.core.ranks import barrier, broadcast, is_main, process_group
from guardrail.data.prompts import model_families, style_names
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
from guardrail.evaluation.utility import scoring
from guardrail.evaluation.utility.tasks import TASKS, TaskRows, check_dataset, describe, load_task
from guardrail.generation import Backend
from guardrail.models.checkpoints import resolve_checkpoint

STAGE = "eval_utility"
LOSS_ONLY = "loss"


@dataclass(frozen=True, kw_only=True)
class UtilityConfig(EvaluationOptions):
    """Options of ``eval_utility.py``; greedy is the default. ``UserError`` when they clash.

    Sampling defaults are shallow-vs-deep-alignment's, which apply with ``do_sample`` only.
    """

    dataset: str = option(help=f"{', '.join(TASKS)}, or a data file or folder with answers")
    data_source: str | None = option(
        None,
        "where the named data set lies (file, hub-layout folder, hub name); "
        "default: see guardrail/evaluation/utility/tasks.py",
        decides=False,
    )
    split: str | None = option(None, "split of the source; default: the task's test split")
    limit: int | None = option(None, "first rows only", parse=positive_int)
    model_family: str | None = option(
        "llama2_base",
        "prompt style used when --prompt_style is not given",
        choices=lambda: tuple(model_families()),
        decides=False,
    )
    prompt_style: str | None = option(None, "prompt style", choices=style_names)
    evaluator: str = option(
        "rouge_1",
        "how completions are scored; loss: held-out loss only, nothing is generated",
        choices=scoring.EVALUATORS,
    )
    heldout_loss: bool = option(False, "also measure the training loss on these rows")
    max_new_tokens: int = option(1024, "longest completion in tokens", parse=positive_int)

    def __post_init__(self) -> None:
        check_dataset(self.dataset)
        scoring.check_evaluator(self.evaluator)
        super().__post_init__()
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
    def wants_generation(self) -> bool:
        return self.evaluator != LOSS_ONLY

    @property
    def wants_loss(self) -> bool:
        return self.heldout_loss or self.evaluator == LOSS_ONLY

    def generation_identity(self) -> dict[str, Any]:
        """The options that decide a completion; the others decide a number, given the completions."""
        scored = ("evaluator", "heldout_loss")
        return {name: value for name, value in self.identity().items() if name not in scored}

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "dataset": source_name(self.dataset), "heldout_loss": self.wants_loss}


def evaluate_utility(config: UtilityConfig, backend: Backend | None = None) -> dict[str, Any]:
    """Run one evaluation (or find it done) and return the paths and headline numbers.

    Raises ``UserError`` for every wrong input, before a model is loaded.
    """
    resolve_checkpoint(config.model_name_or_path)
    task = load_task(config.dataset, config.data_source, config.split, config.limit)
    with process_group():
        model = config.model_name_or_path
        generation_key, inputs = evaluation_key(config.generation_identity(), model, task.data_hash)
        key = fingerprint(config.identity(), inputs)
        earlier = broadcast(earlier_result(config.results_file, STAGE) if is_main() else None)
        if earlier is not None and earlier["run"].get("fingerprint") == key:
            log(f"{config.results_file}: unchanged, not run again")
            return _headline(config, earlier, reused=True)
        rows = _reusable_rows(earlier, generation_key, task) if config.wants_generation else _loss_rows(task)
        if backend is None and (config.wants_loss or rows is None):
            backend = config.backend()
        if rows is None:
            assert backend is not None
            rows = generate_rows(config, task, backend, generation_key)
        losses = _losses(config, task, backend) if config.wants_loss else None
        result: dict[str, Any] | None = None
        if is_main():
            result = _assemble(config, task, rows, losses)
            result["run"] = record(
                *(STAGE, config, key, inputs),
                generation_fingerprint=generation_key,
                data=describe(task),
                n=len(task.rows),
                seeds={"generation": config.seed if config.do_sample else None, "bootstrap": 0},
                generation=backend.describe() if backend is not None and config.wants_generation else None,
            )
            save_result(config, result, generation_key)
        barrier()
    return _headline(config, result, reused=False) if result is not None else {}


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


def generate_rows(config: UtilityConfig, task: TaskRows, backend: Backend, key: str) -> list[dict[str, Any]]:
    """Result rows (one per ``id`` x ``sample``) without scores, in task order, on every rank."""
    from guardrail.generation.context import backend_context, fit_conversation, prompt_limit

    limit = prompt_limit(backend_context(backend), config.max_new_tokens)
    prompts = []
    for row in task.rows:
        fitted = fit_conversation(backend.tokenizer, config.style, row["messages"], limit)
        columns = {"messages": fitted.messages, "reference": row["reference"], "prompt_cut_tokens": fitted.cut_tokens}
        prompts.append(Prompt(row["id"], fitted.prompt_ids, columns))
    return complete(config, backend, prompts, key, task.name)


def _losses(config: UtilityConfig, task: TaskRows, backend: Any) -> list[Any]:
    from guardrail.evaluation.utility.loss import BATCH_TOKENS, heldout_losses

    return heldout_losses(
        config.model_name_or_path,
        backend.tokenizer,
        config.style,
        task.rows,
        torch_dtype=config.torch_dtype,
        max_length=backend.context_tokens,
        model=backend.model,
        batch_tokens=config.batch_tokens or BATCH_TOKENS,
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
    name = scoring.HEADLINE.get(config.evaluator)
    utility = {  # what a study joins to a cell
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
    return {"results": rows, "metrics": metrics, "utility": utility}


def _headline(config: UtilityConfig, result: dict[str, Any], reused: bool) -> dict[str, Any]:
    block = result["utility"]
    out = {"save_path": str(config.results_file), "task": block["task"], "n": block["n"], "reused": reused}
    if block["metric"]:
        out |= {block["metric"]: block["value"], "interval": block["interval"]}
    if block["heldout_loss"]:
        out["heldout_loss_nats_per_token"] = block["heldout_loss"]["loss_nats_per_token"]
    return out


def build_parser() -> Parser:
    parser = Parser(
        description="Utility of a model on a downstream task: completions, scores per row, means with intervals, "
        "held-out loss."
    )
    add_options(parser, UtilityConfig)
    return parser


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return evaluate_utility(read_options(UtilityConfig, build_parser().parse_args(argv)))
