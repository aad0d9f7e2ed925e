#!/usr/bin/env bash
# One representation per example: $DATASET_FOLDER/reps/$MODEL_ID/ with its export reps-full.pt.
#
#   bash scripts/get_representation.sh
#   MODEL=models/sandbox/chat MODEL_ID=chat DATASET_FOLDER=outputs/list DATASET_DATA=datasets/sandbox SPLIT=list \
#       bash scripts/get_representation.sh
#
# Further arguments go to similarity/get_representation.py as they are. Rows are shared out over the job's processes.
set -euo pipefail
source "$(dirname "$0")/help.sh" similarity/get_representation.py "$@"
source "$(dirname "$0")/setup.sh"

MODEL="${MODEL:-outputs/chat_model}"             # extraction model: the chat model without safety data; or an encoder
MODEL_ID="${MODEL_ID:-chat_model}"               # name of its folder under reps/
DATASET_FOLDER="${DATASET_FOLDER:-outputs/data}" # where reps/ goes
DATASET_DATA="${DATASET_DATA:-$DATASET_FOLDER}"  # rows: a file, a data-set folder or a hub name
SPLIT="${SPLIT:-}"                               # split of DATASET_DATA, where it has several
PROMPT_STYLE="${PROMPT_STYLE:-}"                 # empty: llama2_base (encoders take none)
LAYER="${LAYER:--1}"                             # layer number(s) with commas, or all; -1 is the last
POSITION="${POSITION:-}"                         # empty: eos (encoders: mean)
TEXT="${TEXT:-full}"                             # full, prompt, completion
DTYPE="${DTYPE:-auto}"                           # the model's dtype; auto: bfloat16 on GPU, float32 on CPU

ARGUMENTS=(
    "--dataset_folder=$DATASET_FOLDER" "--dataset_data=$DATASET_DATA" "--model_id=$MODEL_ID"
    "--model_name_or_path=$MODEL" "--layer=$LAYER" "--text=$TEXT" "--torch_dtype=$DTYPE"
)
if [[ -n "$SPLIT" ]]; then ARGUMENTS+=("--split=$SPLIT"); fi
if [[ -n "$PROMPT_STYLE" ]]; then ARGUMENTS+=("--prompt_style=$PROMPT_STYLE"); fi
if [[ -n "$POSITION" ]]; then ARGUMENTS+=("--position=$POSITION"); fi

launch_processes "$REPO/similarity/get_representation.py" "${ARGUMENTS[@]}" "$@"
