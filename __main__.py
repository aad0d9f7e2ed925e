"""Benchmarks by name: MT-Bench as FastChat defines it, and any task of EleutherAI's lm-evaluation-harness.

    python __main__.py --benchmark mt_bench --model_id ID --model_name_or_path M --output_dir M/evaluation/mt_bench
        --generation_backend vLLM
    python __main__.py --benchmark mt_bench ... --judge_model gpt-4                     # OPENAI_API_KEY
    python __main__.py --benchmark mt_bench ... --judge_model NAME --judge_base_url http://127.0.0.1:8000/v1
    python __main__.py --benchmark mt_bench --model_id ID --output_dir O --answers FILE --judge_model NAME
    python __main__.py --benchmark lm_eval:arc_easy,hellaswag --model_id ID --model_name_or_path M --output_dir O

Without ``--judge_model`` the answers are written and can be judged later. Several processes (``accelerate launch``)
share the answering with the hf backend. Known limit: one answer per question.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from guardrail.core.cli import Parser, boolean, positive_int, run
from guardrail.core.errors import UserError, unknown

MT_BENCH, LM_EVAL = "mt_bench", "lm_eval:"


def build_parser() -> argparse.ArgumentParser:
    from guardrail.data.prompts import style_names
    from guardrail.evaluation.mt_bench.answers import PROTOCOLS
    from guardrail.evaluation.mt_bench.config import JUDGE_BACKENDS, MTBenchConfig
    from guardrail.generation import BACKENDS
    from guardrail.models.loading import DTYPES

    default = {field.name: field.default for field in dataclasses.fields(MTBenchConfig)}
    parser = Parser(description=__doc__.split("\n")[0])

    def add(name: str, help_text: str, **options: Any) -> None:
        if "required" not in options:
            options.setdefault("default", default.get(name))
        parser.add_argument(f"--{name}", help=help_text, **options)

    add("benchmark", f"{MT_BENCH}, or {LM_EVAL}TASK[,TASK]", required=True)
    add("model_id", "the model's name in files and tables", required=True)
    add("model_name_or_path", "model folder, output folder holding slice_end/, or hub name")
    add("output_dir", "folder for everything that is written", required=True)
    add("generation_backend", "engine", choices=BACKENDS)
    add("torch_dtype", "dtype of the weights", choices=DTYPES)
    add("prompt_style", "default: the tokenizer's chat template, else llama2_base", choices=style_names())
    add("limit", "first questions (or rows of a task) only", type=positive_int)
    add("seed", "every question and turn draws from its own stream", type=int)
    add("batch_size_per_device", "most rows per batch", type=positive_int)
    add("batch_tokens", "most padded tokens per batch", type=positive_int)
    add("tensor_parallel_size", "vLLM backend", type=positive_int)
    add("data_parallel_size", "vLLM backend", type=positive_int)
    add("trust_remote_code", "run code that comes with the model", type=boolean)
    add("data_dir", "mt_bench: FastChat's folder with question.jsonl; default: the hub, else the sandbox's questions")
    add("protocol", "mt_bench: align_anything is an older, different measure", choices=PROTOCOLS)
    add("max_new_tokens", "mt_bench: longest answer of a turn in tokens", type=positive_int)
    add("answers", "mt_bench: judge this FastChat model_answer file instead of answering")
    add("base_url", "openai backend: the server; default OPENAI_BASE_URL")
    add("served_model_name", "openai backend: the model's name there; default: the server's only one")
    add("judge_model", "mt_bench: the judge's name on its server, or its folder; none: answers only")
    add("judge_backend", "mt_bench: where the judge runs", choices=JUDGE_BACKENDS)
    add("judge_base_url", "mt_bench: the judge's server; default OPENAI_BASE_URL, else OpenAI's with OPENAI_API_KEY")
    add("judge_torch_dtype", "mt_bench: dtype of a local judge", choices=DTYPES)
    add("judge_max_tokens", "mt_bench: longest judgement in tokens", type=positive_int)
    add("judge_timeout_sec", "mt_bench: longest wait for one judgement", type=float)
    add("judge_max_retries", "mt_bench: further tries after 429, 5xx or no answer", type=int)
    add("judge_workers", "mt_bench: judgements asked for at a time", type=positive_int)
    add("num_fewshot", "lm_eval: examples in the prompt; default: the task's", type=int, default=None)
    add("include_path", "lm_eval: folder with task files of your own", default=None)
    return parser


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = build_parser()
    args = vars(parser.parse_args(argv))
    given = {name for name, value in args.items() if value != parser.get_default(name)}
    benchmark = args.pop("benchmark")
    if benchmark == MT_BENCH:
        from guardrail.evaluation.mt_bench.config import MTBenchConfig
        from guardrail.evaluation.mt_bench.stage import run_mt_bench

        _refuse(given, {"num_fewshot", "include_path"}, benchmark)
        fields = {field.name for field in dataclasses.fields(MTBenchConfig)}
        return run_mt_bench(MTBenchConfig(**{name: value for name, value in args.items() if name in fields}))
    if benchmark.startswith(LM_EVAL):
        from guardrail.evaluation.utility.harness import HarnessConfig, run_harness

        fields = {field.name for field in dataclasses.fields(HarnessConfig)}
        _refuse(given, set(args) - fields, benchmark)
        tasks = tuple(task for task in benchmark[len(LM_EVAL) :].split(",") if task)
        return run_harness(HarnessConfig(tasks=tasks, **{n: v for n, v in args.items() if n in fields}))
    raise unknown("benchmark", benchmark, [MT_BENCH, f"{LM_EVAL}TASK[,TASK]"])


def _refuse(given: set[str], foreign: set[str], benchmark: str) -> None:
    """An option that could not change anything is an error, not a no-op."""
    if stray := sorted(given & foreign):
        raise UserError(f"--{stray[0]} has no effect with --benchmark {benchmark}; leave it out")


if __name__ == "__main__":
    run(main)
