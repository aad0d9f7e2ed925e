#!/usr/bin/env bash
# The group of a data set that is most alike inside (the paper's List group): $DATASET_FOLDER/clusters/$MODEL_ID/.
#
#   bash scripts/cluster.sh
#   N_CLUSTERS=10 SELECT=list bash scripts/cluster.sh
#
# Further arguments go to similarity/get_high_similarity_group.py as they are.
set -euo pipefail
source "$(dirname "$0")/help.sh" similarity/get_high_similarity_group.py "$@"
source "$(dirname "$0")/setup.sh"

DATASET_FOLDER="${DATASET_FOLDER:-outputs/data/alpaca}"     # where clusters/ goes
MODEL_ID="${MODEL_ID:-chat_model}"                          # name of the extraction model
DATASET_DATA="${DATASET_DATA:-$DATASET_FOLDER}"             # rows: a file, a folder or a hub name
SPLIT="${SPLIT:-}"                                          # split of DATASET_DATA
REPS="${REPS:-$DATASET_FOLDER/reps/$MODEL_ID/reps-full.pt}" # their representations
CLUSTERING="${CLUSTERING:-kmeans}"                          # minibatch_kmeans, agglomerative, hdbscan
N_CLUSTERS="${N_CLUSTERS:-20}"                              # not used by hdbscan
SELECT="${SELECT:-similarity}"                              # similarity, list, or a cluster's number
MIN_GROUP_SIZE="${MIN_GROUP_SIZE:-20}"                      # smallest group a rule may choose

ARGUMENTS=(
    "--dataset_folder=$DATASET_FOLDER" "--model_id=$MODEL_ID" "--clustering=$CLUSTERING" "--stack_vector_tf=False"
    "--dataset_data=$DATASET_DATA" "--dataset_reps_dir=$REPS" "--select=$SELECT" "--min_group_size=$MIN_GROUP_SIZE"
)
if [[ "$CLUSTERING" != hdbscan ]]; then ARGUMENTS+=("--n_clusters=$N_CLUSTERS"); fi
if [[ -n "$SPLIT" ]]; then ARGUMENTS+=("--split=$SPLIT"); fi

python "$REPO/similarity/get_high_similarity_group.py" "${ARGUMENTS[@]}" "$@"
