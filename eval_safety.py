"""Safety prompts in, completions out: ``<save_path>/results.json``.

    accelerate launch --gpu_ids=0,1,2,3 --num_processes=4 eval_safety.py --model_name_or_path=M \\
        --torch_dtype=bfloat16 --safety_bench=hex-phi --model_family=llama2_base --prompt_style=llama2_base \\
        --evaluator=none --save_path=M/evaluation/hex-phi/ --eval_template=plain

One process works too (``python eval_safety.py ...``). Sampling defaults are shallow-vs-deep's; ``--do_sample False``
is greedy. A killed run continues where it was. vLLM and servers run under one process.
Known limits: no beam search, no repetition penalty.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from guardrail.core.cli import Parser, boolean, positive_int, run
from guardrail.core.ranks import is_main
from guardrail.evaluation.judges import JUDGES, add_judge_flags, take_judge
from guardrail.evaluation.safety.answers import MODEL_FAMILIES, SafetyConfig, evaluate_safety


def build_parser() -> Parser:
    """Flags of the paper's command, shallow-vs-deep's decoding flags, and this project's."""
    defaults = {field.name: field.default for field in dataclasses.fields(SafetyConfig)}
    parser = Parser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model_name_or_path", required=True, help="model folder, output folder with slice_end/, or hub name")
    add("--save_path", required=True, help="folder for results.json; {seed} in it is filled in")
    add("--safety_bench", default=defaults["safety_bench"], help="bench name or a file of prompts")
    add("--bench_data", default=None, help="local copy of the bench (file or folder)")
    add("--bench_split", default=None, help="split of a local folder")
    add("--limit", type=positive_int, default=None, help="first N prompts only")
    add("--model_family", default=None, choices=list(MODEL_FAMILIES), help="default: the prompt style's")
    add(
        "--prompt_style", default=defaults["prompt_style"], help="llama2_base, llama2, gemma_base, gemma, chat_template"
    )
    add("--eval_template", default="plain", help="plain, null, alpaca, pure_bad, helpful, aoa")
    add("--prefill_prefix", default=None, help="text put into the model's mouth (<bench>_with_prefix)")
    add(
        *("--num_prefix_tokens", "--num_perfix_tokens"),
        type=positive_int,
        default=None,
        help="tokens of the given answer to prefill (<bench>_with_refusal_prefix, _with_harmful_prefix)",
    )
    add("--backdoor_trigger", default=None, help="text appended to the prompt (<bench>-backdoor)")
    add("--torch_dtype", default=defaults["torch_dtype"], choices=["bfloat16", "float16", "float32"])
    add("--do_sample", type=boolean, default=defaults["do_sample"])
    add("--temperature", type=float, default=defaults["temperature"])
    add("--top_p", type=float, default=defaults["top_p"])
    add("--top_k", type=int, default=defaults["top_k"], help="0: off")
    add("--max_new_tokens", type=positive_int, default=defaults["max_new_tokens"])
    add("--seed", type=int, default=0)
    add("--samples_per_prompt", type=positive_int, default=1)
    add("--generation_backend", default="hf", choices=["hf", "vLLM", "openai"])
    add("--base_url", default=None, help="OpenAI-compatible server (or OPENAI_BASE_URL)")
    add("--served_model_name", default=None, help="the server's name of the model")
    add("--tensor_parallel_size", type=positive_int, default=1, help="vLLM")
    add("--data_parallel_size", type=positive_int, default=1, help="vLLM")
    add("--batch_size_per_device", type=positive_int, default=None, help="at most this many rows at once")
    add("--batch_tokens", type=positive_int, default=None, help="at most this many padded tokens at once")
    add("--trust_remote_code", type=boolean, default=False)
    add("--decoding_sweep", type=boolean, default=False, help="temperature x top-p grid, best of k")
    add("--sweep_temperatures", default="0.1,0.5,0.9,1.2", help="with --decoding_sweep")
    add("--sweep_top_p", default="0.6,0.9,1.0", help="with --decoding_sweep")
    add("--evaluator", default="none", choices=["none", *JUDGES], help="judge on the spot")
    add_judge_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> dict | None:
    args = vars(build_parser().parse_args(argv))
    judge = take_judge(args.pop("evaluator"), args)
    sweep, temperatures, top_ps = (args.pop(n) for n in ("decoding_sweep", "sweep_temperatures", "sweep_top_p"))
    config = SafetyConfig(**args).check()
    if sweep:
        from guardrail.evaluation.safety.decoding_sweep import parse_points, run_sweep

        points = parse_points(temperatures, "sweep_temperatures"), parse_points(top_ps, "sweep_top_p")
        return run_sweep(config, *points, judge)
    headline = evaluate_safety(config)
    if judge is not None and is_main() and headline is not None:
        from guardrail.evaluation.judges.stage import judge_file

        headline |= judge_file(config.results_file(), judge)
    return headline


if __name__ == "__main__":
    run(main)
