"""Utility of a model on a downstream task: completions, scores per row, means with intervals, held-out loss.

    accelerate launch --gpu_ids=0,1,2,3 --num_processes=4 eval_utility.py --model_name_or_path=M
        --torch_dtype=bfloat16 --dataset=samsum --model_family=llama2_base --prompt_style=llama2_base
        --evaluator=rouge_1 --save_path=M/evaluation/samsum.json
    python eval_utility.py --model_name_or_path=models/sandbox/chat --torch_dtype=float32 --dataset=samsum
        --data_source=datasets/sandbox --model_family=llama2_base --evaluator=rouge_1 --save_path=out/samsum.json

Writes ``--save_path`` (``results``, ``metrics``, ``utility``, ``run``); greedy unless ``--do_sample True``. An
unchanged run is not repeated, a killed one goes on where it was.
Known limit: the held-out loss needs ``--generation_backend hf``.
"""

from __future__ import annotations

import argparse
from typing import Any

from guardrail.core.cli import Parser, boolean, positive_int, run
from guardrail.evaluation.utility.evaluate import UtilityConfig, evaluate_utility


def build_parser() -> argparse.ArgumentParser:
    from guardrail.data.prompts import style_names
    from guardrail.evaluation.utility.scoring import EVALUATORS
    from guardrail.evaluation.utility.tasks import TASKS
    from guardrail.generation import BACKENDS
    from guardrail.models.loading import DTYPES

    default: dict[str, Any] = {f.name: f.default for f in UtilityConfig.__dataclass_fields__.values()}
    parser = Parser(description=__doc__.split("\n")[0])

    def add(name: str, help_text: str, **options: Any) -> None:
        if "required" not in options:
            options.setdefault("default", default[name])
        parser.add_argument(f"--{name}", help=help_text, **options)

    add("model_name_or_path", "model folder, output folder holding slice_end/, or hub name", required=True)
    add("torch_dtype", "dtype of the weights", choices=DTYPES)
    add("dataset", f"{', '.join(TASKS)}, or a data file or folder with answers", required=True)
    add(
        "data_source",
        "where the named data set lies (file, hub-layout folder, hub name); "
        "default: see guardrail/evaluation/utility/tasks.py",
    )
    add("split", "split of the source; default: the task's test split")
    add("limit", "first rows only", type=positive_int)
    add("model_family", "prompt style used when --prompt_style is not given", choices=style_names())
    add("prompt_style", "prompt style", choices=style_names())
    add("evaluator", "how completions are scored; loss: held-out loss only, nothing is generated", choices=EVALUATORS)
    add("save_path", "the results file (.json); {seed} in it is filled in", required=True)
    add("heldout_loss", "also measure the training loss on these rows", type=boolean)
    add("do_sample", "sample instead of greedy decoding", type=boolean)
    add("temperature", "with --do_sample True", type=float)
    add("top_p", "with --do_sample True", type=float)
    add("top_k", "with --do_sample True; 0: off", type=int)
    add("max_new_tokens", "longest completion in tokens", type=positive_int)
    add("seed", "with --do_sample True; every row and sample draws from its own stream", type=int)
    add("samples_per_prompt", "completions per row, with --do_sample True", type=positive_int)
    add("generation_backend", "engine", choices=BACKENDS)
    add("base_url", "openai backend: the server; default OPENAI_BASE_URL")
    add("served_model_name", "openai backend: the model's name there; default: the server's only one")
    add("batch_size_per_device", "most rows per batch", type=positive_int)
    add("batch_tokens", "most padded tokens per batch", type=positive_int)
    add("tensor_parallel_size", "vLLM backend", type=positive_int)
    add("data_parallel_size", "vLLM backend", type=positive_int)
    add("trust_remote_code", "run code that comes with the model", type=boolean)
    return parser


def main(argv: list[str] | None = None) -> dict[str, Any]:
    args = build_parser().parse_args(argv)
    return evaluate_utility(UtilityConfig(**vars(args)))


if __name__ == "__main__":
    run(main)
