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

from guardrail.core.cli import run
from guardrail.evaluation.benchmarks import main

if __name__ == "__main__":
    run(main)
