#!/usr/bin/env bash
# Set everything up, lint, run all tests (unit tests and one small end-to-end test per stage).
#
#   bash scripts/test.sh              # everything that runs without a GPU or the hub
#   bash scripts/test.sh -m 'not slow' tests/core
#
# Arguments go to pytest. Tests that need a GPU, the hub, vLLM or align-anything skip with a reason.
set -euo pipefail
source "$(dirname "$0")/help.sh" "" "$@"
cd "$(dirname "$0")/.."

source scripts/install.sh
export HF_HUB_OFFLINE=1 WANDB_MODE=offline CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-}"
ruff format --check .
ruff check .
python -m pytest -rs "$@"
