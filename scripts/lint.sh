#!/usr/bin/env bash
# Every check that runs no code of the project: style, types, bash, YAML, the workflow. CI runs the same.
#
#   bash scripts/lint.sh
set -euo pipefail
source "$(dirname "$0")/help.sh" "" "$@"
cd "$(dirname "$0")/.."
[[ -n "${VIRTUAL_ENV:-}" || ! -d .venv/bin ]] || export PATH="$PWD/.venv/bin:$PATH"

ruff format --check .
ruff check .
mypy
shellcheck -x -P SCRIPTDIR scripts/*.sh scripts/slurm/* .ci/run
yamllint --strict .
if command -v snakefmt >/dev/null; then # none for Python 3.10, see requirements.txt
    snakefmt --check workflow/Snakefile
fi
