#!/usr/bin/env bash
# MT-Bench of one model: answers, and scores where a judge is named. The older align-anything measure by PROTOCOL.
#
#   MODEL=outputs/model MODEL_ID=high_sim JUDGE_MODEL=gpt-4 bash scripts/mt_bench.sh        # OPENAI_API_KEY
#   MODEL=models/sandbox/chat MODEL_ID=chat BACKEND=hf DTYPE=float32 MAX_NEW_TOKENS=96 bash scripts/mt_bench.sh
#
# Further arguments go to __main__.py as they are. One process: vLLM does its own parallelism (TENSOR_PARALLEL).
set -euo pipefail
source "$(dirname "$0")/help.sh" __main__.py "$@"
source "$(dirname "$0")/setup.sh"

MODEL="${MODEL:-outputs/model}"                        # model folder, or output folder holding slice_end/
MODEL_ID="${MODEL_ID:-$(basename "$MODEL")}"           # the model's name in files and tables
BACKEND="${BACKEND:-vLLM}"                             # vLLM, hf, openai
DTYPE="${DTYPE:-bfloat16}"                             # float32 on a CPU machine
PROMPT_STYLE="${PROMPT_STYLE:-}"                       # empty: the tokenizer's chat template
DATA_DIR="${DATA_DIR:-}"                               # FastChat's data/mt_bench; empty: the hub, else the sandbox's questions
PROTOCOL="${PROTOCOL:-fastchat}"                       # fastchat, or align_anything (an older, different measure)
MAX_NEW_TOKENS="${MAX_NEW_TOKENS:-1024}"               # longest answer of a turn
TENSOR_PARALLEL="${TENSOR_PARALLEL:-1}"                # GPUs per model with vLLM
JUDGE_MODEL="${JUDGE_MODEL:-}"                         # empty: answers only, judge later
JUDGE_BASE_URL="${JUDGE_BASE_URL:-}"                   # OpenAI-compatible server; empty: OPENAI_BASE_URL
OUTPUT_DIR="${OUTPUT_DIR:-$MODEL/evaluation/mt_bench}" # answers, judgements, results.json, table, figure

EXTRA=()
if [[ -n "$PROMPT_STYLE" ]]; then EXTRA+=(--prompt_style "$PROMPT_STYLE"); fi
if [[ -n "$DATA_DIR" ]]; then EXTRA+=(--data_dir "$DATA_DIR"); fi
if [[ -n "$JUDGE_MODEL" ]]; then EXTRA+=(--judge_model "$JUDGE_MODEL"); fi
if [[ -n "$JUDGE_BASE_URL" ]]; then EXTRA+=(--judge_base_url "$JUDGE_BASE_URL"); fi
if [[ "$BACKEND" == vLLM ]]; then EXTRA+=(--tensor_parallel_size "$TENSOR_PARALLEL"); fi

python "$REPO/__main__.py" --benchmark mt_bench --model_id "$MODEL_ID" --model_name_or_path "$MODEL" \
    --output_dir "$OUTPUT_DIR" --generation_backend "$BACKEND" --torch_dtype "$DTYPE" --protocol "$PROTOCOL" \
    --max_new_tokens "$MAX_NEW_TOKENS" ${EXTRA[@]+"${EXTRA[@]}"} "$@"
