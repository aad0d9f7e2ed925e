#!/usr/bin/env bash
# Downstream fine-tuning of an aligned model: does the guardrail survive?
#
#   MODEL=outputs/aligned/Llama-2-7b-hf/list_low_sim_1k TASK=list bash scripts/sft_downstream.sh
#   MODEL=outputs/quick/aligned DATASET=datasets/sandbox SPLIT=pure_bad DS_CONFIG=ds_z0_config.json BF16=False \
#       LEARNING_RATE=1e-3 bash scripts/sft_downstream.sh
#
# Other variables: scripts/sft.sh. Further arguments go to the trainer.
set -euo pipefail
source "$(dirname "$0")/help.sh" scripts/sft.sh "$@"

TASK="${TASK:-list}"                                    # downstream task, part of the output folder's name
export BASE_MODEL="${MODEL:?set MODEL to the aligned model (a folder, one holding slice_end/, or a hub name)}"
export DATASET="${DATASET:-datasets/$TASK}"             # file, hub-layout folder or hub name
export SPLIT="${SPLIT:-train}"                          # training split
export TRAIN_TEMPLATE="${TRAIN_TEMPLATE:-UltraChat}"    # formatter of configs/template.py
export EPOCHS="${EPOCHS:-5}"                            # the paper's settings from here on
export LEARNING_RATE="${LEARNING_RATE:-2e-5}"           # peak learning rate
export BATCH_SIZE="${BATCH_SIZE:-5}"                    # rows per device
export ACCUMULATION="${ACCUMULATION:-1}"                # micro-batches per optimizer step
export OUTPUT_DIR="${OUTPUT_DIR:-$BASE_MODEL/downstream/$TASK}" # output folder

exec bash "$(dirname "$0")/sft.sh" "$@"
