#!/usr/bin/env bash
# Before any training: how similar is a customer's data set to each alignment set? $OUTPUT_DIR/audit.html, audit.json.
#
#   CUSTOMER=acme=acme.jsonl ALIGNMENT="a=a.jsonl b=b.jsonl" bash scripts/audit.sh
#   CUSTOMER=list=datasets/sandbox::list ALIGNMENT=pool=datasets/sandbox::safety_pool \
#       REFERENCE="alpaca=datasets/sandbox::alpaca samsum=datasets/sandbox::samsum" MODEL=models/sandbox/chat \
#       bash scripts/audit.sh
#
# A set is NAME=PATH or NAME=PATH::SPLIT; PATH holds rows or stored representations. Further arguments go to
# similarity/audit.py as they are (paths with spaces: give the flags themselves instead of the variables).
set -euo pipefail
source "$(dirname "$0")/help.sh" similarity/audit.py "$@"
source "$(dirname "$0")/setup.sh"

CUSTOMER="${CUSTOMER:-list=datasets/sandbox::list}"          # the data set to be fine-tuned on
ALIGNMENT="${ALIGNMENT:-pool=datasets/sandbox::safety_pool}" # alignment sets, separated by spaces
REFERENCE="${REFERENCE:-}"                                   # sets to compare the customer with; may be empty
MODEL="${MODEL-models/sandbox/chat}"                         # encoder or causal LM; empty if all are stored
OUTPUT_DIR="${OUTPUT_DIR:-outputs/audit}"                    # where audit.html and audit.json go
MAX_ROWS="${MAX_ROWS:-2000}"                                 # rows used of each set
FORECAST="${FORECAST:-}"                                     # of `guardrail forecast fit`; empty: no prediction

ARGUMENTS=("--customer=$CUSTOMER" "--output_dir=$OUTPUT_DIR" "--max_rows=$MAX_ROWS")
read -ra SETS <<<"$ALIGNMENT"
for SET in "${SETS[@]}"; do ARGUMENTS+=("--alignment=$SET"); done
read -ra SETS <<<"$REFERENCE"
for SET in "${SETS[@]}"; do ARGUMENTS+=("--reference=$SET"); done
if [[ -n "$FORECAST" ]]; then ARGUMENTS+=("--forecast=$FORECAST"); fi
if [[ -n "$MODEL" ]]; then ARGUMENTS+=("--model_name_or_path=$MODEL"); fi

python "$REPO/similarity/audit.py" "${ARGUMENTS[@]}" "$@"
