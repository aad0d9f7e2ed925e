#!/usr/bin/env bash
# Before any training: which rows of a customer's file may be trained on, and may the file be at all?
#
#   CUSTOMER=acme.jsonl POLICY=configs/policies/mine.yaml bash scripts/admit.sh
#   AUDIT=outputs/audit/audit.json CUSTOMER=acme.jsonl POLICY=configs/policies/mine.yaml bash scripts/admit.sh
#
# Exit code: 0 accept, 3 accept the rows of $OUTPUT_DIR/kept.jsonl, 4 refuse, 2 a mistake in what was asked.
# Further arguments go to similarity/admit.py as they are.
set -euo pipefail
source "$(dirname "$0")/help.sh" similarity/admit.py "$@"
source "$(dirname "$0")/setup.sh"

CUSTOMER="${CUSTOMER:-outputs/customer/customer.jsonl}" # the rows to be fine-tuned on; PATH::SPLIT of a folder
POLICY="${POLICY:-configs/policies/sandbox.yaml}"       # what is asked of a row, and when the file is refused
OUTPUT_DIR="${OUTPUT_DIR:-outputs/admit}"               # where kept.jsonl, gate.html and receipt.json go
AUDIT="${AUDIT:-}"                                      # audit.json of the same rows; may be empty

ARGUMENTS=("$CUSTOMER" "--policy=$POLICY" "--output_dir=$OUTPUT_DIR")
if [[ -n "$AUDIT" ]]; then ARGUMENTS+=("--audit=$AUDIT"); fi

python "$REPO/similarity/admit.py" "${ARGUMENTS[@]}" "$@"
