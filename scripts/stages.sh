#!/usr/bin/env bash
# Several stages in one process: imports and models are loaded once. A study writes the list (guardrail.core.steps).
#
#   bash scripts/stages.sh steps.json
set -euo pipefail
source "$(dirname "$0")/help.sh" "" "$@"

STEPS="${1:?usage: bash scripts/stages.sh steps.json}" # the list of stages
ONE_PROCESS="${ONE_PROCESS:-False}"                    # True: no stage in the list shares its work out over processes
source "$(dirname "$0")/setup.sh"

if [[ "$ONE_PROCESS" == True ]]; then NUM_PROCESSES=1; fi
if [[ "$ONE_PROCESS" == True && "$DEVICE" == gpu ]]; then GPUS="${GPUS%%,*}"; fi
launch_processes -m guardrail.core.steps "$STEPS"
