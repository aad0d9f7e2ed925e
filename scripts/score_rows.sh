#!/usr/bin/env bash
# Before fine-tuning: how risky is each row of a data set? One number per row and scorer in $OUT, its record beside it.
#
#   MODEL=outputs/aligned ROWS=customer.jsonl ANCHORS=harmful.jsonl ALIGNMENT=safety.jsonl bash scripts/score_rows.sh
#   MODEL=models/sandbox/chat SCORERS=all MODERATION_MODEL=models/sandbox/moderation bash scripts/score_rows.sh
#
# A set is PATH or PATH::SPLIT. docs/scorers.md lists the scorers. Further arguments go to similarity/score_rows.py as
# they are. Rows are shared out over the job's processes.
set -euo pipefail
source "$(dirname "$0")/help.sh" similarity/score_rows.py "$@"
source "$(dirname "$0")/setup.sh"

ROWS="${ROWS:-datasets/sandbox::list}"                  # the rows to score
SCORERS="${SCORERS:-length,random,similarity,bi_anchor}" # names with commas, or all
MODEL="${MODEL-models/sandbox/chat}"                    # the model that would be fine-tuned; empty: none
ANCHORS="${ANCHORS-datasets/sandbox::pure_bad}"         # harmful rows; empty: none
ALIGNMENT="${ALIGNMENT-datasets/sandbox::safety_pool}"  # the alignment set; empty: none
MODERATION_MODEL="${MODERATION_MODEL-}"                 # sequence classifier of the scorer moderation; empty: none
OUT="${OUT:-outputs/scores.jsonl}"                      # the scores; the record is scores.json

ARGUMENTS=("--rows=$ROWS" "--scorers=$SCORERS" "--out=$OUT")
if [[ -n "$MODEL" ]]; then ARGUMENTS+=("--model_name_or_path=$MODEL"); fi
if [[ -n "$ANCHORS" ]]; then ARGUMENTS+=("--anchors=$ANCHORS"); fi
if [[ -n "$ALIGNMENT" ]]; then ARGUMENTS+=("--alignment=$ALIGNMENT"); fi
if [[ -n "$MODERATION_MODEL" ]]; then ARGUMENTS+=("--moderation_model=$MODERATION_MODEL"); fi

launch_processes "$REPO/similarity/score_rows.py" "${ARGUMENTS[@]}" "$@"
