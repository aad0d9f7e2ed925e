#!/usr/bin/env bash
# Every check that runs no code of the project: style, types, bash, YAML, the workflow. CI runs the same, and so does
# pre-commit, one check per hook.
#
#   bash scripts/lint.sh               # all of them
#   bash scripts/lint.sh ruff mypy     # some of: format ruff mypy shellcheck yamllint snakefmt
set -euo pipefail
source "$(dirname "$0")/help.sh" "" "$@"
cd "$(dirname "$0")/.."
[[ -n "${VIRTUAL_ENV:-}" || ! -d .venv/bin ]] || export PATH="$PWD/.venv/bin:$PATH"
(($#)) || set -- format ruff mypy shellcheck yamllint snakefmt

for CHECK in "$@"; do
    case "$CHECK" in
        format) ruff format --check . ;;
        ruff) ruff check . ;;
        mypy) mypy ;;
        shellcheck) shellcheck -x -P SCRIPTDIR scripts/*.sh scripts/slurm/* .ci/run ;;
        yamllint) yamllint --strict . ;;
        snakefmt)
            if command -v snakefmt >/dev/null; then # none for Python 3.10, see requirements.txt
                snakefmt --check workflow/Snakefile
            fi
            ;;
        *)
            echo "error: no check is called '$CHECK'; there are: format ruff mypy shellcheck yamllint snakefmt" >&2
            exit 2
            ;;
    esac
done
