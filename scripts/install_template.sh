#!/usr/bin/env bash
# Put configs/template.py in the place of align_anything/configs/template.py in the active environment.
#
#   bash scripts/install_template.sh             # keeps a backup; refuses a file it does not know; safe to repeat
#   bash scripts/install_template.sh --force     # replaces an unknown file too
#   bash scripts/install_template.sh --restore   # puts align-anything's own file back
#
# Needs only Python: it does not source setup.sh, so that it works before anything else is set up there.
set -euo pipefail

REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON="${PYTHON:-python}" # interpreter of the environment that has align-anything

PYTHONPATH="$REPO${PYTHONPATH:+:$PYTHONPATH}" exec "$PYTHON" -m guardrail.training.install_template "$@"
