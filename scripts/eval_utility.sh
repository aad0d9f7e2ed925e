#!/usr/bin/env bash
# Utility of a model on its downstream task: ROUGE-1 on SAMSum, or any task that eval_utility.py knows.
#
#   bash scripts/eval_utility.sh
#   MODEL=models/sandbox/chat DTYPE=float32 DATA_SOURCE=datasets/sandbox bash scripts/eval_utility.sh
#
# Further arguments go to eval_utility.py as they are. Several processes on GPUs; NUM_PROCESSES=N on a CPU machine.
set -euo pipefail
source "$(dirname "$0")/help.sh" eval_utility.py "$@"
source "$(dirname "$0")/setup.sh"

MODEL="${MODEL:-outputs/model}"                                        # model folder, or output folder holding slice_end/
DTYPE="${DTYPE:-bfloat16}"                                             # float32 on a CPU machine
DATASET="${DATASET:-samsum}"                                           # samsum, sql_create_context, gsm8k, or a file or folder
DATA_SOURCE="${DATA_SOURCE:-}"                                         # local copy of the named data set; empty: see datasets/README.md
SPLIT="${SPLIT:-}"                                                     # empty: the task's test split
PROMPT_STYLE="${PROMPT_STYLE:-llama2_base}"                            # llama2_base, llama2, gemma_base, gemma, chat_template
EVALUATOR="${EVALUATOR:-rouge_1}"                                      # rouge_1, exact_match, gsm8k, loss, none
HELDOUT_LOSS="${HELDOUT_LOSS:-False}"                                  # True: the training loss on these rows as well
MAX_NEW_TOKENS="${MAX_NEW_TOKENS:-1024}"                               # longest completion
SAVE_PATH="${SAVE_PATH:-$MODEL/evaluation/$(basename "$DATASET").json}" # the results file

WHERE=()
if [[ -n "$DATA_SOURCE" ]]; then WHERE+=("--data_source=$DATA_SOURCE"); fi
if [[ -n "$SPLIT" ]]; then WHERE+=("--split=$SPLIT"); fi

launch_processes "$REPO/eval_utility.py" \
    "--model_name_or_path=$MODEL" "--torch_dtype=$DTYPE" "--dataset=$DATASET" \
    "--model_family=$PROMPT_STYLE" "--prompt_style=$PROMPT_STYLE" "--evaluator=$EVALUATOR" \
    "--heldout_loss=$HELDOUT_LOSS" "--max_new_tokens=$MAX_NEW_TOKENS" "--save_path=$SAVE_PATH" \
    ${WHERE[@]+"${WHERE[@]}"} "$@"
