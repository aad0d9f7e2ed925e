"""Hand a model to EleutherAI's lm-evaluation-harness and keep its results in this project's schema.

    python __main__.py --benchmark lm_eval:arc_easy,hellaswag --model_id ID --model_name_or_path M --output_dir O

The harness is optional (requirements-lm-eval.txt) and does all the work; this module gives it the right prompt style as
a chat template, checks what can be checked before a model loads, and writes

    <output_dir>/lm_eval_results.json   results (one per document), metrics, utility, run
    <output_dir>/lm_eval_raw.json       the harness's own report

A prompt style becomes a chat template (`jinja_template`), the only form that the harness takes: rendering with it and
tokenising without special tokens gives the ids of ``encode_prompt``, BOS once. Like every chat template, it starts an
answer at the generation prompt, so the blank that ``llama2`` puts before an answer is for the model to say.

Metrics keep the harness's names and units. Known limits: several GPUs by vLLM's tensor parallelism or
``accelerate launch``; tasks that run generated code are refused by the harness.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.metadata
import importlib.util
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardrail.core.cli import log
from guardrail.core.errors import UserError
from guardrail.core.files import hash_file, write_json
from guardrail.core.options import option
from guardrail.core.provenance import fingerprint, run_record
from guardrail.core.ranks import is_main
from guardrail.data.prompts import check_style, template_module
from guardrail.evaluation.completions import BenchmarkOptions, choose_style, earlier_result
from guardrail.models.checkpoints import hash_checkpoint, resolve_checkpoint
from guardrail.models.fetch import local_checkpoint

STAGE = "lm_eval"
NEAR_TASKS = 5
NORMAL_95 = 1.96
HARNESS_BACKENDS = {"hf": "hf", "vLLM": "vllm"}
WITHOUT_EFFECT = ("batch_tokens", "base_url", "served_model_name")  # engine options that the harness has no use for


@dataclass(frozen=True, kw_only=True)
class HarnessConfig(BenchmarkOptions):
    """Options of ``--benchmark lm_eval:...``. Raises ``UserError`` when they clash."""

    tasks: tuple[str, ...] = ()
    num_fewshot: int | None = option(None, "lm_eval: examples in the prompt; default: the task's")
    include_path: str | None = option(None, "lm_eval: folder with task files of your own", decides=False)

    def __post_init__(self) -> None:
        if not self.tasks:
            raise UserError("no task; expected --benchmark lm_eval:TASK[,TASK], such as lm_eval:arc_easy")
        if self.model_name_or_path is None:
            raise UserError("--benchmark lm_eval needs --model_name_or_path")
        if self.generation_backend not in HARNESS_BACKENDS:
            raise UserError(
                f"--generation_backend {self.generation_backend} cannot be used with lm_eval; use one of: "
                f"{', '.join(HARNESS_BACKENDS)}"
            )
        self.check_engine()
        if self.prompt_style is not None:
            check_style(self.prompt_style)
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise UserError(f"--num_fewshot {self.num_fewshot}; expected 0 or more")
        if self.include_path is not None and not Path(self.include_path).is_dir():
            raise UserError(f"no such folder: {self.include_path}; expected one with lm_eval task files")

    def identity(self) -> dict[str, Any]:
        """What decides a number, beside model and task data."""
        own = {"tasks": list(self.tasks), "task_files": self.task_files(), "lm_eval": _version()}
        return {**self.engine_identity(), **self.style_identity(None), **own}

    def task_files(self) -> dict[str, str]:
        """Path and hash of every file below ``include_path`` (task files and data), our own output left out."""
        if self.include_path is None:
            return {}
        root, out = Path(self.include_path).resolve(), Path(self.output_dir).resolve()
        files = [file for file in sorted(root.rglob("*")) if file.is_file() and not file.is_relative_to(out)]
        return {str(file.relative_to(root)): hash_file(file) for file in files if "__pycache__" not in file.parts}


def run_harness(config: HarnessConfig) -> dict[str, Any]:
    """Evaluate (or find it done); paths and headline numbers. ``UserError``: harness missing, unknown task, no data."""
    model = resolve_checkpoint(str(config.model_name_or_path))
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("lm-evaluation-harness is not installed; run: pip install -r requirements-lm-eval.txt")
    model_hash = hash_checkpoint(model)
    key = fingerprint(config.identity(), {"model": model_hash})
    path = Path(config.output_dir) / "lm_eval_results.json"
    earlier = earlier_result(path, STAGE, "--output_dir")
    if earlier is not None and earlier["run"].get("fingerprint") == key:
        log(f"{path}: unchanged, not run again")
        return _headline(path, earlier, reused=True)

    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=config.include_path)
    check_tasks(config.tasks, manager.all_tasks)
    with tempfile.TemporaryDirectory(prefix="guardrail-lm-eval-") as folder, contextlib.redirect_stdout(sys.stderr):
        raw, style = _evaluate(config, model, manager, Path(folder))
    if raw is None or not is_main():  # ranks above 0
        return {}
    result = convert(raw, config.tasks)
    result["run"] = run_record(
        STAGE,
        dataclasses.asdict(config),
        fingerprint=key,
        identity=config.identity(),
        model_hash=model_hash,
        data={"task_hashes": raw.get("task_hashes"), "task_versions": raw.get("versions")},
        n={task: block["n"] for task, block in result["metrics"].items()},
        seeds={"all": config.seed},
        prompt_style=style,
        lm_eval=_version(),
    )
    write_json(
        Path(config.output_dir) / "lm_eval_raw.json", _jsonable({k: v for k, v in raw.items() if k != "samples"})
    )
    write_json(path, _jsonable(result))
    return _headline(path, result, reused=False)


def _version() -> str | None:
    """The installed harness's version; None where there is none."""
    return None if importlib.util.find_spec("lm_eval") is None else importlib.metadata.version("lm_eval")


def check_tasks(wanted: tuple[str, ...], known: list[str]) -> None:
    """Refuse unknown tasks with the nearest names (there are thousands; they are not all listed)."""
    for task in wanted:
        if task not in known:
            near = difflib.get_close_matches(task, known, n=NEAR_TASKS, cutoff=0.4)
            hint = f"did you mean one of: {', '.join(near)}?" if near else "see `lm_eval ls tasks`"
            raise UserError(f"unknown lm_eval task {task!r} (of {len(known)}); {hint}")


def _literal(text: str) -> str:
    """``text`` as a Jinja expression; ``{eos}`` in it becomes the tokenizer's EOS string."""
    parts = [json.dumps(part) for part in text.split("{eos}")]
    return " ~ eos_token ~ ".join(parts)


def _user_turn(template: str) -> str:
    """A user template as a Jinja expression over ``system`` and ``message``."""
    head, tail = template.rsplit("{text}", 1)
    before, system, after = head.partition("{system}")
    parts = [_literal(before), "system", _literal(after)] if system else [_literal(head)]
    return " ~ ".join([*parts, "message['content']", _literal(tail)])


def jinja_template(style: str) -> str | None:
    """The chat template of a named style; None for ``chat_template``, which is the tokenizer's own."""
    if check_style(style) == "chat_template":
        return None
    s = template_module().STYLES[style]
    return (
        "{{ bos_token }}"
        "{% if messages[0]['role'] == 'system' %}"
        "{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
        "{% else %}"
        f"{{% set system = {_literal(s.default_system)} %}}{{% set turns = messages %}}"
        "{% endif %}"
        "{% for message in turns %}"
        "{% if message['role'] == 'user' and loop.first %}"
        f"{{{{ {_user_turn(s.first_user)} }}}}"
        "{% elif message['role'] == 'user' %}"
        f"{{{{ {_user_turn(s.next_user)} }}}}"
        "{% else %}"
        f"{{{{ {_literal(s.answer_start)} ~ message['content'] }}}}"
        "{% if loop.last %}"
        f"{{{{ {_literal(s.answer_end)} }}}}"
        "{% else %}"
        f"{{{{ {_literal(s.history_end)} }}}}"
        "{% endif %}{% endif %}{% endfor %}"
    )


def style_tokenizer(model: str, style: str, folder: Path, trust_remote_code: bool = False) -> str:
    """A copy of the model's tokenizer in ``folder`` whose chat template is ``style``."""
    from guardrail.models.loading import load_tokenizer

    tokenizer = load_tokenizer(model, trust_remote_code)
    tokenizer.chat_template = jinja_template(style)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _evaluate(
    config: HarnessConfig, model: str, manager: Any, folder: Path
) -> tuple[dict[str, Any] | None, str | None]:
    """The harness's report, and the prompt style in force (None: the tasks' plain text, as for a base model)."""
    from lm_eval import simple_evaluate

    from guardrail.models.loading import check_loadable

    check_loadable(model, config.trust_remote_code)
    arguments: dict[str, Any] = {
        "pretrained": local_checkpoint(model),
        "dtype": config.torch_dtype,
        "trust_remote_code": config.trust_remote_code,
    }
    style, reason = choose_style(config, None)
    if reason == "flag" and style not in (None, "chat_template"):
        arguments["tokenizer"] = style_tokenizer(model, style, folder, config.trust_remote_code)
    if config.generation_backend == "vLLM":
        arguments["tensor_parallel_size"] = config.tensor_parallel_size
        if config.data_parallel_size > 1:
            arguments["data_parallel_size"] = config.data_parallel_size
    try:
        raw = simple_evaluate(
            model=HARNESS_BACKENDS[config.generation_backend],
            model_args=arguments,
            tasks=list(config.tasks),
            task_manager=manager,
            num_fewshot=config.num_fewshot,
            limit=config.limit,
            batch_size=config.batch_size_per_device or (16 if config.generation_backend == "hf" else "auto"),
            apply_chat_template=style is not None,
            random_seed=config.seed,
            numpy_random_seed=config.seed,
            torch_random_seed=config.seed,
            fewshot_random_seed=config.seed,
            **({"device": _device()} if config.generation_backend == "hf" else {}),
        )
    except (ConnectionError, FileNotFoundError) as error:
        raise UserError(
            f"the data of {', '.join(config.tasks)} cannot be had ({type(error).__name__}: {str(error)[:200]}); "
            "tasks load from the hub, or from local files by a task file of your own (--include_path)"
        ) from error
    return raw, style


def _device() -> str:
    from guardrail.models.loading import pick_device

    return str(pick_device())


def convert(raw: dict[str, Any], tasks: tuple[str, ...]) -> dict[str, Any]:
    """The harness's report as ``results`` (a row per document), ``metrics`` (per task) and ``utility``."""
    metrics: dict[str, Any] = {}
    for task, block in raw["results"].items():
        counts = (raw.get("n-samples") or {}).get(task) or {}
        n = counts.get("effective", block.get("sample_len"))
        metrics[task] = {
            "n": n,
            "scores": _scores(block),
            "higher_is_better": (raw.get("higher_is_better") or {}).get(task),
        }
    rows = [
        {
            "id": f"{task}:{sample['doc_id']}",
            "sample": 0,
            "task": task,
            "filter": sample.get("filter", "none"),
            "doc_hash": sample.get("doc_hash"),
            "reference": sample.get("target"),
            "completion": sample.get("filtered_resps"),
            "scores": {name: sample[name] for name in sample.get("metrics", ()) if name in sample},
        }
        for task, samples in (raw.get("samples") or {}).items()
        for sample in samples
    ]
    blocks = [_utility(task, metrics[task]) for task in tasks if task in metrics]
    return {"results": rows, "metrics": metrics, "utility": {**(blocks[0] if blocks else {}), "tasks": blocks}}


def _scores(block: dict[str, Any]) -> dict[str, Any]:
    """``metric`` or ``metric,filter`` -> value, standard error and its 95% normal interval, in the harness's units."""
    out: dict[str, Any] = {}
    for name, value in block.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or name in ("sample_len", "sample_count"):
            continue
        metric, _, by = name.partition(",")
        if metric.endswith("_stderr"):
            continue
        error = block.get(f"{metric}_stderr,{by}" if by else f"{metric}_stderr")
        error = error if isinstance(error, (int, float)) else None
        interval = [value - NORMAL_95 * error, value + NORMAL_95 * error] if error is not None else None
        out[metric if by in ("", "none") else name] = {"value": value, "standard_error": error, "interval": interval}
    return out


def _utility(task: str, block: dict[str, Any]) -> dict[str, Any]:
    """One task as a ``utility`` block: its first metric."""
    name, score = next(iter(block["scores"].items()), (None, {"value": None, "interval": None}))
    return {
        "task": f"lm_eval:{task}",
        "metric": name,
        "value": score["value"],
        "interval": score["interval"],
        "n": block["n"],
        "is_sandbox": False,
    }


def _jsonable(value: Any) -> Any:
    """Everything the harness leaves in its report (dtypes, functions, NaN) as plain JSON."""
    return json.loads(json.dumps(value, default=str), parse_constant=lambda _: None)


def _headline(path: Path, result: dict[str, Any], reused: bool) -> dict[str, Any]:
    values = {block["task"]: {block["metric"]: block["value"]} for block in result["utility"]["tasks"]}
    return {"results": str(path), "reused": reused, **values}
