"""Safety prompts in, completions out: ``<save_path>/results.json``.

    accelerate launch --gpu_ids=0,1,2,3 --num_processes=4 eval_safety.py --model_name_or_path=M \\
        --torch_dtype=bfloat16 --safety_bench=hex-phi --model_family=llama2_base --prompt_style=llama2_base \\
        --evaluator=none --save_path=M/evaluation/hex-phi/ --eval_template=plain

One process works too (``python eval_safety.py ...``). Sampling defaults are shallow-vs-deep's; ``--do_sample False``
is greedy. A killed run continues where it was. vLLM and servers run under one process.
Known limits: no beam search, no repetition penalty.
"""

from __future__ import annotations

from guardrail.core.cli import run
from guardrail.evaluation.safety.command import main

if __name__ == "__main__":
    run(main)
