#!/usr/bin/env bash
# Upstream alignment with a similarity-selected safety subset: the split train_<TASK>_<SIM>_sim_<SIZE>.
#
#   TASK=list SIM=low SIZE=1k bash scripts/sft_subset.sh
#   TASK=list SIM=low SIZE=1k DATASET=datasets/mixtures BASE_MODEL=models/sandbox/base DS_CONFIG=ds_z0_config.json \
#       BF16=False LEARNING_RATE=1e-3 BATCH_SIZE=16 EPOCHS=3 bash scripts/sft_subset.sh
#
# datasets/mix.py makes the split. Other variables: scripts/sft.sh. Further arguments go to the trainer.
set -euo pipefail
source "$(dirname "$0")/help.sh" scripts/sft.sh "$@"

TASK="${TASK:-list}"                                     # downstream task: list, pure_bad, alpaca, samsum, ...
SIM="${SIM:-high}"                                       # high, low or random
SIZE="${SIZE:-1k}"                                       # safety rows: 1k, 5k, ...
export DATASET="${DATASET:-datasets/mixtures}"           # folder written by datasets/mix.py, or a hub name
export BASE_MODEL="${BASE_MODEL:-meta-llama/Llama-2-7b-hf}" # model to align
export SPLIT="${SPLIT:-train_${TASK}_${SIM}_sim_${SIZE}}"   # the split's whole name, when it is another
export OUTPUT_DIR="${OUTPUT_DIR:-outputs/aligned/$(basename "$BASE_MODEL")/${TASK}_${SIM}_sim_${SIZE}}" # output folder

exec bash "$(dirname "$0")/sft.sh" "$@"
