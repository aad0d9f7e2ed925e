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

from guardrail.core.cli import run
from guardrail.evaluation.utility.evaluate import main

if __name__ == "__main__":
    run(main)
