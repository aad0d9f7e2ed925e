# Sourced first by every script in this folder: `--help` shows the script's variables and the flags of its stage.
#
#   source "$(dirname "${BASH_SOURCE[0]}")/help.sh" STAGE "$@"
#
# STAGE is the entry point, the module or the other script that gets further arguments; empty for none. Touches nothing.
# shellcheck shell=bash
set -euo pipefail

show_help() {
    local script="$1" stage="$2" repo python=python
    repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    sed -nE '2,/^[^#]/s/^# ?//p' "$script"
    echo
    echo "Variables and their defaults:"
    sed -nE 's/^(export )?([A-Z_]+)="?\$\{\2:?-(.*)\}"? +# (.*)$/  \2=\3\n        \4/p
        s/^(export )?[A-Z_]+="?\$\{([A-Z_]+):\?(.*)\}"?$/  \2 (needed)\n        \3/p' "$script"
    [[ -n "$stage" ]] || return 0
    echo
    echo "Further arguments go to $stage:"
    if [[ "$stage" == scripts/* ]]; then
        bash "$repo/$stage" --help
        return
    fi
    if [[ -z "${VIRTUAL_ENV:-}" && -x "$repo/.venv/bin/python" ]]; then python="$repo/.venv/bin/python"; fi
    command -v "$python" >/dev/null || python=python3
    if [[ "$stage" == *.py ]]; then "$python" "$repo/$stage" --help; else "$python" -m "$stage" --help; fi
}

STAGE="$1"
shift
for ARGUMENT in "$@"; do
    if [[ "$ARGUMENT" == --help || "$ARGUMENT" == -h ]]; then
        show_help "$0" "$STAGE"
        exit 0
    fi
done
unset STAGE ARGUMENT
