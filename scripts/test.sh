#!/usr/bin/env bash
# Set everything up, lint, run all tests (unit tests and one small end-to-end test per stage).
#
#   bash scripts/test.sh              # everything that runs without a GPU or the hub
#   bash scripts/test.sh -m 'not slow' tests/core
#   PROCESSES=1 COVERAGE=True bash scripts/test.sh -x
#
# Arguments go to pytest. Tests that need a GPU, the hub, vLLM or align-anything skip with a reason.
set -euo pipefail
source "$(dirname "$0")/help.sh" "" "$@"
cd "$(dirname "$0")/.."

PROCESSES="${PROCESSES:-2}"   # test processes side by side; more than the cores only slows them down
COVERAGE="${COVERAGE:-False}" # True: count the lines that run, in started processes too (slower by a quarter or so)

source scripts/install.sh
export HF_HUB_OFFLINE=1 WANDB_MODE=offline CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-}"
bash scripts/lint.sh
python datasets/sandbox/generate.py >/dev/null # once, before two processes need it at the same time

ARGUMENTS=(-rs)
if [[ "$PROCESSES" != 1 ]]; then ARGUMENTS+=(-n "$PROCESSES" --dist loadgroup); fi
if [[ "$COVERAGE" == True ]]; then ARGUMENTS+=(--cov --cov-report=); fi
python -m pytest "${ARGUMENTS[@]}" "$@"
if [[ "$COVERAGE" == True ]]; then
    python -m coverage json -q -o outputs/coverage.json
    echo "coverage of guardrail/, in percent of its lines: $(python -m coverage report --format=total) (outputs/coverage.json)"
fi
