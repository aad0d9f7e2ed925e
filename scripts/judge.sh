#!/usr/bin/env bash
# Another judge for answers that are there already: $DATA_PATH/guard.json or $DATA_PATH/rubric.json.
#
#   DATA_PATH=outputs/model/evaluation/hex-phi bash scripts/judge.sh
#   DATA_PATH=... JUDGE=openai JUDGE_MODEL=NAME JUDGE_BASE_URL=http://127.0.0.1:8000/v1 bash scripts/judge.sh
#
# Further arguments go to `python -m guardrail.evaluation.judges` as they are.
set -euo pipefail
source "$(dirname "$0")/help.sh" guardrail.evaluation.judges "$@"
source "$(dirname "$0")/setup.sh"

DATA_PATH="${DATA_PATH:?usage: DATA_PATH=folder-of-results.json bash scripts/judge.sh}"
JUDGE="${JUDGE:-guard}"                                  # guard (a chat guard) or openai (a rubric, 1 to 5)
JUDGE_MODEL="${JUDGE_MODEL:-meta-llama/Llama-Guard-3-8B}" # folder, hub name, or the name that the server knows
JUDGE_BACKEND="${JUDGE_BACKEND:-hf}"                     # of the guard: hf, vLLM, openai (a server)
JUDGE_BASE_URL="${JUDGE_BASE_URL:-}"                     # of the server; empty: OPENAI_BASE_URL

if [[ "$DEVICE" == gpu ]]; then export CUDA_VISIBLE_DEVICES="${GPUS%%,*}"; fi
ARGUMENTS=("--judge=$JUDGE" --figure=False)
if [[ "$JUDGE" == guard ]]; then
    ARGUMENTS+=("--guard_model=$JUDGE_MODEL" "--guard_backend=$JUDGE_BACKEND")
else
    ARGUMENTS+=("--rubric_model=$JUDGE_MODEL")
fi
if [[ -n "$JUDGE_BASE_URL" ]]; then ARGUMENTS+=("--judge_base_url=$JUDGE_BASE_URL"); fi

python -m guardrail.evaluation.judges "$DATA_PATH/results.json" "${ARGUMENTS[@]}" "$@"
