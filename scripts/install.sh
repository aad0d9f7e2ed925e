#!/usr/bin/env bash
# Make the Python environment: `.venv` in the repository (or the virtual environment that is active), the pinned
# requirements.txt, this library in editable mode. Safe to repeat; does nothing when nothing changed.
#
#   bash scripts/install.sh
# On a GPU machine (`nvidia-smi -L` works) vLLM is added too (scripts/install_vllm.sh); VLLM=no leaves it out.
#
# Sourced by quickstart.sh and test.sh. Known limit: on a machine where the package index serves CUDA builds of
# torch, the first installation downloads several GB.
set -euo pipefail
# shellcheck source=scripts/help.sh
if [[ "${BASH_SOURCE[0]}" == "$0" ]]; then source "$(dirname "$0")/help.sh" "" "$@"; fi

PYTHON="${PYTHON:-python3}" # interpreter for a new .venv; 3.10 to 3.13
VLLM="${VLLM:-auto}"       # auto: vLLM where there is a GPU; no: never
REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
ENVIRONMENT="${VIRTUAL_ENV:-$REPO/.venv}"

fail() {
    echo "error: $*" >&2
    exit 2
}

command -v "$PYTHON" >/dev/null || fail "no $PYTHON on the PATH; install Python 3.10-3.13 or set PYTHON=/path/to/python"
if [[ ! -x "$ENVIRONMENT/bin/python" ]]; then
    "$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' ||
        fail "$("$PYTHON" --version) is not supported; set PYTHON to a Python 3.10-3.13"
    echo "creating $ENVIRONMENT" >&2
    "$PYTHON" -m venv "$ENVIRONMENT" ||
        fail "cannot create $ENVIRONMENT; on Debian and Ubuntu install the package python3-venv, then run this again"
fi
# shellcheck disable=SC1091
[[ -n "${VIRTUAL_ENV:-}" ]] || source "$ENVIRONMENT/bin/activate"

# The stamp is written last: an installation cut short is taken up again.
STAMP="$ENVIRONMENT/.guardrail-installed"
WANTED="$REPO $(cat "$REPO/requirements.txt" "$REPO/pyproject.toml" | sha256sum)"
if [[ ! -f "$STAMP" || "$(cat "$STAMP")" != "$WANTED" ]]; then
    LOG="$ENVIRONMENT/install.log"
    echo "installing requirements.txt into $ENVIRONMENT (log: $LOG)" >&2
    python -m pip install --progress-bar off -r "$REPO/requirements.txt" 2>&1 | tee "$LOG" |
        sed -un -e 's/^Collecting \([^ ]*\).*/  \1/p' -e 's/^Installing collected.*/  unpacking .../p' >&2 ||
        fail "pip could not install requirements.txt; the reason is at the end of $LOG"
    python -m pip install -q --no-deps --no-build-isolation -e "$REPO" >>"$LOG" 2>&1 ||
        fail "pip could not install the library itself; the reason is at the end of $LOG"
    echo "$WANTED" >"$STAMP"
fi

# vLLM needs the torch of requirements.txt; another set of requirements has another torch.
if [[ "$VLLM" == auto && "${REQUIREMENTS:-requirements.txt}" == requirements.txt ]] && nvidia-smi -L >/dev/null 2>&1 &&
    ! python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("vllm") is None)'; then
    echo "a GPU: adding vLLM (VLLM=no leaves it out)" >&2
    DEVICE=gpu VLLM_ENV="" bash "$REPO/scripts/install_vllm.sh" >&2 ||
        echo "vLLM could not be added; everything but the vLLM backend works. To try again: bash scripts/install_vllm.sh" >&2
fi
