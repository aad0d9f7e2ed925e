#!/usr/bin/env bash
# Answers of a model to safety prompts: $SAVE_PATH/results.json. Judge them with scripts/moderate.sh.
#
#   bash scripts/eval_safety.sh
#   MODEL=models/sandbox/chat DTYPE=float32 BENCH=sandbox MAX_NEW_TOKENS=64 bash scripts/eval_safety.sh
#
# Further arguments go to eval_safety.py as they are. Several processes on GPUs; NUM_PROCESSES=N on a CPU machine.
set -euo pipefail
source "$(dirname "$0")/help.sh" eval_safety.py "$@"
source "$(dirname "$0")/setup.sh"

MODEL="${MODEL:-outputs/model}"                               # model folder, or output folder holding slice_end/
DTYPE="${DTYPE:-bfloat16}"                                    # float32 on a CPU machine
BENCH="${BENCH:-hex-phi}"                                     # bench name, or a .jsonl/.csv file of prompts
BENCH_DATA="${BENCH_DATA:-}"                                  # local copy of the bench; empty: the hub
PROMPT_STYLE="${PROMPT_STYLE:-llama2_base}"                   # llama2_base, llama2, gemma_base, gemma, chat_template
EVAL_TEMPLATE="${EVAL_TEMPLATE:-plain}"                       # plain, null, alpaca, pure_bad, helpful, aoa
BACKEND="${BACKEND:-hf}"                                      # hf, vLLM (one process, its own parallelism), openai
DO_SAMPLE="${DO_SAMPLE:-True}"                                # False: greedy
SEED="${SEED:-0}"                                             # generation seed
SAMPLES_PER_PROMPT="${SAMPLES_PER_PROMPT:-1}"                 # answers per prompt (needs DO_SAMPLE=True)
MAX_NEW_TOKENS="${MAX_NEW_TOKENS:-512}"                       # longest completion
EVALUATOR="${EVALUATOR:-none}"                                # none, key_word, beaver_dam, guard, openai, panel
SAVE_PATH="${SAVE_PATH:-$MODEL/evaluation/$(basename "$BENCH")}" # folder of results.json

ARGUMENTS=(
    "--model_name_or_path=$MODEL" "--torch_dtype=$DTYPE" "--safety_bench=$BENCH"
    "--model_family=$PROMPT_STYLE" "--prompt_style=$PROMPT_STYLE" "--eval_template=$EVAL_TEMPLATE"
    "--generation_backend=$BACKEND" "--do_sample=$DO_SAMPLE" "--seed=$SEED"
    "--samples_per_prompt=$SAMPLES_PER_PROMPT" "--max_new_tokens=$MAX_NEW_TOKENS"
    "--evaluator=$EVALUATOR" "--save_path=$SAVE_PATH"
)
if [[ -n "$BENCH_DATA" ]]; then ARGUMENTS+=("--bench_data=$BENCH_DATA"); fi
if [[ "$BACKEND" != hf ]]; then NUM_PROCESSES=1; fi

launch_processes "$REPO/eval_safety.py" "${ARGUMENTS[@]}" "$@"
