#!/usr/bin/env bash
# Every evaluation of one checkpoint from one load of the model: safety, over-refusal, utility, held-out loss.
#
#   MODEL=outputs/model BENCH=hex-phi OVER_REFUSAL_BENCH=xstest UTILITY=samsum:rouge_1 bash scripts/evaluate.sh
#   MODEL=models/sandbox/chat DTYPE=float32 BENCH=sandbox OVER_REFUSAL_BENCH=sandbox-benign bash scripts/evaluate.sh
#
# The files are those of scripts/eval_safety.sh and scripts/eval_utility.sh; judge the answers with scripts/moderate.sh.
# Further arguments go to `python -m guardrail.evaluation.checkpoint` as they are.
set -euo pipefail
source "$(dirname "$0")/help.sh" guardrail.evaluation.checkpoint "$@"
source "$(dirname "$0")/setup.sh"

MODEL="${MODEL:-outputs/model}"                  # model folder, or output folder holding slice_end/
DTYPE="${DTYPE:-bfloat16}"                       # float32 on a CPU machine
BENCH="${BENCH:-hex-phi}"                        # harmful prompts: bench name, or a .jsonl/.csv file
BENCH_DATA="${BENCH_DATA:-}"                     # local copy of the bench; empty: the hub
OVER_REFUSAL_BENCH="${OVER_REFUSAL_BENCH:-}"     # harmless prompts: bench name or file; empty: none
UTILITY="${UTILITY:-}"                           # TASK:EVALUATOR, several with commas; empty: none
HELDOUT_LOSS="${HELDOUT_LOSS:-False}"            # True: the training loss on the tasks' rows as well
PROMPT_STYLE="${PROMPT_STYLE:-llama2_base}"      # llama2_base, llama2, gemma_base, gemma, chat_template
BACKEND="${BACKEND:-hf}"                         # hf, vLLM (one process, its own parallelism), openai
DO_SAMPLE="${DO_SAMPLE:-True}"                   # answers to the benches; False: greedy
SEED="${SEED:-0}"                                # generation seed
SAMPLES_PER_PROMPT="${SAMPLES_PER_PROMPT:-1}"    # answers per prompt (needs DO_SAMPLE=True)
MAX_NEW_TOKENS="${MAX_NEW_TOKENS:-512}"          # longest answer to a bench
SAVE_PATH="${SAVE_PATH:-$MODEL/evaluation}"      # folder of all results

ARGUMENTS=(
    "--model_name_or_path=$MODEL" "--torch_dtype=$DTYPE" "--safety_bench=$BENCH" "--prompt_style=$PROMPT_STYLE"
    "--heldout_loss=$HELDOUT_LOSS" "--generation_backend=$BACKEND" "--do_sample=$DO_SAMPLE" "--seed=$SEED"
    "--samples_per_prompt=$SAMPLES_PER_PROMPT" "--max_new_tokens=$MAX_NEW_TOKENS" "--save_path=$SAVE_PATH"
)
if [[ -n "$BENCH_DATA" ]]; then ARGUMENTS+=("--bench_data=$BENCH_DATA"); fi
if [[ -n "$OVER_REFUSAL_BENCH" ]]; then ARGUMENTS+=("--over_refusal_bench=$OVER_REFUSAL_BENCH"); fi
if [[ -n "$UTILITY" ]]; then ARGUMENTS+=("--utility=$UTILITY"); fi
if [[ "$BACKEND" != hf ]]; then NUM_PROCESSES=1; fi

launch_processes -m guardrail.evaluation.checkpoint "${ARGUMENTS[@]}" "$@"
