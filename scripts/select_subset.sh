#!/usr/bin/env bash
# Subsets of the safety pool by similarity to a downstream data set: $DATASET_FOLDER/$NAME/top$SIZE.jsonl, bottom...
#
#   bash scripts/select_subset.sh
#   SIZE=5000 SELECTOR=high,low,random,high_length_matched,low_length_matched bash scripts/select_subset.sh
#
# Further arguments go to similarity/get_top_similarity_dataset_reps_general.py as they are.
set -euo pipefail
source "$(dirname "$0")/help.sh" similarity/get_top_similarity_dataset_reps_general.py "$@"
source "$(dirname "$0")/setup.sh"

DATASET_FOLDER="${DATASET_FOLDER:-outputs/data}"                   # where the subsets' folder goes
NAME="${NAME:-selection}"                                          # its name
SIZE="${SIZE:-1000}"                                               # rows per subset
POOL="${POOL:-outputs/data/safety_pool.jsonl}"                     # rows of the pool: file, folder or hub name
POOL_SPLIT="${POOL_SPLIT:-}"                                       # split of POOL, where it has several
POOL_REPS="${POOL_REPS:-outputs/data/safety_pool/reps/chat_model}" # representations of the pool
ANCHOR_REPS="${ANCHOR_REPS:-outputs/data/list/reps/chat_model}"    # representations of the downstream rows
SELECTOR="${SELECTOR:-high,low}"                                   # subsets to write (see --help)
AVG_N="${AVG_N:-1}"                                                # cosines averaged per row; 1: the maximum
MERGE="${MERGE:-score}"                                            # score, mean, union, round_robin
SEED="${SEED:-42}"                                                 # seed of random

ARGUMENTS=(
    "--dataset_folder=$DATASET_FOLDER" "--save_folder=$NAME" "--stack_vector_tf=False" "--select_n=$SIZE"
    "--dataset_dir=$POOL" "--dataset_reps_dir=$POOL_REPS" "--anchoring_reps_dir=$ANCHOR_REPS"
    "--selector=$SELECTOR" "--avg_n=$AVG_N" "--merge=$MERGE" "--seed=$SEED"
)
if [[ -n "$POOL_SPLIT" ]]; then ARGUMENTS+=("--split=$POOL_SPLIT"); fi

python "$REPO/similarity/get_top_similarity_dataset_reps_general.py" "${ARGUMENTS[@]}" "$@"
