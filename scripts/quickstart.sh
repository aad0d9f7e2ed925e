#!/usr/bin/env bash
# Set everything up and run the whole study on the embedded sandbox: no GPU, no hub, four minutes on two cores.
#
#   bash scripts/quickstart.sh              # run, or continue; repeated: nothing unchanged is done again
#   bash scripts/quickstart.sh --dry-run    # print the plan
#   SIZE=500 SEEDS=1,2 bash scripts/quickstart.sh
#
# Variables are those of scripts/study.sh. Results: outputs/quickstart/.
set -euo pipefail
source "$(dirname "$0")/help.sh" scripts/study.sh "$@"
cd "$(dirname "$0")/.."

source scripts/install.sh
export DEVICE="${DEVICE:-cpu}"          # the tiny models are as fast on a CPU
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" # nothing in the sandbox comes from the hub
bash scripts/study.sh configs/studies/quickstart.yaml "$@"
